"""What DeepSpeed's ZeRO holds beside shards and gradients: buckets, and weights that are whole for a while.

ZeRO-3 gathers a module's weights before it runs and those of the next modules ahead, up to a number of live elements;
small weights stay whole between steps; ZeRO++'s hpZ keeps a second copy of all weights within a group of ranks.
"""

from functools import lru_cache

from app.planning.ledger import Segment
from app.planning.recipe import Rules
from app.planning.sizes import Size, ceil_div, largest, named, reaches, smallest, total
from app.planning.sources import DEEPSPEED_CONFIG, DEEPSPEED_LIVE, DEEPSPEED_PERSISTENCE, ZERO_PLUS_PLUS
from app.planning.specs import LARGEST_COUNT, Parallelism
from app.planning.states import PARAMETERS, element_bytes, gathered_bytes, is_quantized
from app.planning.term import Term

BUCKET = named("reduce_bucket_size")
LIVE = named("stage3_max_live_parameters")
PREFETCHED = named("stage3_prefetch_bucket_size")
REUSED = named("stage3_max_reuse_distance")
SMALL = named("stage3_param_persistence_threshold")
MOST_SMALL = named("stage3_model_persistence_threshold")
PERSISTENT = named("persistent_parameters_on_rank")
SECONDARY = named("zero_hpz_partition_size")

ONE = Size.of(1)


def settings(layout: Parallelism) -> dict[str, int]:
    """The sizes that DeepSpeed's configuration decides, with its defaults; elements."""
    small, most_small = layout.stage3_param_persistence_threshold, layout.stage3_model_persistence_threshold
    live, prefetched = layout.stage3_max_live_parameters, layout.stage3_prefetch_bucket_size
    reused = layout.stage3_max_reuse_distance
    return {
        str(BUCKET): layout.reduce_bucket_size or 500_000_000,
        str(LIVE): 1_000_000_000 if live is None else live,
        str(PREFETCHED): 50_000_000 if prefetched is None else prefetched,
        str(REUSED): 1_000_000_000 if reused is None else reused,
        str(SMALL): 100_000 if small is None else small,
        str(MOST_SMALL): LARGEST_COUNT if most_small is None else most_small,
        str(SECONDARY): layout.zero_hpz_partition_size or 1,
    }


def in_passing(rules: Rules, segments: tuple[Segment, ...], segment: Segment | None, *, backward: bool) -> list[Term]:
    """Buckets and whole weights while `segment` runs forward or backward; None is the optimizer step.

    Stages 1 and 2 make a bucket for each backward; stage 3 keeps one, however small the model is, and concatenates its
    content into another while it is reduced.
    """
    bucket = BUCKET * element_bytes(rules.precision.compute)
    backward = backward and segment is not None
    if rules.zero_stage == 3:
        buckets = Term("deepspeed.reduce_bucket", "temporary", bucket * (2 if backward else 1), DEEPSPEED_CONFIG)
        whole = [] if segment is None else _whole_weights(rules, segments, segment, backward=backward)
        return [buckets, *_secondary(rules), *whole]
    if rules.zero_stage and backward:
        return [Term("deepspeed.reduce_bucket", "temporary", bucket, DEEPSPEED_CONFIG)]
    return []


def between_steps(rules: Rules) -> list[Term]:
    """Small weights, which the end of a step gathers for the next."""
    if rules.framework != "deepspeed" or rules.zero_stage < 3:
        return []
    return [_persistent(rules)]


def counts_on_rank(rules: Rules, segments: tuple[Segment, ...]) -> dict[str, Size]:
    """The formula for the weights that stay whole, where a rank has such."""
    if rules.framework != "deepspeed" or rules.zero_stage < 3:
        return {}
    return {str(PERSISTENT): _small_elements(segments)}


def _whole_weights(rules: Rules, segments: tuple[Segment, ...], segment: Segment, *, backward: bool) -> list[Term]:
    """Every module that runs gathers another bucket ahead, until as many elements are live as may be; the weight that
    reaches the limit may exceed it, which before the end of forward is the head's. A module's own weights are gathered
    in any case, and those that are used again within the reuse distance stay: from one such
    distance before the end of forward to the same point of backward, with a second forward in between where blocks run
    again.
    """
    compute_bytes = element_bytes(rules.precision.compute)
    persistent = _persistent(rules)
    rest = total(gathered_bytes(rules, part) * part.copies for part in segments) - persistent.bytes
    passes = 3 if any(part.recompute == "full" for part in segments) else 2
    ahead = LIVE * compute_bytes
    if segment.block and not backward and not segments[-1].block:
        ahead = ahead + gathered_bytes(rules, segments[-1])
    ahead = ahead * reaches(smallest(LIVE, PREFETCHED), 1)
    live = largest(gathered_bytes(rules, segment), ahead, ceil_div(REUSED, Size.of(passes)) * compute_bytes)
    return [persistent, Term("deepspeed.gathered_weights", "temporary", smallest(rest, live), DEEPSPEED_LIVE)]


def _persistent(rules: Rules) -> Term:
    amount = PERSISTENT * element_bytes(rules.precision.compute)
    return Term("deepspeed.persistent_weights", "temporary", amount, DEEPSPEED_PERSISTENCE)


@lru_cache(maxsize=512)
def _small_elements(segments: tuple[Segment, ...]) -> Size:
    """Elements of the weights that have no more than the threshold, each on its own, up to the limit for all."""
    counts: dict[Size, Size] = {}
    for segment in segments:
        for weight in segment.weights:
            if not is_quantized(weight):
                counts[weight.elements] = counts.get(weight.elements, Size({})) + segment.copies
    small = total(elements * count * (ONE - reaches(elements, SMALL + 1)) for elements, count in counts.items())
    return smallest(small, MOST_SMALL)


def _secondary(rules: Rules) -> list[Term]:
    """hpZ's copy: made when forward lets go of a weight, dropped when the step is over."""
    if not rules.secondary:
        return []
    copy = ceil_div(PARAMETERS, SECONDARY) * element_bytes(rules.precision.compute)
    return [Term("deepspeed.secondary_weights", "temporary", copy, ZERO_PLUS_PLUS)]
