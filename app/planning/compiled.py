"""A ledger as `torch.compile` runs it: chains of pointwise operators become one kernel each.

What is inside such a chain is cheap to make again, so AOTAutograd's partitioner keeps what enters the chain (min-cut
rematerialization), and no gradient exists inside it. What a matrix product or attention needs in backward has to be a
tensor there anyway, and is kept rather than made again (functorch's `is_materialized_backwards`). Matrix products,
attention, look-ups and communication stay operators of their own.
"""

from dataclasses import replace

from app.planning.ledger import Operation, Segment, Tensor
from app.planning.sizes import total

POINTWISE = frozenset(
    {
        "to",
        "clone",
        "add",
        "scale",
        "add_one",
        "mul",
        "dropout",
        "silu",
        "gelu",
        "gelu-tanh",
        "relu",
        "square",
        "pow",
        "tanh",
        "sigmoid",
        "glu",
        "activation",
        "weight",
        "rms_norm",
        "layer_norm",
        "rotary",
        "split",
        "log_softmax",
        "nll_loss",
    }
)
"""Operators that a compiler fuses, by the last part of an operation's name."""


def compile_segment(segment: Segment) -> Segment:
    """The segment with its pointwise chains fused."""
    wanted = {
        tensor
        for operation in segment.operations
        if not _fuses(operation)
        for tensor in (*operation.inputs, *operation.saves)
    }
    wanted.add(segment.operations[-1].output)
    roots: dict[Tensor, tuple[Tensor, ...]] = {}
    fused: list[Operation] = []
    pending: list[Operation] = []
    for operation in segment.operations:
        if not _fuses(operation):
            fused.append(operation)
            continue
        entering = dict.fromkeys(root for tensor in operation.inputs for root in roots.get(tensor, (tensor,)))
        roots[operation.output] = tuple(entering)
        pending.append(operation)
        if operation.output in wanted:
            fused.append(
                replace(
                    operation,
                    inputs=tuple(entering),
                    saves=_kept(pending, roots),
                    weights=tuple(weight for one in pending for weight in one.weights),
                    tied=tuple(weight for one in pending for weight in one.tied),
                    passes=False,
                )
            )
            pending = []
    return replace(segment, operations=tuple(fused))


def _kept(chain: list[Operation], roots: dict[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What a chain keeps for backward: what its operators save, or what enters the chain to make that from, whichever
    is smaller.
    """
    saved = dict.fromkeys(tensor for operation in chain for tensor in operation.saves)
    entering = dict.fromkeys(root for tensor in saved for root in roots.get(tensor, (tensor,)))
    is_smaller = total(tensor.bytes for tensor in entering).covers(total(tensor.bytes for tensor in saved))
    return tuple(saved if is_smaller else entering)


def _fuses(operation: Operation) -> bool:
    return operation.name.rpartition(".")[2] in POINTWISE and not operation.core
