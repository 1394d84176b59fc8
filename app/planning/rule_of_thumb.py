"""The rule of thumb: bytes per parameter, by format, for one GPU and Adam.

FP32: 4 weights + 8 optimizer states + 4 gradients + 8 activations and temporary memory = 24, six times the weights. At
16 and 8 bits everything scales with the weights.
"""

from types import MappingProxyType

from app.errors import InvalidInput
from app.planning.sizes import Size, named
from app.planning.sources import RULE_OF_THUMB
from app.sources import Source

WEIGHT_BYTES = MappingProxyType({"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1})

_TIMES_THE_WEIGHTS = (("weights", 1), ("optimizer_states", 2), ("gradients", 1), ("activations", 2))


def terms(precision: str) -> tuple[tuple[str, Size, Source], ...]:
    """(group, bytes, source) for each term. Raises InvalidInput for a format that the table does not have."""
    if precision not in WEIGHT_BYTES:
        raise InvalidInput.at(
            "/training/precision",
            f"the rule of thumb has no row for {precision!r}; it knows {', '.join(WEIGHT_BYTES)}; "
            "use the detailed estimator for mixed precision",
        )
    weight_bytes = WEIGHT_BYTES[precision]
    return tuple(
        (group, named("parameters") * (weight_bytes * times), RULE_OF_THUMB) for group, times in _TIMES_THE_WEIGHTS
    )
