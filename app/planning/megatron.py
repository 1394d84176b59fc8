"""What Megatron's distributed optimizer lays out otherwise than the sum of the tensors.

Weights and gradients are slices of contiguous buffers, one for dense layers and one for experts that are sharded over
other ranks. Each tensor begins at a multiple of 64 elements, and a buffer ends where data-parallel ranks and 128 divide
it. The buffers of a rank's chunks, and buckets within them, are counted as one: each may add an end of its own.
"""

from functools import lru_cache
from math import lcm

from app.planning.ledger import Segment
from app.planning.recipe import Rules
from app.planning.sizes import Size, ceil_div, named, total
from app.planning.sources import MEGATRON_BUFFERS
from app.planning.states import element_bytes
from app.planning.term import Term

START = 64
"""Elements that the beginning of each tensor in a buffer is a multiple of."""

END = named("buffer_end_multiple")
EXPERT_END = named("expert_buffer_end_multiple")
PADDING = named("buffer_padding_on_rank")


def multiples(shards: int, expert_shards: int) -> dict[str, int]:
    """What the ends of the buffers are multiples of, in elements, for the ranks that share each."""
    return {str(END): lcm(shards, 128), str(EXPERT_END): lcm(expert_shards, 128)}


def padding(rules: Rules) -> list[Term]:
    """What the buffers hold beyond weights and gradients, for the whole job."""
    if not _pads(rules):
        return []
    formats = {"weights": rules.precision.parameters, "gradients": rules.precision.gradients}
    return [
        Term("weights.padding", "weights", PADDING * element_bytes(formats["weights"]), MEGATRON_BUFFERS),
        Term("gradients.padding", "gradients", PADDING * element_bytes(formats["gradients"]), MEGATRON_BUFFERS),
    ]


def counts_on_rank(rules: Rules, segments: tuple[Segment, ...]) -> dict[str, Size]:
    """The formula for the elements that the terms of `padding` name."""
    return {str(PADDING): _padding(segments, rules.experts_apart)} if _pads(rules) else {}


def _pads(rules: Rules) -> bool:
    return rules.framework == "megatron" and rules.zero_stage == 1


@lru_cache(maxsize=512)
def _padding(segments: tuple[Segment, ...], experts_apart: bool) -> Size:
    """Elements between and after the tensors of a rank's buffers."""
    dense: dict[Size, Size] = {}
    experts: dict[Size, Size] = {}
    for segment in segments:
        for weight in segment.weights:
            if weight.trainable and not segment.frozen:
                counts = experts if experts_apart and weight.component == "routed_experts" else dense
                counts[weight.elements] = counts.get(weight.elements, Size({})) + segment.copies
    return total(_added(counts, end) for counts, end in ((dense, END), (experts, EXPERT_END)) if counts)


def _added(counts: dict[Size, Size], end: Size) -> Size:
    """Elements that a buffer with so many tensors of each size has beyond them."""
    starts = total(ceil_div(elements, Size.of(START)) * START * count for elements, count in counts.items())
    return ceil_div(starts, end) * end - total(elements * count for elements, count in counts.items())
