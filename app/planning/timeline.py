"""What a training step holds, moment by moment, from the ledger of its forward pass.

Forward keeps what operations save. Backward walks the operations in reverse: the gradient of each output arrives, the
gradients of inputs and weights are allocated, and only then are the output's gradient and the saved tensors freed, as
PyTorch's autograd engine does it. Every moment is a polynomial over sizes, so that the peak is found by evaluating all
of them, for one layout or for a grid.

Blocks repeat: what changes from one repeat to the next is linear (one block's activations less, one block's gradients
more), so the first and the last repeat that backward reaches hold the extremes of all.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from app.planning.compiled import compile_segment
from app.planning.families import FAMILIES
from app.planning.ledger import Component, Kernels, Operation, Segment, Tape, Tensor, Weight
from app.planning.sizes import Size, total
from app.planning.specs import RecomputeModule
from app.precision.formats import FORMATS

ByComponent = dict[Component, Size]

NOTHING = Size({})


@dataclass(frozen=True, slots=True)
class Moment:
    """What one micro batch holds at one point of forward or backward.

    Bytes, except for gradients, which are elements because their format is the framework's choice:
    `finished_gradients` belong to segments whose backward is over, `finished_expert_gradients` of those to routed
    experts, `own_gradients` to the segment that runs, `fresh_gradients` of those to the operation that runs.
    """

    label: str
    segment: Segment
    saved: ByComponent
    """What autograd keeps, by the component that made it, recomputed tensors included."""
    weight_casts: Size
    """16-bit copies of weights that autocast made."""
    transient: Size
    """Gradients of activations, scratch, and outputs nobody saves."""
    finished_gradients: Size = NOTHING
    finished_expert_gradients: Size = NOTHING
    own_gradients: Size = NOTHING
    fresh_gradients: Size = NOTHING
    forward: bool = False
    """Whether it belongs to the step's forward."""


@dataclass(slots=True)
class _Storage:
    """A gradient's memory; an addition hands the same storage to both its inputs."""

    bytes: Size
    holders: int = 1


class _Gradients:
    """Gradients of activations that are alive, and the bytes they take."""

    def __init__(self) -> None:
        self.bytes = NOTHING
        self._of: dict[Tensor, _Storage] = {}

    def allocate(self, size: Size) -> _Storage:
        self.bytes = self.bytes + size
        return _Storage(size)

    def release(self, storage: _Storage) -> None:
        storage.holders -= 1
        if not storage.holders:
            self.bytes = self.bytes - storage.bytes

    def arrive(self, tensor: Tensor, storage: _Storage) -> None:
        """Adds a gradient to what `tensor` has received: in place, unless that storage is shared."""
        before = self._of.get(tensor)
        if before is None:
            self._of[tensor] = storage
            return
        if before.holders > 1:
            self._of[tensor] = self.allocate(tensor.bytes)
            self.release(before)
        self.release(storage)

    def take(self, tensor: Tensor) -> _Storage:
        return self._of.pop(tensor) if tensor in self._of else self.allocate(NOTHING)


@lru_cache(maxsize=512)
def record(model_type: str, layout: object, kernels: Kernels) -> tuple[Segment, ...]:
    """The ledger of a family's forward pass with loss, as these kernels run it."""
    tape = Tape(kernels)
    family = FAMILIES[model_type]
    with tape.naming(dict(family.module_names)):
        family.forward(tape, layout)
    return tuple(
        compile_segment(segment) if kernels.compiled and (segment.block or kernels.compiled_loss) else segment
        for segment in tape.segments
    )


