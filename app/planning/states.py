"""What stays between steps: weights, gradients, master weights, optimizer states; and what sharding needs in passing.

ZeRO stage 1 shards master weights and optimizer states over `data_parallel_size` ranks, stage 2 gradients too, stage 3
weights too. FSDP shards all of them; at stage 2 it keeps whole weights from forward to backward. Which copies exist is
the framework's choice and stands in the recipe's precision: autocast keeps FP32 weights, DeepSpeed and Megatron keep
16-bit weights beside FP32 master weights.
"""

from app.planning.ledger import Segment
from app.planning.recipe import Rules
from app.planning.sizes import Size, ceil_div, largest, named, smallest, total
from app.planning.sources import (
    DDP,
    DEEPSPEED_CONFIG,
    DEEPSPEED_STEP,
    FSDP,
    MEGATRON_OPTIMIZER,
    TENSOR_SIZE,
    TORCH_OPTIM,
    ZERO,
    Source,
)
from app.planning.term import Term
from app.planning.timeline import NOTHING, Moment
from app.precision.formats import FORMATS

PARAMETERS = named("parameters")
TRAINABLE = named("trainable_parameters")
SHARDS = named("data_parallel_size")
LARGEST_WEIGHT = named("largest_weight")

DEEPSPEED_BUCKET_ELEMENTS = 500_000_000
"""`reduce_bucket_size` of DeepSpeed: one bucket is allocated whole, however small the model is."""

DEEPSPEED_PREFETCH_ELEMENTS = 50_000_000
"""`stage3_prefetch_bucket_size` of DeepSpeed."""


DEEPSPEED_LIVE_ELEMENTS = 1_000_000_000
"""`stage3_max_live_parameters` of DeepSpeed: so many stay gathered, since they are used again within reuse distance."""


def element_bytes(format: str) -> int:
    """Bytes of one element."""
    return FORMATS[format].bytes


def sharded(elements: Size, *, when: bool) -> Size:
    """What one rank holds of `elements`: a shard, rounded up, or everything."""
    return ceil_div(elements, SHARDS) if when else elements


def kept(rules: Rules, segments: tuple[Segment, ...]) -> list[Term]:
    """Weights, master weights and optimizer states: held at every moment."""
    precision = rules.precision
    source = _state_source(rules)
    weight_bytes = element_bytes(precision.parameters)
    if rules.zero_stage >= 3 or rules.fully_sharded:
        terms = [Term("weights", "weights", ceil_div(PARAMETERS, SHARDS) * weight_bytes, source)]
    else:
        terms = [
            Term(f"weights.{name}", "weights", elements * weight_bytes, TENSOR_SIZE)
            for name, elements in elements_by_component(segments).items()
        ]
    shard = sharded(TRAINABLE, when=rules.zero_stage >= 1)
    if precision.master_weights is not None:
        terms.append(
            Term("master_weights", "optimizer_states", shard * element_bytes(precision.master_weights), source)
        )
    if rules.optimizer_states_per_parameter:
        state_bytes = element_bytes(precision.optimizer_states) * rules.optimizer_states_per_parameter
        terms.append(Term("optimizer_states", "optimizer_states", shard * state_bytes, source))
    return terms


def gradients(rules: Rules, moment: Moment) -> list[Term]:
    """Gradients at a moment of forward or backward.

    PyTorch allocates a gradient when backward reaches its weight and frees it after the step; Megatron's buffer, the
    partition of DeepSpeed's ZeRO-2 and 3, and any gradient accumulated over micro batches exist all the time.
    """
    gradient_bytes = element_bytes(rules.precision.gradients)
    source = _state_source(rules)
    if rules.framework == "megatron" or rules.accumulated or (rules.framework == "deepspeed" and rules.zero_stage >= 2):
        terms = [
            Term("gradients", "gradients", sharded(TRAINABLE, when=rules.zero_stage >= 2) * gradient_bytes, source)
        ]
        fresh = moment.own_gradients if rules.fully_sharded else moment.fresh_gradients
        if rules.fully_sharded and rules.framework == "transformers":
            whole = TRAINABLE * element_bytes(rules.precision.compute)
            terms.append(Term("gradients.unsynchronized", "temporary", whole, FSDP))
        if rules.framework != "megatron":
            terms.append(
                Term("gradients.new", "temporary", fresh * element_bytes(rules.kernels.parameters), TENSOR_SIZE)
            )
        return terms
    if rules.zero_stage >= 2:
        own = moment.own_gradients if rules.fully_sharded else moment.fresh_gradients
        return [
            Term("gradients", "gradients", sharded(moment.finished_gradients, when=True) * gradient_bytes, source),
            Term("gradients.unsharded", "temporary", own * element_bytes(rules.precision.compute), source),
        ]
    return [Term("gradients", "gradients", (moment.finished_gradients + moment.own_gradients) * gradient_bytes, source)]


