"""What a training step holds, moment by moment, from the ledger of its forward pass.

Forward keeps what operations save. Backward walks the operations in reverse: the gradient of each output arrives, the
gradients of inputs and weights are allocated, and only then are the output's gradient and the saved tensors freed, as
PyTorch's autograd engine does it. Every moment is a polynomial over sizes, so that the peak is found by evaluating all
of them, for one layout or for a grid.

Blocks repeat: what changes from one repeat to the next is linear (one block's activations less, one block's gradients
more), so the first and the last repeat that backward reaches hold the extremes of all.
"""

from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import lru_cache

from app.planning.families import FAMILIES
from app.planning.ledger import Component, Kernels, Operation, Segment, Tape, Tensor, Weight
from app.planning.sizes import Size, total
from app.planning.specs import Recompute
from app.precision.formats import FORMATS

ByComponent = dict[Component, Size]

NOTHING = Size({})


@dataclass(frozen=True, slots=True)
class Moment:
    """What one micro batch holds at one point of forward or backward.

    Bytes, except for gradients, which are elements because their format is the framework's choice:
    `finished_gradients` belong to segments whose backward is over, `own_gradients` to the segment that runs,
    `fresh_gradients` of those to the operation that runs.
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
    own_gradients: Size = NOTHING
    fresh_gradients: Size = NOTHING


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
    return tuple(tape.segments)


def moments(segments: tuple[Segment, ...], recompute: Recompute) -> tuple[Moment, ...]:
    """The moments of forward and backward that can be the peak, in the order a step reaches them."""
    kept = [kept_after_forward(segment, recompute) for segment in segments]
    casts = [total(cast.bytes for op in segment.operations for cast in op.casts) for segment in segments]
    found = [_end_of_forward(segments, kept, casts)]
    finished = NOTHING
    allocated: set[Weight] = set()
    for index in reversed(range(len(segments))):
        segment = segments[index]
        before = _merged([_scaled(kept[i], segments[i].repeats) for i in range(index)])
        casts_before = NOTHING if recompute == "full" else total(casts[i] * segments[i].repeats for i in range(index))
        reached = (
            [(segment.repeats - 1, NOTHING), (NOTHING, segment.repeats - 1)] if segment.block else [(NOTHING, NOTHING)]
        )
        for repeats_left, repeats_done in reached:
            done = finished + new_gradients(segment, allocated) * repeats_done
            left = _merged([before, _scaled(kept[index], repeats_left)])
            casts_left = casts_before + (NOTHING if recompute == "full" else casts[index] * repeats_left)
            found += [
                replace(
                    moment,
                    saved=_merged([left, moment.saved]),
                    weight_casts=casts_left + moment.weight_casts,
                    finished_gradients=done,
                )
                for moment in backward(segment, recompute, frozenset(allocated))
            ]
        finished = finished + new_gradients(segment, allocated) * segment.repeats
        allocated.update(weight for operation in segment.operations for weight in operation.tied)
    return tuple(found)


def kept_after_forward(segment: Segment, recompute: Recompute) -> ByComponent:
    """Bytes that one repeat of a segment keeps from forward to backward, by component; casts of weights apart."""
    if recompute == "full" and segment.block:
        source = _entry(segment)
        return {source.component: source.bytes}
    return _by_component(_saved(segment, recompute))


def new_gradients(segment: Segment, allocated: AbstractSet[Weight]) -> Size:
    """Elements of weight gradients that one repeat of a segment allocates, beside those `allocated` before."""
    weights = {weight for operation in segment.operations for weight in (*operation.weights, *operation.tied)}
    return total(weight.elements for weight in weights if weight.trainable and weight not in allocated)


def backward(segment: Segment, recompute: Recompute, allocated: AbstractSet[Weight]) -> Iterator[Moment]:
    """The moments of one segment's backward, by itself: nothing of other segments is counted.

    A gradient of a weight in `allocated` (tied to one whose backward is over) is made and added to the one there is.
    Under autocast a weight's gradient comes in the compute format first, and is cast once the operation has let go of
    the rest.
    """
    parameter_bytes = FORMATS[segment.parameter_format].bytes
    gradients = _Gradients()
    last = segment.operations[-1].output
    gradients.arrive(last, gradients.allocate(last.bytes))
    saved = _saved(segment, "none" if segment.block and recompute == "full" else recompute)
    if recompute == "full" and segment.block:
        saved[_entry(segment)] += 1
    again = _saved(segment, "none") - saved if recompute == "selective" else Counter()
    casts = total(cast.bytes for operation in segment.operations for cast in operation.casts)
    own = NOTHING
    for operation in reversed(segment.operations):
        if operation.core and again:
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


def _pass_back(operation: Operation, arriving: _Storage, gradients: _Gradients) -> None:
    for tensor in dict.fromkeys(operation.inputs):
        if not tensor.differentiable:
            continue
        if operation.passes and tensor.format == operation.output.format:
            arriving.holders += 1
            gradients.arrive(tensor, arriving)
        else:
            gradients.arrive(tensor, gradients.allocate(tensor.bytes))


def _end_of_forward(segments: tuple[Segment, ...], kept: list[ByComponent], casts: list[Size]) -> Moment:
    """Loss computed, nothing freed yet: the head's outputs are still held by the code that made them."""
    head = segments[-1]
    held = dict.fromkeys(operation.output for operation in head.operations)
    saved = _saved(head, "none")
    return Moment(
        label="end of forward",
        segment=head,
        saved=_merged([_scaled(part, segment.repeats) for part, segment in zip(kept, segments, strict=True)]),
        weight_casts=total(cast * segment.repeats for cast, segment in zip(casts, segments, strict=True)),
        transient=total(tensor.bytes for tensor in held if tensor not in saved),
    )


def _saved(segment: Segment, recompute: Recompute) -> Counter[Tensor]:
    """Each tensor that the segment's operations save, with the number of operations that do."""
    operations = segment.operations
    saved = Counter(tensor for operation in operations for tensor in operation.saves)
    if recompute == "selective":
        core = [operation for operation in operations if operation.core]
        outside = {tensor for operation in operations if not operation.core for tensor in operation.saves}
        entering = {tensor for operation in core for tensor in operation.inputs} - {op.output for op in core}
        for tensor in [tensor for tensor in saved if tensor not in outside | entering]:
            if any(tensor in operation.saves for operation in core):
                del saved[tensor]
    return saved


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
