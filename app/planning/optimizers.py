"""What each optimizer keeps of a trained tensor, and what its step allocates in passing.

Element-wise optimizers (Adam, Lion, SGD ...) keep tensors of the parameter's shape. Factored ones (Adafactor, CAME),
those that work on matrices (Muon, Shampoo, SOAP, GaLore, Adam-mini) and quantized ones need each tensor's own shape.
Scalars per tensor, such as step counts, are left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from app.errors import ImpossibleLayout
from app.planning.ledger import Component, Weight
from app.planning.sizes import Size, ceil_div, largest, reaches, smallest, total
from app.planning.sources import (
    ADAFACTOR,
    ADAM_MINI,
    ADEMAMIX,
    BADAM,
    BITSANDBYTES,
    CAME,
    GALORE,
    LION,
    LOMO,
    MEGATRON_LAYER_WISE,
    MUON,
    SHAMPOO,
    SOAP,
    SOPHIA,
    TORCH_OPTIM,
    TORCHAO_OPTIM,
)
from app.planning.specs import Framework, Optimizer, OptimizerImplementation
from app.sources import Source

Cut = Literal["whole", "rows", "flat", "tensors"]
"""How data-parallel ranks share the states: not at all; each tensor cut along its first dimension (FSDP2); all tensors
laid end to end and the line cut (ZeRO, Megatron's distributed optimizer); whole tensors dealt out (Muon in Megatron).
"""

NOTHING = Size({})
ONE = Size.of(1)
FP32 = 4

EMBEDDINGS: frozenset[Component] = frozenset(
    {"word_embedding", "position_embedding", "type_embedding", "relative_position"}
)
HEADS: frozenset[Component] = frozenset({"lm_head", "head_other"})

_STATES = MappingProxyType(
    {
        "adamw": 2,
        "adam": 2,
        "adamw-amsgrad": 3,
        "adamax": 2,
        "nadam": 2,
        "radam": 2,
        "sgd": 0,
        "sgd-momentum": 1,
        "adagrad": 1,
        "rmsprop": 1,
        "lion": 1,
        "ademamix": 3,
        "sophia": 2,
        "paged-adamw": 2,
    }
)
"""Tensors of the parameter's shape that element-wise optimizers keep."""

ELEMENT_WISE = frozenset(_STATES)
"""Optimizers that look at elements only: their states follow the number of trained parameters."""

_FOREACH_COPIES = MappingProxyType(
    {"adamw": 1, "adam": 1, "adamw-amsgrad": 1, "adamax": 1, "nadam": 1, "radam": 1, "adagrad": 2, "rmsprop": 1}
)
"""Lists of temporaries, each as large as all tensors, that torch.optim's foreach step holds at once."""

_LOOP_COPIES = MappingProxyType(
    {
        "adamw": 2,
        "adam": 2,
        "adamw-amsgrad": 2,
        "adamax": 1,
        "nadam": 2,
        "radam": 5,
        "adagrad": 1,
        "rmsprop": 1,
        "lion": 2,
        "ademamix": 4,
        "sophia": 3,
    }
)
"""Temporaries of one tensor's size that a step tensor by tensor holds at once."""

_WITHOUT_FUSED = frozenset({"adamax", "nadam", "radam", "rmsprop"})
"""Optimizers of torch.optim without a fused step: foreach runs instead."""

_KERNELS_ONLY = frozenset({"lion", "ademamix", "paged-adamw"})
"""Run by bitsandbytes' kernels, which keep FP32 states and need no temporaries, unless a plain loop is asked for."""

_SOURCES = MappingProxyType({"lion": LION, "ademamix": ADEMAMIX, "sophia": SOPHIA, "paged-adamw": BITSANDBYTES})

_BITSANDBYTES_STATES = MappingProxyType(
    {"adamw-8bit": 2, "paged-adamw-8bit": 2, "lion-8bit": 1, "sgd-momentum-8bit": 1, "ademamix-8bit": 3}
)
_TORCHAO_BITS = MappingProxyType({"adamw-8bit-torchao": 8, "adamw-4bit-torchao": 4})
_PAGED = frozenset({"paged-adamw", "paged-adamw-8bit"})

SMALLEST_QUANTIZED = 4096
"""Elements from which on bitsandbytes and torchao quantize a tensor's states."""

SMALLEST_PAGED = 100_000
"""Elements from which on bitsandbytes pages a tensor's states."""

SHAMPOO_BLOCK = 1024
"""`max_preconditioner_dim` of Distributed Shampoo: larger sides are cut into blocks."""

SOAP_LARGEST_SIDE = 10_000
"""`max_precond_dim` of SOAP: a longer side gets no preconditioner."""


@dataclass(frozen=True, slots=True)
class Trained:
    """`count` trainable tensors of one shape: vectors of `elements`, or `copies` stacked matrices rows × columns."""

    elements: Size
    count: Size = ONE
    rows: Size | None = None
    columns: Size | None = None
    copies: Size = ONE
    embedding: bool = False
    """An embedding or a head over the vocabulary, which matrix optimizers leave to Adam."""
    looked_up: bool = False
    """An embedding: Hugging Face's Trainer tells bitsandbytes to keep its states in 32 bit."""
    stacked: bool = False
    """Several matrices in one tensor, as experts are."""

    @classmethod
    def of(cls, weight: Weight, count: Size = ONE) -> "Trained":
        """`count` tensors like `weight`."""
        return cls(
            weight.elements,
            count,
            weight.rows,
            weight.columns,
            weight.copies,
            embedding=weight.component in EMBEDDINGS | HEADS,
            looked_up=weight.component in EMBEDDINGS,
            stacked=weight.split == "expert",
        )

    @property
    def matrix(self) -> bool:
        """Whether it has two dimensions that count."""
        return self.rows is not None and self.columns is not None

    @property
    def sides(self) -> tuple[Size, Size]:
        """Rows and columns of each matrix; a vector is one row."""
        return (self.rows, self.columns) if self.rows is not None and self.columns is not None else (ONE, self.elements)

    @property
    def hidden(self) -> bool:
        """Whether matrix optimizers work on it: a matrix that is neither embedding nor head."""
        return self.matrix and not self.embedding


@dataclass(frozen=True, slots=True)
class OptimizerStates:
    """What an optimizer holds on one rank."""

    bytes: Size
    """States that stay from step to step, and the FP32 weights that BAdam keeps of its block."""
    step_scratch: Size
    """Temporaries of the step, in bytes; of LOMO, whose step runs inside backward, those of one tensor."""
    evictable: Size
    """Bytes of the states that the driver may move to host memory (paged optimizers)."""
    gradients: Literal["all", "largest", "block"]
    """Which gradients exist at once: all, one tensor's (LOMO), or one block's (BAdam)."""
    source: Source


def states_of(
    optimizer: Optimizer,
    implementation: OptimizerImplementation,
    weights: Iterable[Trained],
    *,
    state_bytes: int,
    second_bytes: int | None = None,
    cut: Cut = "whole",
    shards: Size = ONE,
    galore_rank: int = 128,
    block: Size = NOTHING,
) -> OptimizerStates:
    """The states of all `weights` on one of `shards` ranks, and the scratch of a step.

    `state_bytes` is the size of one state element where the optimizer follows the weights' format, `second_bytes` that
    of an element of Adam's second moment where it differs; `block` is the
    elements of the largest block, which BAdam trains at a time.
    """
    whole = _merged(weights)
    if optimizer in _STATES:
        return _element_wise(optimizer, implementation, whole, state_bytes, second_bytes, cut, shards)
    if optimizer == "muon":
        return _muon(implementation, whole, state_bytes, cut, shards)
    if optimizer == "lomo":
        each = 2 * FP32 if state_bytes < FP32 else 0
        scratch = _largest(_held(tensor.elements, cut, shards) for tensor in whole) * each
        return OptimizerStates(NOTHING, scratch, NOTHING, "largest", LOMO)
    if optimizer == "badam":
        trained = _held(block, cut, shards)
        copies = _FOREACH_COPIES["adamw"] if implementation == "foreach" else 0
        return OptimizerStates(trained * (3 * FP32), trained * (FP32 * (1 + copies)), NOTHING, "block", BADAM)
    tensors = _local(whole, cut, shards)
    found = _by_shape(optimizer, tensors, state_bytes, galore_rank)
    if cut == "tensors":
        alone = _largest(
            _by_shape(optimizer, [replace(one, count=ONE)], state_bytes, galore_rank).bytes for one in whole
        )
        return replace(found, bytes=largest(ceil_div(found.bytes, shards), alone))
    return found


def largest_matrix(weights: Iterable[Trained]) -> Size:
    """Elements of the largest matrix that is kept whole: some rank holds it, and more only where there are more
    matrices than ranks. Of stacked experts, each is a matrix of its own.
    """
    return _largest(tensor.sides[0] * tensor.sides[1] for tensor in weights if tensor.hidden)


def cut_of(optimizer: Optimizer, framework: Framework, zero_stage: int) -> Cut:
    """How a framework shares the states at a ZeRO stage. Raises ImpossibleLayout where the optimizer cannot run so."""
    if zero_stage == 0:
        return "whole"
    rows = framework in ("transformers", "torchtitan") and zero_stage >= 2
    cut: Cut = "rows" if rows else "flat"
    if optimizer == "muon" or (framework == "megatron" and optimizer == "soap"):
        return "tensors" if framework == "megatron" else cut
    if optimizer == "galore-adamw":
        raise ImpossibleLayout.at(
            "/training/optimizer",
            "GaLore projects whole gradients, which no rank has with sharding; use zero_stage 0, or another optimizer",
        )
    if optimizer == "soap" or (optimizer == "shampoo" and cut == "flat"):
        instead = "zero_stage 0 or muon" if optimizer == "soap" else "FSDP (transformers, zero_stage 2 or 3) or muon"
        raise ImpossibleLayout.at(
            "/training/optimizer",
            f"{optimizer} needs the shape of each matrix, which {framework} at zero_stage {zero_stage} cuts up; "
            f"use {instead}",
        )
    return cut


def _element_wise(
    optimizer: Optimizer,
    implementation: OptimizerImplementation,
    weights: list[Trained],
    state_bytes: int,
    second_bytes: int | None,
    cut: Cut,
    shards: Size,
) -> OptimizerStates:
    kernel = optimizer in _KERNELS_ONLY and (implementation != "for-loop" or optimizer == "paged-adamw")
    element = FP32 if kernel else state_bytes
    elements = _held(total(tensor.elements * tensor.count for tensor in weights), cut, shards)
    scratch = NOTHING if kernel else _plain_scratch(optimizer, implementation, weights, state_bytes, cut, shards)
    evictable = NOTHING
    if optimizer in _PAGED:
        evictable = total(
            tensor.elements * tensor.count * (_STATES[optimizer] * FP32) * reaches(tensor.elements, SMALLEST_PAGED)
            for tensor in _local(weights, cut, shards)
        )
    each = element * _STATES[optimizer]
    if second_bytes is not None and optimizer in ("adam", "adamw"):
        each = state_bytes + second_bytes
    states = elements * each
    return OptimizerStates(states, scratch, evictable, "all", _SOURCES.get(optimizer, TORCH_OPTIM))


def _plain_scratch(
    optimizer: Optimizer,
    implementation: OptimizerImplementation,
    weights: list[Trained],
    state_bytes: int,
    cut: Cut,
    shards: Size,
) -> Size:
    """Temporaries of a step over tensors of the parameters' shapes."""
    if implementation == "fused" and optimizer not in _WITHOUT_FUSED and optimizer in _FOREACH_COPIES:
        return NOTHING
    if implementation != "for-loop" and optimizer != "sophia":
        elements = _held(total(tensor.elements * tensor.count for tensor in weights), cut, shards)
        return elements * (_FOREACH_COPIES.get(optimizer, 0) * state_bytes)
    copies = _LOOP_COPIES.get(optimizer, 0) * state_bytes
    return _largest(_held(tensor.elements, cut, shards) for tensor in weights) * copies


def _muon(
    implementation: OptimizerImplementation, weights: list[Trained], state_bytes: int, cut: Cut, shards: Size
) -> OptimizerStates:
    """Momentum for hidden matrices, Adam for the rest.

    Newton-Schulz runs on one whole matrix, however the states are shared: the update in the states' format, the matrix
    before and after an iteration in BF16, and two squares of its shorter side.
    """
    hidden = [tensor for tensor in weights if tensor.hidden]
    others = [tensor for tensor in weights if not tensor.hidden]
    momentum = _held(total(tensor.elements * tensor.count for tensor in hidden), cut, shards)
    if cut == "tensors":
        momentum = largest(momentum, largest_matrix(hidden))
    moments = _held(total(tensor.elements * tensor.count for tensor in others), cut, shards)
    iterations = [
        (
            tensor.elements * (state_bytes + 2 * 2)
            + smallest(*tensor.sides) * smallest(*tensor.sides) * tensor.copies * 4
        )
        for tensor in hidden
    ]
    adam = _plain_scratch("adamw", implementation, others, state_bytes, cut, shards)
    return OptimizerStates(
        momentum * state_bytes + moments * (2 * state_bytes),
        _largest([*iterations, adam]),
        NOTHING,
        "all",
        MEGATRON_LAYER_WISE if cut == "tensors" else MUON,
    )


def _by_shape(optimizer: Optimizer, tensors: list[Trained], state_bytes: int, galore_rank: int) -> OptimizerStates:
    """States that follow each tensor's shape, as a rank holds it."""
    if optimizer in _BITSANDBYTES_STATES or optimizer in _TORCHAO_BITS:
        return _quantized(optimizer, tensors, state_bytes)
    if optimizer == "galore-adamw":
        return _galore(tensors, state_bytes, galore_rank)
    rule = {"adafactor": _adafactor, "came": _came, "adam-mini": _adam_mini, "shampoo": _shampoo, "soap": _soap}
    return rule[optimizer](tensors, state_bytes)


def _quantized(optimizer: Optimizer, tensors: list[Trained], state_bytes: int) -> OptimizerStates:
    if optimizer in _TORCHAO_BITS:
        bits = _TORCHAO_BITS[optimizer]
        kept = total(_torchao(tensor, bits, state_bytes) * tensor.count for tensor in tensors)
        return OptimizerStates(kept, NOTHING, NOTHING, "all", TORCHAO_OPTIM)
    states = _BITSANDBYTES_STATES[optimizer]
    kept = total(_bitsandbytes(tensor, states) * tensor.count for tensor in tensors)
    paged = NOTHING
    if optimizer in _PAGED:
        paged = total(
            _bitsandbytes(tensor, states, absmax=False) * tensor.count * reaches(tensor.elements, SMALLEST_PAGED)
            for tensor in tensors
        )
    return OptimizerStates(kept, NOTHING, paged, "all", BITSANDBYTES)


def _adafactor(tensors: list[Trained], state_bytes: int) -> OptimizerStates:
    """Factors in FP32; update and squared gradient of one tensor, and FP32 copies of a 16-bit weight and gradient."""
    kept = total(_factors(tensor) * tensor.count for tensor in tensors) * FP32
    copies = 2 if state_bytes == FP32 else 4
    return OptimizerStates(kept, _largest_tensor(tensors) * (copies * FP32), NOTHING, "all", ADAFACTOR)


def _came(tensors: list[Trained], state_bytes: int) -> OptimizerStates:
    """A first moment and two pairs of factors in FP32; update and instability of one tensor with a temporary."""
    kept = total(
        (tensor.elements + _factors(tensor) * (2 if tensor.matrix else 1)) * tensor.count for tensor in tensors
    )
    copies = 3 if state_bytes == FP32 else 4
    return OptimizerStates(kept * FP32, _largest_tensor(tensors) * (copies * FP32), NOTHING, "all", CAME)


def _adam_mini(tensors: list[Trained], state_bytes: int) -> OptimizerStates:
    """A first moment, and a second for each row; the few of query, key and vectors are counted as rows too."""
    kept = total(
        (tensor.elements + (tensor.sides[0] * tensor.copies if tensor.matrix else NOTHING)) * tensor.count
        for tensor in tensors
    )
    return OptimizerStates(kept * state_bytes, _largest_tensor(tensors) * (2 * state_bytes), NOTHING, "all", ADAM_MINI)


def _shampoo(tensors: list[Trained], state_bytes: int) -> OptimizerStates:
    """Filtered gradient, grafting, factors and inverse roots in FP32; three lists of gradients in passing: filtered,
    preconditioned and grafted.
    """
    kept = total((tensor.elements + _shampoo_factors(tensor)) * tensor.count for tensor in tensors)
    lists = total(tensor.elements * tensor.count for tensor in tensors) * (3 * state_bytes)
    return OptimizerStates(kept * (2 * FP32), lists, NOTHING, "all", SHAMPOO)


def _soap(tensors: list[Trained], state_bytes: int) -> OptimizerStates:
    """Adam's moments, covariances and eigenvectors. In passing, for one tensor: the projected gradient and moment, the
    denominator, the update and the second moment in its new order; and of its largest square a QR decomposition: the
    product, its sorted copy and two factors. Workspaces of the decomposition are not counted.
    """
    kept = total((tensor.elements + _soap_squares(tensor)) * tensor.count for tensor in tensors)
    square = _largest(_soap_side(side) * _soap_side(side) for tensor in tensors for side in _dimensions(tensor))
    scratch = square * (4 * state_bytes) + _largest_tensor(tensors) * (5 * state_bytes)
    return OptimizerStates(kept * (2 * state_bytes), scratch, NOTHING, "all", SOAP)


def _bitsandbytes(tensor: Trained, states: int, *, absmax: bool = True) -> Size:
    """One byte per element and state with an FP32 maximum per 256, or four bytes in small tensors and embeddings."""
    plain = tensor.elements * (states * FP32)
    if tensor.looked_up:
        return plain
    quantized = tensor.elements * states
    if absmax:
        quantized = quantized + ceil_div(tensor.elements, Size.of(256)) * (states * FP32)
    return _either(reaches(tensor.elements, SMALLEST_QUANTIZED), quantized, plain)


def _torchao(tensor: Trained, bits: int, state_bytes: int) -> Size:
    """Codes of `bits`, an FP32 scale per block and a table, twice; only where blocks divide a large enough tensor."""
    per_block = 256 if bits == 8 else 128
    blocks = ceil_div(tensor.elements, Size.of(per_block))
    table = 2**bits * FP32
    quantized = (blocks * (per_block * bits // 8 + FP32) + table) * 2
    whole_blocks = ONE - smallest(ONE, blocks * per_block - tensor.elements)
    return _either(
        reaches(tensor.elements, SMALLEST_QUANTIZED) * whole_blocks, quantized, tensor.elements * (2 * state_bytes)
    )


def _factors(tensor: Trained) -> Size:
    """Elements of a factored second moment: a row and a column of each matrix; a vector's is not factored."""
    rows, columns = tensor.sides
    return (rows + columns) * tensor.copies if tensor.matrix else tensor.elements


def _galore(tensors: list[Trained], state_bytes: int, rank: int) -> OptimizerStates:
    """Adam on gradients projected to `rank`, for the linear layers' matrices; Adam for the rest.

    The projection is a slice of the singular vectors: from FP32 gradients it keeps all of them alive, from 16-bit ones
    the slice is a copy. The decomposition runs in FP32 on one matrix: input, both factors, and the input's FP32 copy.
    """
    kept, work = [], []
    for tensor in tensors:
        if not tensor.hidden or tensor.stacked:
            kept.append(tensor.elements * tensor.count * (2 * state_bytes))
            work.append(tensor.elements * (2 * state_bytes))
            continue
        long, short = largest(*tensor.sides), smallest(*tensor.sides)
        narrow = smallest(Size.of(rank), short)
        projection = short * (short if state_bytes == FP32 else narrow)
        kept.append((long * narrow * 2 + projection) * tensor.count * state_bytes)
        matrices = 2 if state_bytes == FP32 else 3
        work.append((tensor.elements * matrices + short * short) * FP32)
    return OptimizerStates(total(kept), _largest(work), NOTHING, "all", GALORE)


def _shampoo_factors(tensor: Trained) -> Size:
    """Elements of one set of Kronecker factors: a square for each side of each block of at most 1024 × 1024."""
    block = Size.of(SHAMPOO_BLOCK)
    squares, blocks = [], []
    for side in _dimensions(tensor):
        full = ceil_div(side - (SHAMPOO_BLOCK - 1), block)
        rest = side - full * SHAMPOO_BLOCK
        squares.append(full * SHAMPOO_BLOCK**2 + rest * rest)
        blocks.append(ceil_div(side, block))
    if len(squares) == 1:
        return squares[0]
    return (squares[0] * blocks[1] + squares[1] * blocks[0]) * tensor.copies


def _dimensions(tensor: Trained) -> tuple[Size, ...]:
    return tensor.sides if tensor.matrix else (tensor.elements,)


def _soap_squares(tensor: Trained) -> Size:
    """Elements of one set of SOAP's squares: one for each side up to 10,000, none for vectors."""
    if not tensor.matrix:
        return NOTHING
    sides = (*tensor.sides, tensor.copies) if tensor.stacked else tensor.sides
    return total(_soap_side(side) * _soap_side(side) for side in sides)


def _soap_side(side: Size) -> Size:
    return side * (ONE - reaches(side, SOAP_LARGEST_SIDE + 1))


def _either(condition: Size, yes: Size, no: Size) -> Size:
    return no + condition * (yes - no)


def _part(amount: Size, parts: Size) -> Size:
    return amount if parts == ONE else ceil_div(amount, parts)


def _held(elements: Size, cut: Cut, shards: Size) -> Size:
    """Elements on one rank."""
    return elements if cut == "whole" else _part(elements, shards)


def _largest_tensor(tensors: list[Trained]) -> Size:
    return _largest(tensor.elements for tensor in tensors)


def _largest(amounts: Iterable[Size]) -> Size:
    distinct = list(dict.fromkeys(amount for amount in amounts if amount))
    return largest(*distinct) if len(distinct) > 1 else distinct[0] if distinct else NOTHING


def _merged(weights: Iterable[Trained]) -> list[Trained]:
    """The same tensors, each shape once."""
    counts: dict[Trained, Size] = {}
    for tensor in weights:
        shape = replace(tensor, count=ONE)
        counts[shape] = counts.get(shape, NOTHING) + tensor.count
    return [replace(shape, count=count) for shape, count in counts.items()]


def _local(weights: list[Trained], cut: Cut, shards: Size) -> list[Trained]:
    """The tensors as one rank's optimizer sees them."""
    if cut == "flat":
        return [Trained(_part(total(tensor.elements * tensor.count for tensor in weights), shards))]
    if cut == "rows":
        return [_cut_rows(tensor, shards) for tensor in weights]
    return weights


def _cut_rows(tensor: Trained, shards: Size) -> Trained:
    if tensor.rows is None or tensor.columns is None:
        return replace(tensor, elements=_part(tensor.elements, shards))
    if tensor.stacked:
        copies = _part(tensor.copies, shards)
        return replace(tensor, elements=copies * tensor.rows * tensor.columns, copies=copies)
    rows = _part(tensor.rows, shards)
    return replace(tensor, elements=rows * tensor.columns * tensor.copies, rows=rows)
