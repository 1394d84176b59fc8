"""Low-rank adapters: which layers get one, and how large it is. QLoRA trains the same ones beside a quantized base.

An adapter of rank r beside a linear layer is two matrices, r × inputs and outputs × r (Hu et al. 2021, section 4.1,
https://arxiv.org/abs/2106.09685). Layers are chosen as PEFT chooses them: by the last part of their name, or all
linear layers but the output embedding.
"""

from dataclasses import dataclass
from types import MappingProxyType

from app.errors import InvalidInput, UnknownName
from app.planning.architecture import Architecture, LinearLayers
from app.planning.specs import Lora

ALL_LINEAR = "all-linear"

_QUERY_AND_VALUE = ("q_proj", "v_proj")

DEFAULT_TARGETS = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "bart",
                "gemma",
                "gemma2",
                "gemma3_text",
                "gpt_neo",
                "gptj",
                "llama",
                "llama4",
                "mistral",
                "mixtral",
                "opt",
                "qwen2",
                "qwen3",
                "stablelm",
            ),
            _QUERY_AND_VALUE,
        ),
        **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), ("query", "value")),
        **dict.fromkeys(("t5", "mt5"), ("q", "v")),
        **dict.fromkeys(("bloom", "falcon", "gpt_neox"), ("query_key_value",)),
        **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
        "codegen": ("qkv_proj",),
        "deberta": ("in_proj",),
        "deberta-v2": ("query_proj", "value_proj"),
        "mpt": ("Wqkv",),
        "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "phi": ("q_proj", "v_proj", "fc1", "fc2"),
        "rwkv": ("key", "value", "receptance", "output"),
    }
)
"""What PEFT 0.21 adapts when no targets are named, by `model_type`."""


_MIXTRAL_EXPERTS = ("gate", "w1", "w3", "w2")
_QWEN2_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj")
EXPERT_TARGETS = MappingProxyType(
    {
        **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), _MIXTRAL_EXPERTS),
        **dict.fromkeys(
            (
                "afmoe",
                "cohere2_moe",
                "deepseek_v2",
                "deepseek_v3",
                "deepseek_v32",
                "dots1",
                "ernie4_5_moe",
                "exaone_moe",
                "flex_olmo",
                "glm4_moe",
                "glm4_moe_lite",
                "glm_moe_dsa",
                "hunyuan_v1_moe",
                "mellum",
                "olmoe",
                "qwen3_moe",
                "qwen3_next",
                "solar_open",
            ),
            _QWEN2_EXPERTS,
        ),
    }
)
"""By `model_type`: the targets that PEFT takes for the router, the experts' gate and up, and their down matrices.

transformers 5 stacks experts in one tensor each. PEFT then puts adapters beside the stacks and the router only: a
dense or shared MLP whose layers have the same names gets none. Gate and up are one stack, so they go together and take
twice the rank.
"""


NOT_COUNTED = frozenset({"longcat_flash"})
"""Model types for which PEFT adds adapters that no rule here gives."""


@dataclass(frozen=True, slots=True)
class AdaptedLayers:
    """Adapters beside layers of one name and shape."""

    name: str
    count: int
    inputs: int
    outputs: int
    rank: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Adapters:
    """All adapters of a model. Only their `parameters` are trained; the base is frozen."""

    rank: int
    target_modules: tuple[str, ...]
    layers: tuple[AdaptedLayers, ...]

    @property
    def parameters(self) -> int:
        """Trainable parameters, as PEFT's `print_trainable_parameters` counts them."""
        return sum(layer.parameters for layer in self.layers)


def adapters(architecture: Architecture, lora: Lora, *, pointer: str = "/lora") -> Adapters:
    """The adapters that PEFT would add.

    Raises UnknownName for a target that no linear layer has, naming the nearest that exist; InvalidInput where a model
    has no default targets or is not counted, or where gate and up of experts are not named together.
    """
    if architecture.family.model_type in NOT_COUNTED:
        raise InvalidInput.at(
            pointer, f"adapters of {architecture.family.model_type} are not counted: PEFT counts idle experts in some"
        )
    linear = [layer for layer in architecture.linear_layers if layer.kind in ("linear", "output")]
    experts = EXPERT_TARGETS.get(architecture.family.model_type, ())
    known = sorted({_last(layer.name) for layer in linear} | set(experts))
    targets = _targets(architecture, lora, known, pointer)
    if targets == (ALL_LINEAR,):
        wanted = {_last(layer.name) for layer in linear if layer.kind == "linear"} | set(experts)
    else:
        wanted = set(targets)
    chosen = [_adapted(layer, lora.rank) for layer in linear if _last(layer.name) in wanted.difference(experts)]
    chosen += _beside_experts(architecture, experts, wanted, lora.rank, pointer)
    return Adapters(lora.rank, targets, tuple(chosen))


def _targets(architecture: Architecture, lora: Lora, known: list[str], pointer: str) -> tuple[str, ...]:
    if lora.target_modules == ALL_LINEAR:
        return (ALL_LINEAR,)
    if lora.target_modules is None:
        defaults = DEFAULT_TARGETS.get(architecture.family.model_type)
        if defaults is None:
            raise InvalidInput.at(
                f"{pointer}/target_modules",
                f"PEFT has no default targets for {architecture.family.model_type}; name some of {', '.join(known)}, "
                f"or send {ALL_LINEAR!r}",
            )
        return defaults
    for index, target in enumerate(lora.target_modules):
        if target not in known:
            place = f"{pointer}/target_modules/{index}"
            raise UnknownName.among("linear layer", target, known, pointer=place, see=f"the layers {', '.join(known)}")
    return tuple(lora.target_modules)


def _beside_experts(
    architecture: Architecture, experts: tuple[str, ...], wanted: set[str], rank: int, pointer: str
) -> list[AdaptedLayers]:
    if not wanted.intersection(experts):
        return []
    router, gate, up, down = experts
    if len(wanted.intersection((gate, up))) == 1:
        raise InvalidInput.at(
            f"{pointer}/target_modules", f"{gate} and {up} of the experts are one stack: name both or neither"
        )
    ranks = {"gate_up_proj": 2 * rank if gate in wanted else 0, "down_proj": rank if down in wanted else 0}
    chosen = []
    for layer in architecture.linear_layers:
        if layer.kind == "experts":
            of_layer = ranks[_last(layer.name)]
        else:
            is_router = layer.kind == "router" or _last(layer.name) == router
            of_layer = rank if is_router and router in wanted else 0
        if of_layer:
            chosen.append(_adapted(layer, of_layer))
    return chosen


def _adapted(layer: LinearLayers, rank: int) -> AdaptedLayers:
    count = layer.count * layer.copies
    parameters = count * rank * (layer.inputs + layer.outputs)
    return AdaptedLayers(layer.name, count, layer.inputs, layer.outputs, rank, parameters)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