def moments(segments: tuple[Segment, ...]) -> tuple[Moment, ...]:
    """The moments of forward and backward that can be the peak, in the order a step reaches them."""
    kept = _with_shared(segments, [kept_after_forward(segment) for segment in segments])
    casts = [_kept_casts(segment) for segment in segments]
    waiting = _merged(
        [_scaled(part, segment.waiting) for part, segment in zip(kept, segments, strict=True) if segment.waiting]
        + [_scaled(_by_component(_kept(segment)), Size.of(2)) for segment in segments if segment.offloaded]
    )
    waiting_casts = total(
        cast * segment.waiting for cast, segment in zip(casts, segments, strict=True) if segment.waiting
    )
    found = [*_last_block(segments, kept, waiting, waiting_casts)]
    found += [_end_of_forward(segments, kept, waiting, waiting_casts)] if segments else []
    finished = finished_experts = lingering = NOTHING
    allocated: set[Weight] = set()
    for index in reversed(range(len(segments))):
        segment = segments[index]
        if segment.frozen:
            break
        before = _merged([waiting, *(_scaled(kept[i], segments[i].repeats) for i in range(index))])
        casts_before = waiting_casts + total(casts[i] * segments[i].repeats for i in range(index))
        reached = (
            [(segment.repeats - 1, NOTHING), (NOTHING, segment.repeats - 1)] if segment.block else [(NOTHING, NOTHING)]
        )
        for repeats_left, repeats_done in reached:
            done = finished + new_gradients(segment, allocated) * repeats_done
            experts_done = finished_experts + new_gradients(segment, allocated, experts_only=True) * repeats_done
            staying = segment.repeats - 1 if segment.lingers else repeats_left
            left = _merged([before, _scaled(kept[index], staying)])
            input_gradients = lingering + _lingering_gradient(segment) * repeats_done
            casts_left = casts_before + casts[index] * repeats_left
            found += [
                replace(
                    moment,
                    saved=_merged([left, moment.saved]),
                    weight_casts=casts_left + moment.weight_casts,
                    transient=moment.transient + input_gradients,
                    finished_gradients=done,
                    finished_expert_gradients=experts_done,
                )
                for moment in backward(segment, frozenset(allocated), carried=bool(repeats_done))
            ]
        if segment.lingers:
            lingering = lingering + _lingering_gradient(segment) * segment.repeats
            waiting = _merged([waiting, _scaled(kept[index], segment.repeats)])
        finished = finished + new_gradients(segment, allocated) * segment.repeats
        finished_experts = finished_experts + new_gradients(segment, allocated, experts_only=True) * segment.repeats
        allocated.update(weight for operation in segment.operations for weight in operation.tied)
    return tuple(found)


def _lingering_gradient(segment: Segment) -> Size:
    """Bytes of the gradient of a repeat's input that stays until backward ends: FSDP's hook for resharding frozen
    weights hangs on that input, which a re-entrant checkpoint made, and the two hold each other.
    """
    return _entry(segment).bytes if segment.lingers else NOTHING


def kept_after_forward(segment: Segment) -> ByComponent:
    """Bytes that one repeat of a segment keeps from forward to backward, by component; casts of weights apart."""
    if segment.frozen or segment.offloaded:
        return {}
    return _by_component(_kept(segment))


def offloaded_bytes(segments: tuple[Segment, ...]) -> Size:
    """Bytes that wait in host memory from forward to backward."""
    return total(
        total(_by_component(_kept(segment)).values()) * (segment.repeats + (segment.waiting or NOTHING))
        for segment in segments
        if segment.offloaded
    )


def _kept_casts(segment: Segment) -> Size:
    """16-bit copies of one repeat's weights that stay from forward to backward."""
    again = segment.recompute in ("full", "operators")
    return NOTHING if segment.frozen or again else casts_of(segment)


def _cached_casts(segment: Segment) -> Size:
    """16-bit copies of one repeat's weights at the end of forward: autocast's cache has those of trained weights also
    where nothing else keeps them.
    """
    again = segment.recompute in ("full", "operators")
    return total(
        cast.bytes
        for operation in segment.operations
        if not again or any(weight.trainable for weight in (*operation.weights, *operation.tied))
        for cast in operation.casts
    )


def casts_of(segment: Segment) -> Size:
    """Bytes of all copies of weights in another format that one repeat makes."""
    return total(cast.bytes for operation in segment.operations for cast in operation.casts)


