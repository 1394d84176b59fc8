"""Liger Kernel: which classes of `transformers` it patches, and with which of its RMSNorms."""

from app.errors import InvalidInput
from app.planning.ledger import LigerNorm
from app.planning.specs import Framework

_IN_PLACE = frozenset(
    {"exaone4", "gemma", "hunyuan_v1_dense", "llama", "ministral", "mistral", "phi3", "qwen2", "qwen3", "smollm3"}
)
_BESIDE = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4", "olmo2", "olmo3"})
"""Where a norm stands after a part of the block, it must not write over a gradient that the residual stream needs."""

PATCHED = _IN_PLACE | _BESIDE
"""Dense model types whose norms, gated products and loss Liger 0.8 replaces (`transformers/monkey_patch.py`)."""

_WITH_EXPERTS = frozenset({"deepseek_v2", "deepseek_v3", "mixtral", "qwen3_moe", "qwen3_next"})
"""Patched as well, but their experts' kernels are not estimated."""


def norm_of(model_type: str) -> LigerNorm:
    """The RMSNorm that a patched class gets."""
    return "in-place" if model_type in _IN_PLACE else "beside"


def check_liger(framework: Framework, model_type: str) -> None:
    """Raises InvalidInput where Liger's kernels cannot be, or are not estimated."""
    pointer = "/training/use_liger_kernel"
    if framework not in ("transformers", "deepspeed"):
        raise InvalidInput.at(pointer, f"Liger patches classes of transformers; {framework} has its own kernels")
    if model_type in PATCHED:
        return
    if model_type in _WITH_EXPERTS:
        missing = f"Liger's kernels for the experts of {model_type} are not estimated"
    else:
        missing = f"Liger's kernels for {model_type} are not estimated, but those for {', '.join(sorted(PATCHED))}"
    raise InvalidInput.at(pointer, f"{missing}; send fused_cross_entropy: true for a loss without whole logits alone")