def in_passing(rules: Rules, segments: tuple[Segment, ...], segment: Segment | None) -> list[Term]:
    """Buffers and gathered weights that sharding and replication need while `segment` runs; None is the optimizer
    step.
    """
    compute_bytes = element_bytes(rules.precision.compute)
    terms = []
    if rules.framework == "deepspeed" and rules.zero_stage >= 1:
        bucket = Size.of(DEEPSPEED_BUCKET_ELEMENTS * compute_bytes)
        terms.append(Term("deepspeed.reduce_bucket", "temporary", bucket, DEEPSPEED_CONFIG))
        if rules.zero_stage == 3 and segment is not None:
            prefetched = smallest(PARAMETERS, Size.of(DEEPSPEED_PREFETCH_ELEMENTS))
            live = largest(segment.parameters + prefetched, Size.of(DEEPSPEED_LIVE_ELEMENTS))
            gathered = smallest(PARAMETERS, live)
            terms.append(Term("deepspeed.gathered_weights", "temporary", gathered * compute_bytes, DEEPSPEED_CONFIG))
    elif rules.fully_sharded and segment is not None:
        terms.append(
            Term(
                "fsdp.gathered_weights",
                "temporary",
                _gathered(rules.zero_stage, segments, segment) * compute_bytes,
                FSDP,
            )
        )
        if segment.block:
            reducing = element_bytes("fp32" if rules.framework == "torchtitan" else rules.precision.compute)
            terms.append(Term("fsdp.reduce_scatter_input", "temporary", segment.parameters * reducing, FSDP))
    elif rules.replicated and rules.framework in ("transformers", "torchtitan"):
        copies = TRAINABLE * element_bytes(rules.precision.gradients)
        terms.append(Term("ddp.buckets", "temporary", copies, DDP))
    return terms


def step(rules: Rules) -> list[Term]:
    """All gradients and the optimizer's scratch, while the optimizer steps."""
    precision = rules.precision
    gradient = sharded(TRAINABLE, when=rules.zero_stage >= 2)
    shard = sharded(TRAINABLE, when=rules.zero_stage >= 1)
    source = _state_source(rules)
    terms = [Term("gradients", "gradients", gradient * element_bytes(precision.gradients), source)]
    if rules.framework in ("deepspeed", "megatron") and precision.master_weights and precision.gradients != "fp32":
        terms.append(Term("optimizer.fp32_gradients", "temporary", shard * 4, DEEPSPEED_STEP))
    if rules.optimizer_has_scratch:
        if rules.optimizer_implementation == "foreach":
            scratch = shard * element_bytes(precision.optimizer_states)
            terms.append(Term("optimizer.foreach_scratch", "temporary", scratch, TORCH_OPTIM))
        elif rules.optimizer_implementation == "for-loop":
            scratch = sharded(LARGEST_WEIGHT, when=rules.fully_sharded) * (
                2 * element_bytes(precision.optimizer_states)
            )
            terms.append(Term("optimizer.loop_scratch", "temporary", scratch, TORCH_OPTIM))
    return terms


def elements_by_component(segments: tuple[Segment, ...]) -> dict[str, Size]:
    """Parameters of each component, over all repeats."""
    amounts: dict[str, Size] = {}
    for segment in segments:
        for weight in segment.weights:
            amounts[weight.component] = amounts.get(weight.component, NOTHING) + weight.elements * segment.repeats
    return amounts


def _gathered(stage: int, segments: tuple[Segment, ...], segment: Segment) -> Size:
    """Whole weights that FSDP holds: all of them at stage 2; else the root group, this block and the prefetched one."""
    if stage == 2:
        return PARAMETERS
    root = total(part.parameters for part in segments if not part.block)
    return root + segment.parameters * 2 if segment.block else root


def _state_source(rules: Rules) -> Source:
    if rules.framework == "megatron":
        return MEGATRON_OPTIMIZER
    if rules.zero_stage == 0:
        return TENSOR_SIZE
    return ZERO if rules.framework == "deepspeed" or rules.zero_stage == 1 else FSDP