def new_gradients(segment: Segment, allocated: AbstractSet[Weight], *, experts_only: bool = False) -> Size:
    """Elements of weight gradients that one repeat of a segment allocates, beside those `allocated` before: of all its
    weights, or of routed experts only.
    """
    weights = dict.fromkeys(
        weight for operation in segment.operations for weight in (*operation.weights, *operation.tied)
    )
    return total(
        weight.elements
        for weight in weights
        if weight.trainable and weight not in allocated and (weight.component == "routed_experts" or not experts_only)
    )


def backward(segment: Segment, allocated: AbstractSet[Weight], *, carried: bool = False) -> Iterator[Moment]:
    """The moments of one segment's backward, by itself: nothing of other segments is counted. When `carried`, later
    repeats have given gradients to the tensors that all repeats share.

    A gradient of a weight in `allocated` (tied to one whose backward is over) is made and added to the one there is.
    Under autocast a weight's gradient comes in the compute format first, and is cast once the operation has let go of
    the rest.
    """
    parameter_bytes = FORMATS[segment.parameter_format].bytes
    gradients = _Gradients()
    last = segment.operations[-1].output
    gradients.arrive(last, gradients.allocate(last.bytes))
    if carried:
        for tensor in _shared(segment):
            if tensor.differentiable:
                gradients.arrive(tensor, gradients.allocate(tensor.bytes))
    saved = _kept(segment)
    if segment.recompute in ("full", "operators"):
        saved = _all_saved(segment) + saved
    again = _all_saved(segment) - saved if segment.recompute == "selective" else Counter()
    casts = casts_of(segment)
    own = NOTHING
    runs_again = segment.recompute == "full"
    for operation in reversed(segment.operations):
        if runs_again and operation.saves:
            yield from _inside_forward(segment, saved, casts, gradients.bytes)
            runs_again = False
        if again and _is_remade(segment, operation):
            saved, again = saved + again, Counter()
        arriving = gradients.take(operation.output)
        weights = (*operation.weights, *operation.tied)
        fresh = total(weight.elements for weight in weights if weight.trainable)
        fresh_own = total(weight.elements for weight in weights if weight.trainable and weight not in allocated)
        added = total(weight.elements for weight in operation.weights if weight in allocated) * parameter_bytes
        if operation.in_place:
            saved -= Counter(operation.saves)
        _pass_back(operation, arriving, gradients)
        cast_gradients = total(cast.bytes for cast in operation.casts)
        running = Moment(
            label=operation.name,
            segment=segment,
            saved=_by_component(saved),
            weight_casts=casts,
            transient=gradients.bytes + operation.backward_scratch + cast_gradients + added,
            own_gradients=own if operation.casts else own + fresh_own,
            fresh_gradients=NOTHING if operation.casts else fresh,
        )
        yield running
        gradients.release(arriving)
        if not operation.in_place:
            saved -= Counter(operation.saves)
        casts = casts - cast_gradients
        own = own + fresh_own
        if operation.casts:
            yield replace(
                running,
                label=f"{operation.name}.weight_gradient",
                saved=_by_component(saved),
                weight_casts=casts,
                transient=gradients.bytes + cast_gradients,
                own_gradients=own,
                fresh_gradients=fresh,
            )


def _inside_forward(
    segment: Segment, saved: Counter[Tensor], casts: Size, gradients: Size = NOTHING
) -> Iterator[Moment]:
    """A block's forward at the last of its operations that holds more than what is saved: beside that, what a later
    operation reads and what the modules that run were called with. A second forward stops at its last save, before
    that operation has an output.
    """
    index = max((i for i, operation in enumerate(segment.operations) if operation.forward_scratch), default=None)
    if index is None:
        return
    running = segment.operations[index]
    made = [operation.output for operation in segment.operations[:index]]
    later = segment.operations[index + 1 :]
    read = {tensor for operation in (running, *later) for tensor in operation.inputs}
    first_input: dict[str, Tensor | None] = {}
    for operation in segment.operations[: index + 1]:
        for module in modules_around(operation):
            first_input.setdefault(module, next(iter(operation.inputs), None))
    called_with = {first_input[module] for module in modules_around(running)}
    held = [tensor for tensor in dict.fromkeys(made) if tensor in read | called_with and tensor not in saved]
    goes_on = segment.recompute == "none" or any(operation.saves for operation in later)
    if goes_on and running.output not in saved:
        held.append(running.output)
    yield Moment(
        label=f"{running.name} in forward",
        segment=segment,
        saved=_by_component(saved),
        weight_casts=casts,
        transient=gradients + running.forward_scratch + total(tensor.bytes for tensor in held),
    )


