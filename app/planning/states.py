"""What stays between steps: weights, gradients, master weights, optimizer states.

ZeRO stage 1 shards master weights and optimizer states over the data-parallel ranks, stage 2 gradients too, stage 3
weights too. FSDP shards all of them; at stage 2 it keeps whole weights from forward to backward. Which copies exist is
the framework's choice and stands in the recipe's precision: autocast keeps FP32 weights, DeepSpeed and Megatron keep
16-bit weights beside FP32 master weights.

Routed experts may be sharded over other ranks than the rest: expert parallelism takes its ranks from data, context and
tensor parallelism.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import get_args

from app.planning.ledger import Segment, Weight
from app.planning.optimizers import ELEMENT_WISE, Cut, OptimizerStates, Trained, cut_of, largest_matrix, states_of
from app.planning.recipe import Rules
from app.planning.sizes import Size, ceil_div, largest, named, smallest, total
from app.planning.sources import (
    CHECKPOINT,
    DEEPSPEED_STEP,
    FSDP,
    MEGATRON_OPTIMIZER,
    TENSOR_SIZE,
    TORCH_OPTIM,
    ZERO,
)
from app.planning.specs import FloatFormat
from app.planning.state_formats import is_precision_aware
from app.planning.term import Term
from app.planning.timeline import NOTHING, Moment, offloaded_bytes
from app.precision.formats import FORMATS
from app.sources import Source

PARAMETERS = named("parameters_on_rank")
TRAINABLE = named("trainable_parameters_on_rank")
EXPERT_PARAMETERS = named("expert_parameters_on_rank")
TRAINABLE_EXPERTS = named("trainable_expert_parameters_on_rank")
SHARDS = named("sharding_group_size")
EXPERT_SHARDS = named("expert_sharding_group_size")

DEEPSPEED_SUBGROUP_ELEMENTS = 1_000_000_000
"""`sub_group_size` of DeepSpeed: ZeRO-3 steps so many parameters at a time."""


def element_bytes(format: str) -> int:
    """Bytes of one element."""
    return FORMATS[format].bytes


def stored_bytes(elements: Size, format: str) -> Size:
    """Bytes of `elements` in a format that may be narrower than a byte, its scales included (QLoRA, section 3; for
    `int4`, GPTQ's FP16 scale and 4-bit zero point for each group of 128).
    """
    if format == "int4":
        return ceil_div(elements, Size.of(2)) + ceil_div(elements, Size.of(128)) * 2 + ceil_div(elements, Size.of(256))
    if format == "nf4":
        return ceil_div(elements, Size.of(2)) + ceil_div(elements, Size.of(64)) * 4
    if format == "nf4-double":
        return (
            ceil_div(elements, Size.of(2)) + ceil_div(elements, Size.of(64)) + ceil_div(elements, Size.of(16_384)) * 4
        )
    return elements * element_bytes(format)


def gathered_bytes(rules: Rules, segment: Segment) -> Size:
    """Bytes of the gathered weights of one repeat: in the compute format, or as they are quantized."""
    elements: dict[str, Size] = {}
    for weight in segment.weights:
        format = str(weight.format) if is_quantized(weight) else rules.precision.compute
        elements[format] = elements.get(format, NOTHING) + weight.elements
    return total(stored_bytes(amount, format) for format, amount in elements.items())


def is_quantized(weight: Weight) -> bool:
    """Whether a weight is kept in a format that nothing computes in."""
    return weight.format is not None and weight.format not in get_args(FloatFormat)


@lru_cache(maxsize=512)
def counts_on_rank(segments: tuple[Segment, ...], *, experts_apart: bool) -> dict[str, Size]:
    """Formulas for the counts that the terms name: parameters of a rank in the model's own format, trainable ones,
    and those of its experts where they are sharded over other ranks.
    """
    weights = [(weight, segment.copies) for segment in segments for weight in segment.weights]
    apart = [experts_apart and weight.component == "routed_experts" for weight, _ in weights]
    own = [weight.format is None for weight, _ in weights]
    trained = [weight.trainable and not segment.frozen for segment in segments for weight in segment.weights]

    def count(chosen: Iterable[bool]) -> Size:
        return total(weight.elements * copies for (weight, copies), use in zip(weights, chosen, strict=True) if use)

    return {
        str(PARAMETERS): count(own[i] and not apart[i] for i in range(len(weights))),
        str(EXPERT_PARAMETERS): count(own[i] and apart[i] for i in range(len(weights))),
        str(TRAINABLE): count(trained[i] and not apart[i] for i in range(len(weights))),
        str(TRAINABLE_EXPERTS): count(trained[i] and apart[i] for i in range(len(weights))),
    }


def trainable(rules: Rules, *, split: bool) -> Size:
    """Trainable parameters of a rank, or its shard of them."""
    dense = ceil_div(TRAINABLE, SHARDS) if split else TRAINABLE
    if not rules.experts_apart:
        return dense
    return dense + (ceil_div(TRAINABLE_EXPERTS, EXPERT_SHARDS) if split else TRAINABLE_EXPERTS)


def kept(rules: Rules, segments: tuple[Segment, ...]) -> list[Term]:
    """Weights, master weights and optimizer states: held at every moment."""
    precision = rules.precision
    source = _state_source(rules)
    terms = _weights(rules, segments)
    buffers = total(
        tensor.bytes * segment.copies
        for segment in segments
        for operation in segment.operations
        for tensor in operation.buffers
    )
    if buffers:
        terms.append(Term("buffers", "weights", buffers, TENSOR_SIZE))
    if rules.offload != "none":
        return terms
    if precision.master_weights is not None:
        shard = _stepped_elements(rules, segments)
        terms.append(
            Term("master_weights", "optimizer_states", shard * element_bytes(precision.master_weights), source)
        )
    for name, own in _optimizer_parts(rules, segments):
        terms.append(Term(f"optimizer_states{name}", "optimizer_states", own.bytes - own.evictable, own.source))
    return terms


def made_in_first_step(rules: Rules) -> bool:
    """Whether the optimizer makes its states in its first step, as those of PyTorch, bitsandbytes and Transformer
    Engine do, rather than before training: DeepSpeed takes a step over zeros for it, torch's Adagrad and Shampoo make
    them when they are built.
    """
    return rules.framework != "deepspeed" and rules.optimizer not in ("adagrad", "shampoo")


def host_bytes(rules: Rules, segments: tuple[Segment, ...]) -> list[Term]:
    """What one rank keeps in host memory when the optimizer, and perhaps the weights, are offloaded: master weights,
    states and FP32 gradients for the step on the CPU, and 16-bit copies that travel (DeepSpeed ZeRO-Offload; FSDP's
    CPUOffload moves the shards themselves); states that a paged optimizer may move there.
    """
    terms = [Term("checkpoints", "activations", offloaded_bytes(segments), CHECKPOINT)]
    if rules.offload == "none":
        terms += [
            Term(f"paged_states{name}", "optimizer_states", own.evictable, own.source)
            for name, own in _optimizer_parts(rules, segments)
        ]
        return terms
    precision = rules.precision
    shard = trainable(rules, split=rules.states_sharded)
    if precision.master_weights is not None:
        terms.append(Term("master_weights", "optimizer_states", shard * element_bytes(precision.master_weights), ZERO))
    terms += [
        Term(f"optimizer_states{name}", "optimizer_states", own.bytes, own.source)
        for name, own in _optimizer_parts(rules, segments)
    ]
    if optimizer_states(rules, segments, experts=False).gradients == "all" and not rules.steps_in_backward:
        stepped = "fp32" if rules.framework in ("deepspeed", "megatron") else precision.gradients
        terms.append(Term("gradients", "gradients", shard * element_bytes(stepped), ZERO))
    if rules.offload == "optimizer+parameters":
        terms.append(Term("weights", "weights", _shard_of_weights(rules), ZERO))
        terms += _in_own_formats(rules, segments)
    return terms


def _stepped_elements(rules: Rules, segments: tuple[Segment, ...]) -> Size:
    """Elements that the rank with most of them steps over; where matrices are dealt out whole, at least the largest."""
    shard = trainable(rules, split=rules.states_sharded)
    if _cut(rules) != "tensors":
        return shard
    return largest(shard, largest_matrix(Trained.of(weight) for segment in segments for weight in segment.weights))


def _optimizer_parts(rules: Rules, segments: tuple[Segment, ...]) -> list[tuple[str, OptimizerStates]]:
    """The states of everything, or of experts apart where they are sharded over other ranks."""
    parts = [("", optimizer_states(rules, segments, experts=False))]
    if rules.experts_apart:
        parts.append((".experts", optimizer_states(rules, segments, experts=True)))
    return parts


@lru_cache(maxsize=512)
def optimizer_states(rules: Rules, segments: tuple[Segment, ...], *, experts: bool) -> OptimizerStates:
    """What the optimizer keeps of a rank's experts that are sharded over other ranks, or of everything else."""
    shards, elements = (EXPERT_SHARDS, TRAINABLE_EXPERTS) if experts else (SHARDS, TRAINABLE)
    if rules.optimizer in ELEMENT_WISE and rules.optimizer_implementation != "for-loop":
        trained = [Trained(elements)]
    else:
        trained = [
            Trained.of(weight, segment.copies)
            for segment in segments
            for weight in segment.weights
            if weight.trainable
            and not segment.frozen
            and (rules.experts_apart and weight.component == "routed_experts") == experts
        ]
    cut = _cut(rules)
    return states_of(
        rules.optimizer,
        rules.optimizer_implementation,
        trained,
        state_bytes=element_bytes(rules.precision.optimizer_states),
        second_bytes=element_bytes(rules.precision.second_moments or rules.precision.optimizer_states),
        cut=cut,
        shards=Size.of(1) if cut == "whole" else shards,
        galore_rank=rules.galore_rank,
        block=largest(NOTHING, *(segment.parameters for segment in segments if segment.block)),
    )


def _cut(rules: Rules) -> Cut:
    return cut_of(rules.optimizer, rules.framework, max(rules.zero_stage, int(rules.states_sharded)))


def _weights(rules: Rules, segments: tuple[Segment, ...]) -> list[Term]:
    """Weights by component, or as shards; those in a format of their own apart."""
    own = rules.precision.parameters
    terms = []
    if rules.offload == "optimizer+parameters":
        return []
    if rules.zero_stage >= 3 or rules.fully_sharded:
        terms.append(Term("weights", "weights", _shard_of_weights(rules), _state_source(rules)))
    else:
        terms += [
            Term(f"weights.{name}", "weights", elements * element_bytes(own), TENSOR_SIZE)
            for name, elements in _elements(segments, None).items()
        ]
    return terms + _in_own_formats(rules, segments)


def _in_own_formats(rules: Rules, segments: tuple[Segment, ...]) -> list[Term]:
    """Weights that are quantized or belong to adapters, or their shards."""
    terms = []
    for format in sorted({w.format for segment in segments for w in segment.weights if w.format is not None}):
        elements = _elements(segments, format)
        experts = elements.pop("routed_experts", NOTHING) if rules.experts_apart else NOTHING
        held = total(elements.values())
        if rules.zero_stage >= 3 or rules.fully_sharded:
            held = ceil_div(held, SHARDS)
            experts = ceil_div(experts, EXPERT_SHARDS) if experts else NOTHING
        amount = stored_bytes(held, format) + (stored_bytes(experts, format) if experts else NOTHING)
        terms.append(Term(f"weights.in_{format}", "weights", amount, TENSOR_SIZE))
    return terms


def _shard_of_weights(rules: Rules) -> Size:
    """Bytes of a rank's shard of the weights in the model's own format."""
    elements = ceil_div(PARAMETERS, SHARDS)
    if rules.experts_apart:
        elements = elements + ceil_div(EXPERT_PARAMETERS, EXPERT_SHARDS)
    return elements * element_bytes(rules.precision.parameters)


def _elements(segments: tuple[Segment, ...], format: str | None) -> dict[str, Size]:
    """Parameters of one format by component, over all layers of a rank."""
    amounts: dict[str, Size] = {}
    for segment in segments:
        for weight in segment.weights:
            if weight.format == format:
                amounts[weight.component] = amounts.get(weight.component, NOTHING) + weight.elements * segment.copies
    return amounts


def between_steps(rules: Rules, segments: tuple[Segment, ...]) -> list[Term]:
    """What the allocator holds when a step is over and gradients are released where the framework releases them: not
    in Megatron's and nanotron's buffers, nor in FSDP's flat parameters before the next forward.
    """
    terms = kept(rules, segments)
    if rules.framework in ("megatron", "nanotron") or (rules.framework == "transformers" and rules.fully_sharded):
        gradient = trainable(rules, split=rules.zero_stage >= 2) * element_bytes(rules.precision.gradients)
        terms.append(Term("gradients", "gradients", gradient, _state_source(rules)))
    if rules.framework == "megatron" and rules.offload == "none":
        terms += _wide_gradients(rules)
    return terms


def gradients(rules: Rules, moment: Moment, segments: tuple[Segment, ...]) -> list[Term]:
    """Gradients at a moment of forward or backward.

    PyTorch allocates a gradient when backward reaches its weight and frees it after the step; what is accumulated over
    micro batches, Megatron's and nanotron's buffers and the partition of ZeRO-3 exist all the time. LOMO, and any step
    taken inside backward, keeps one tensor's gradient, BAdam those of one block.
    """
    found = optimizer_states(rules, segments, experts=False).gradients
    if found != "all" or rules.steps_in_backward:
        return [_new(rules, moment.fresh_gradients), *_block_gradients(rules, segments, found)]
    by_framework = {
        "megatron": _megatron_gradients,
        "nanotron": _nanotron_gradients,
        "deepspeed": _deepspeed_gradients,
    }
    return by_framework.get(rules.framework, _autograd_gradients)(rules, moment)


def _megatron_gradients(rules: Rules, moment: Moment) -> list[Term]:  # noqa: ARG001 - the same at every moment
    """One contiguous buffer for the whole job, which matrix products add into themselves."""
    return [_held_gradients(rules)]


def _nanotron_gradients(rules: Rules, moment: Moment) -> list[Term]:
    """An FP32 buffer for the whole job, and 16-bit gradients until the end of backward, which are added to it then."""
    return [_held_gradients(rules), _new(rules, moment.finished_gradients + moment.own_gradients)]


def _deepspeed_gradients(rules: Rules, moment: Moment) -> list[Term]:
    """Stage 3 holds its partition for the whole job; stage 2 as well, twice where micro batches are added up; stage 1
    lets gradients grow until the last micro batch; without ZeRO, BF16 training has an FP32 buffer.
    """
    new = _new(rules, moment.fresh_gradients)
    if rules.offload != "none":
        return [new]
    held = _held_gradients(rules)
    if rules.zero_stage == 2 and rules.accumulated:
        return [Term(held.name, held.group, held.bytes * 2, held.source), new]
    if rules.zero_stage >= 2 or rules.accumulated or (rules.zero_stage == 0 and rules.states_sharded):
        return [held, new]
    return [_growing(rules, moment)]


def _autograd_gradients(rules: Rules, moment: Moment) -> list[Term]:
    """PyTorch's own: they grow through backward, whole or as shards. accelerate sums whole ones over micro batches.
    FSDP's CPU offload moves each shard to the host as soon as it is reduced.
    """
    own = moment.own_gradients * element_bytes(rules.precision.compute)
    if rules.accumulated and rules.fully_sharded and rules.framework == "transformers":
        whole = trainable(rules, split=False) * element_bytes(rules.precision.compute)
        return [Term("gradients.unsynchronized", "gradients", whole, FSDP), _new(rules, moment.own_gradients)]
    if rules.fully_sharded and rules.offload == "optimizer+parameters":
        return [Term("gradients.unsharded", "temporary", own, _state_source(rules))]
    if rules.accumulated:
        fresh = moment.own_gradients if rules.fully_sharded else moment.fresh_gradients
        return [_held_gradients(rules), _new(rules, fresh)]
    if rules.fully_sharded:
        experts = moment.finished_expert_gradients if rules.experts_apart else NOTHING
        shards = ceil_div(moment.finished_gradients - experts, SHARDS)
        if experts:
            shards = shards + ceil_div(experts, EXPERT_SHARDS)
        held = shards * element_bytes(rules.precision.gradients)
        return [
            Term("gradients", "gradients", held, _state_source(rules)),
            Term("gradients.unsharded", "temporary", own, _state_source(rules)),
        ]
    return [_growing(rules, moment)]


def _held_gradients(rules: Rules) -> Term:
    """All gradients of a rank, or its shard of them."""
    elements = trainable(rules, split=rules.zero_stage >= 2)
    return Term("gradients", "gradients", elements * element_bytes(rules.precision.gradients), _state_source(rules))


def _growing(rules: Rules, moment: Moment) -> Term:
    """Gradients of weights that backward has reached."""
    elements = moment.finished_gradients + moment.own_gradients
    return Term("gradients", "gradients", elements * element_bytes(rules.precision.gradients), _state_source(rules))


def _new(rules: Rules, elements: Size) -> Term:
    """Gradients in the weights' format that are on their way to where gradients are kept."""
    return Term("gradients.new", "temporary", elements * element_bytes(rules.kernels.parameters), TENSOR_SIZE)


def _block_gradients(rules: Rules, segments: tuple[Segment, ...], which: str) -> list[Term]:
    if which != "block":
        return []
    block = largest(NOTHING, *(segment.parameters for segment in segments if segment.block))
    return [Term("gradients", "gradients", block * element_bytes(rules.precision.gradients), TENSOR_SIZE)]


def step(rules: Rules, segments: tuple[Segment, ...]) -> list[Term]:
    """Gradients and the optimizer's scratch, while the optimizer steps."""
    precision = rules.precision
    source = _state_source(rules)
    found = optimizer_states(rules, segments, experts=False).gradients
    if found != "all" or rules.steps_in_backward:
        return _block_gradients(rules, segments, found)
    if rules.offload != "none":
        return [_held_gradients(rules)] if rules.framework == "megatron" else []
    gradient = trainable(rules, split=rules.zero_stage >= 2)
    terms = [Term("gradients", "gradients", gradient * element_bytes(precision.gradients), source)]
    terms += _wide_gradients(rules)
    for name, own in _optimizer_parts(rules, segments):
        if own.step_scratch:
            terms.append(Term(f"optimizer.scratch{name}", "temporary", own.step_scratch, TORCH_OPTIM))
    return terms


def _wide_gradients(rules: Rules) -> list[Term]:
    """FP32 copies of 16-bit gradients for the master weights. Megatron lets go of them when the next step begins; its
    precision-aware optimizer reads gradients as they are.
    """
    precision = rules.precision
    if rules.framework == "megatron" and is_precision_aware(precision):
        return []
    if (
        rules.framework not in ("deepspeed", "megatron")
        or not precision.master_weights
        or precision.gradients == "fp32"
    ):
        return []
    shard = trainable(rules, split=rules.states_sharded)
    wide = smallest(shard, Size.of(DEEPSPEED_SUBGROUP_ELEMENTS)) if rules.zero_stage == 3 else shard
    flat = element_bytes(precision.gradients) if rules.framework == "deepspeed" and rules.zero_stage < 3 else 0
    return [Term("optimizer.fp32_gradients", "temporary", wide * (4 + flat), DEEPSPEED_STEP)]


def _state_source(rules: Rules) -> Source:
    if rules.framework == "megatron":
        return MEGATRON_OPTIMIZER
    if rules.zero_stage == 0:
        return TENSOR_SIZE
    return ZERO if rules.framework == "deepspeed" or rules.zero_stage == 1 else FSDP
