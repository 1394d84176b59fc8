"""What tensors take in a format, to the byte: elements packed, scales counted by the shape they are cut into."""

from math import prod

from app.precision.definition import SCALE_BITS, Format
from app.precision.layouts import IntegerLayout
from app.precision.quantize import plan, takes
from app.precision.scheme import Scheme

_FP32_BYTES = 4


def stored_bytes(format: Format, shape: tuple[int, ...], scheme: Scheme | None = None) -> int:
    """Bytes of a tensor: its elements, and its scales and zero points.

    A scale counts whole where its block or tile is cut short at an edge. Under a scheme, each scale is FP32, and the
    zero point of an affine one an element. Raises InvalidInput, pointing into `/scheme`, for a scheme that the shape
    cannot have.
    """
    packed = packed_bytes(format, shape)
    if not packed:
        return 0
    if format.scales:
        return packed + scale_bytes(format, shape)
    if scheme is None or not takes(format, scheme):
        return packed
    scales = 1 if scheme.granularity == "tensor" else prod(plan(format, scheme, shape, pointer="/scheme").tiling.grid)
    is_affine = scheme.kind == "affine" and isinstance(format.layout, IntegerLayout)
    return packed + scales * _FP32_BYTES + (_ceil_div(scales * format.storage_bits, 8) if is_affine else 0)


def packed_bytes(format: Format, shape: tuple[int, ...]) -> int:
    """Bytes of the elements alone."""
    return _ceil_div(prod(shape) * format.storage_bits, 8)


def scale_bytes(format: Format, shape: tuple[int, ...]) -> int:
    """Bytes of the scales that a block format has for a tensor of this shape."""
    elements = prod(shape)
    *leading, columns = shape or (1,)
    total = 0
    for scale in format.scales:
        if scale.columns is None:
            count = 1
        elif scale.flat:
            count = _ceil_div(elements, scale.columns)
        elif scale.rows == 1:
            count = prod(leading) * _ceil_div(columns, scale.columns)
        else:
            rows = leading[-1] if leading else 1
            count = prod(leading[:-1]) * _ceil_div(rows, scale.rows) * _ceil_div(columns, scale.columns)
        total += count * SCALE_BITS[scale.format] // 8
    return total


def _ceil_div(amount: int, divisor: int) -> int:
    return -(-amount // divisor)