def _pass_back(operation: Operation, arriving: _Storage, gradients: _Gradients) -> None:
    for tensor in dict.fromkeys(operation.inputs):
        if not tensor.differentiable:
            continue
        if operation.passes and tensor.format == operation.output.format:
            arriving.holders += 1
            gradients.arrive(tensor, arriving)
        else:
            gradients.arrive(tensor, gradients.allocate(tensor.bytes))


def _last_block(
    segments: tuple[Segment, ...], kept: list[ByComponent], waiting: ByComponent, waiting_casts: Size
) -> Iterator[Moment]:
    """Forward of the last block, where it holds more at some operation than it keeps."""
    index = max((i for i, segment in enumerate(segments) if segment.block and not segment.frozen), default=None)
    if index is None:
        return
    segment = segments[index]
    kept_before = [_scaled(kept[i], segments[i].repeats) for i in range(index)]
    before = _merged([waiting, *kept_before, _scaled(kept[index], segment.repeats - 1)])
    casts = waiting_casts + total(_cached_casts(part) * part.repeats for part in segments[: index + 1])
    for moment in _inside_forward(segment, _kept(segment), casts):
        yield replace(moment, saved=_merged([before, moment.saved]), forward=True)


def _end_of_forward(
    segments: tuple[Segment, ...], kept: list[ByComponent], waiting: ByComponent, waiting_casts: Size
) -> Moment:
    """Forward is over, nothing freed yet: a head's outputs are still held by the code that made them, and its loss,
    which runs last, holds what it works with.
    """
    last = segments[-1]
    saved = _all_saved(last)
    outputs = {} if last.block else dict.fromkeys(op.output for op in last.operations if not op.released)
    return Moment(
        label="end of forward",
        segment=last,
        saved=_merged([waiting, *(_scaled(part, seg.repeats) for part, seg in zip(kept, segments, strict=True))]),
        weight_casts=waiting_casts + total(_cached_casts(segment) * segment.repeats for segment in segments),
        transient=total(tensor.bytes for tensor in outputs if tensor not in saved)
        + total(operation.forward_scratch for operation in last.operations if operation.in_place and not last.block),
        forward=True,
    )


def _shared(segment: Segment) -> dict[Tensor, None]:
    """Tensors that every repeat of a block reads and none makes: an encoder's output, masks, a relative bias."""
    if not segment.block:
        return {}
    read = dict.fromkeys(tensor for operation in segment.operations for tensor in operation.inputs)
    made = {operation.output for operation in segment.operations}
    return {tensor: None for tensor in read if tensor not in made and tensor is not _entry(segment)}


def _with_shared(segments: tuple[Segment, ...], kept: list[ByComponent]) -> list[ByComponent]:
    """Adds tensors that all repeats of a block share, once, to the segment that made them: those that an operation
    saves, or all of them where blocks run again.
    """
    makers = {operation.output: index for index, segment in enumerate(segments) for operation in segment.operations}
    shared: dict[Tensor, None] = {}
    for segment in segments:
        again = segment.recompute in ("full", "operators")
        saves = {tensor for operation in segment.operations for tensor in operation.saves}
        shared |= {tensor: None for tensor in _shared(segment) if again or tensor in saves}
    for tensor in shared:
        index = makers.get(tensor, 0)
        if tensor not in _all_saved(segments[index]):
            kept[index] = _merged([kept[index], {tensor.component: tensor.bytes}])
    return kept


def _all_saved(segment: Segment) -> Counter[Tensor]:
    """Each tensor that the segment's operations save, with the number of operations that do; without what all repeats
    share.
    """
    shared = _shared(segment)
    return Counter(tensor for operation in segment.operations for tensor in operation.saves if tensor not in shared)


def _kept(segment: Segment) -> Counter[Tensor]:
    """What of that stays from forward to backward: where all is made again, the block's input; where modules are, what
    enters them and what others save; where operators are, the input and the outputs of those that are kept.
    """
    saved = _all_saved(segment)
    if segment.recompute == "none":
        return saved
    if segment.recompute == "full":
        return Counter([_entry(segment)])
    if segment.recompute == "operators":
        return Counter([_entry(segment), *_checkpointed_outputs(segment)])
    remade = [operation for operation in segment.operations if _is_remade(segment, operation)]
    made = {operation.output for operation in remade}
    discarded = {op.output for op in remade if module_of(op) in OUTPUT_DISCARDING}
    entering = dict.fromkeys(tensor for operation in remade for tensor in operation.inputs if tensor not in made)
    outside = {
        tensor
        for operation in segment.operations
        if not _is_remade(segment, operation)
        for tensor in operation.saves
        if tensor not in discarded
    }
    shared = _shared(segment)
    kept = Counter({tensor: count for tensor, count in saved.items() if tensor in outside or tensor in entering})
    kept.update(tensor for tensor in entering if tensor not in saved and tensor not in shared)
    return kept


def _checkpointed_outputs(segment: Segment) -> list[Tensor]:
    """What torchtitan's selective checkpointing keeps of a block: attention, communication, and every other matrix
    product, beginning with the first (torchtitan, `distributed/activation_checkpoint.py`).
    """
    kept: list[Tensor] = []
    products = 0
    for operation in segment.operations:
        kind = operation.name.rpartition(".")[2]
        if kind == "scaled_dot_product_attention":
            kept += [tensor for tensor in operation.saves if tensor not in operation.inputs]
        elif kind == "reduce_scatter":
            kept.append(operation.output)
        elif kind == "linear":
            products += 1
            if products % 2:
                kept.append(operation.output)
    return kept


def _is_remade(segment: Segment, operation: Operation) -> bool:
    return module_of(operation) in segment.remade


OUTPUT_DISCARDING: frozenset[RecomputeModule | None] = frozenset({"moe_act", "layernorm", "mla_up_proj"})
"""Modules whose output is made again as well, so that what reads it keeps nothing (Megatron's output discarding)."""


def module_of(operation: Operation) -> RecomputeModule | None:
    """Which of Megatron's recomputable modules an operation belongs to."""
    if operation.core:
        return "core_attn"
    kind = operation.name.rpartition(".")[2]
    if operation.component == "routed_experts" and kind in ("glu", "silu", "gelu"):
        return "moe_act"
    if operation.name.endswith(("q_b_proj.linear", "kv_b_proj.linear")):
        return "mla_up_proj"
    return _MODULES.get(operation.component)


def modules_around(operation: Operation) -> list[str]:
    """Names of the modules that run when an operation does, the innermost last."""
    parts = operation.name.split(".")[:-1]
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


_MODULES: Mapping[Component, RecomputeModule] = MappingProxyType(
    {
        "norm": "layernorm",
        "mlp": "mlp",
        "shared_experts": "shared_experts",
        "router": "moe",
        "routed_experts": "moe",
    }
)


def _entry(segment: Segment) -> Tensor:
    """The tensor a block starts from."""
    return segment.operations[0].inputs[0]


def _by_component(saved: Counter[Tensor]) -> ByComponent:
    amounts: ByComponent = {}
    for tensor in saved:
        amounts[tensor.component] = amounts.get(tensor.component, NOTHING) + tensor.bytes
    return amounts


def _scaled(amounts: ByComponent, times: Size) -> ByComponent:
    return {component: amount * times for component, amount in amounts.items()}


def _merged(parts: list[ByComponent]) -> ByComponent:
    merged: ByComponent = {}
    for part in parts:
        for component, amount in part.items():
            merged[component] = merged.get(component, NOTHING) + amount
    return merged
