"""The scales of a tensor's tiles, as each kind of scale is made: FP32, E8M0, E4M3 under FP32, and NF4's nested ones."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from app.precision.definition import Format
from app.precision.layouts import CodebookLayout, FloatLayout, IntegerLayout, Layout
from app.precision.ranges import Range, range_of_tensor, range_of_tiles
from app.precision.rounding import Rounded, Values, round_to, round_to_whole
from app.precision.scheme import Scheme

_FP32 = FloatLayout(8, 23, 127, "ieee")
_E4M3 = FloatLayout(4, 3, 7, "nan-only")
_E8M0_LARGEST_EXPONENT = 127
_NESTED_BLOCKS = 256

Portions = Callable[[], Iterable[Values]]


@dataclass(frozen=True, slots=True)
class TileScales:
    """The scales of tiles, as columns: one row for each tile. `zero_points` are codes of zero."""

    scales: Values
    """As stored: what codes are multiplied by, after `TensorScales.scale` where there is one."""
    zero_points: Values | None
    divisors: Values
    """What values are divided by before they are rounded; of NF4 with nested scales, the scale before it was
    quantized itself.
    """
    factors: Values
    """What rounded values are multiplied by."""


@dataclass(frozen=True, slots=True)
class TensorScales:
    """What is known of a tensor before its tiles: the one range that a linear scheme has, or the FP32 number that block
    formats keep once (`scale` of NVFP4, `offset` of nested scales).
    """

    range: Range | None = None
    scale: float | None = None
    offset: float | None = None


def unscaled(tiles: Sequence[Values], known: TensorScales, format: Format, scheme: Scheme) -> list[TileScales]:  # noqa: ARG001 - all kinds take the same
    """No scale: codes are rounded values."""
    one = np.ones((1, 1))
    return [TileScales(one, None, one, one) for _ in tiles]


def linear(tiles: Sequence[Values], known: TensorScales, format: Format, scheme: Scheme) -> list[TileScales]:
    """An FP32 scale, and a zero point where the scheme is affine; of a range for each tile, or of the tensor's."""

    def quantized(values: Values, of: Range) -> Values:
        scales = _linear_scales(of, format.layout, scheme)
        return round_scaled(format.layout, values, scales, scheme).values * scales.factors

    ranges = [known.range or range_of_tiles(tile, scheme, quantized) for tile in tiles]
    return [_linear_scales(each, format.layout, scheme) for each in ranges]


def linear_of_tensor(portions: Portions, format: Format, scheme: Scheme) -> TensorScales:
    """The range of a whole tensor."""

    def quantized(values: Values, of: Range) -> Values:
        scales = _linear_scales(of, format.layout, scheme)
        return round_scaled(format.layout, values, scales, scheme).values * scales.factors

    return TensorScales(range=range_of_tensor(portions, scheme, quantized))


def shared_exponents(tiles: Sequence[Values], known: TensorScales, format: Format, scheme: Scheme) -> list[TileScales]:  # noqa: ARG001 - all kinds take the same
    """E8M0: the exponent of the largest magnitude less that of the element's largest number (MX v1.0, section 6.3).

    A NaN makes the scale NaN, and with it the whole block; infinities are left to the elements, which saturate.
    """
    largest = format.layout.largest_exponent if isinstance(format.layout, FloatLayout) else 0
    found = []
    for tile in tiles:
        magnitudes = np.where(np.isinf(tile), 0.0, np.abs(tile)).max(axis=1, keepdims=True)
        _, exponents = np.frexp(magnitudes)
        exponents = np.where(magnitudes > 0, exponents - 1 - largest, -_E8M0_LARGEST_EXPONENT)
        scales = np.ldexp(1.0, np.clip(exponents, -_E8M0_LARGEST_EXPONENT, _E8M0_LARGEST_EXPONENT))
        scales = np.where(np.isnan(magnitudes), np.nan, scales)
        found.append(TileScales(scales, None, scales, scales))
    return found


def two_levels(tiles: Sequence[Values], known: TensorScales, format: Format, scheme: Scheme) -> list[TileScales]:  # noqa: ARG001 - all kinds take the same
    """NVFP4: for each block an E4M3 scale, in units of the tensor's FP32 scale, so that its largest magnitude is the
    element's largest number.
    """
    of_tensor = 1.0 if known.scale is None else known.scale
    found = []
    for tile in tiles:
        wanted = _magnitudes(tile) / format.layout.largest / of_tensor
        scales = round_to(_E4M3, wanted, saturate=True).values
        factors = scales * of_tensor
        found.append(TileScales(scales, None, np.where(factors == 0, np.inf, factors), factors))
    return found


def two_levels_of_tensor(portions: Portions, format: Format, scheme: Scheme) -> TensorScales:  # noqa: ARG001 - all kinds take the same
    """NVFP4's FP32 scale: the tensor's largest magnitude becomes the largest element under the largest scale."""
    largest = max((float(_magnitudes(portion.reshape(1, -1))[0, 0]) for portion in portions()), default=0.0)
    return TensorScales(scale=float(_fp32(np.array([largest / (format.layout.largest * _E4M3.largest)]))[0]))


def nested(tiles: Sequence[Values], known: TensorScales, format: Format, scheme: Scheme) -> list[TileScales]:  # noqa: ARG001 - all kinds take the same
    """NF4 with quantized scales: their mean is taken off, and 256 of them at a time become entries of an 8-bit table
    under an FP32 scale, as bitsandbytes does. Elements are rounded under the scale as it was before.
    """
    exact = [_fp32(_magnitudes(tile)) for tile in tiles]
    scales = np.concatenate(exact)[:, 0]
    offset = 0.0 if known.offset is None else known.offset
    padded = np.zeros(-(-scales.size // _NESTED_BLOCKS) * _NESTED_BLOCKS)
    padded[: scales.size] = scales - offset
    blocks = padded.reshape(-1, _NESTED_BLOCKS)
    over = _fp32(_magnitudes(blocks))
    stored = (round_to(_DYNAMIC8, blocks / over).values * over + offset).reshape(-1)[: scales.size]
    found, start = [], 0
    for each in exact:
        column = stored[start : start + each.size, None]
        found.append(TileScales(column, None, each, column))
        start += each.size
    return found


def nested_of_tensor(portions: Portions, format: Format, scheme: Scheme) -> TensorScales:  # noqa: ARG001 - all kinds take the same
    """The mean of the FP32 scales of blocks of 64."""
    total, count = 0.0, 0
    for portion in portions():
        flat = portion.reshape(-1)
        whole = flat.size // 64 * 64
        for blocks in (flat[:whole].reshape(-1, 64), flat[whole:].reshape(1, -1)):
            if blocks.size:
                scales = _fp32(_magnitudes(blocks))
                total, count = total + float(scales.sum()), count + scales.size
    return TensorScales(offset=float(np.float32(total / count)) if count else 0.0)


def round_scaled(
    layout: Layout,
    tiles: Values,
    scales: TileScales,
    scheme: Scheme,
    draws: Values | None = None,
    *,
    saturate: bool = True,
) -> Rounded:
    """Elements under their scales: what they are rounded to, before it is multiplied by the scale again."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = tiles / scales.divisors
    if isinstance(layout, IntegerLayout):
        zero = 0.0 if scales.zero_points is None else scales.zero_points
        return round_to_whole(layout, values, draws, zero_points=zero, symmetric=scheme.kind == "symmetric")
    return round_to(layout, values, saturate=saturate, draws=draws)


def _linear_scales(of: Range, layout: Layout, scheme: Scheme) -> TileScales:
    if scheme.kind == "affine" and isinstance(layout, IntegerLayout):
        with np.errstate(over="ignore"):
            scales = _fp32((of.high - of.low) / (layout.largest - layout.smallest))
        zero = np.clip(np.rint(layout.smallest - of.low / scales), layout.smallest, layout.largest)
        return TileScales(scales, zero, scales, scales)
    largest: float = layout.largest
    middle = None
    if isinstance(layout, IntegerLayout) and not layout.signed:
        middle = np.full(of.high.shape, float(1 << layout.bits - 1))
        largest = float((1 << layout.bits - 1) - 1)
    scales = _fp32(of.high / largest)
    return TileScales(scales, middle, scales, scales)


def _magnitudes(tiles: Values) -> Values:
    found: Values = np.where(np.isfinite(tiles), np.abs(tiles), 0.0).max(axis=1, keepdims=True)
    return found


def _fp32(scales: Values) -> Values:
    """As FP32 keeps them, neither subnormal nor infinite; 1 where all elements are 0."""
    kept = np.clip(round_to(_FP32, scales).values, _FP32.smallest_normal, _FP32.largest)
    return np.where(scales == 0, 1.0, kept)


def _dynamic_table() -> tuple[float, ...]:
    """bitsandbytes' signed 8-bit table: seven decades below 1, with 1, 2, … 64 values in them, evenly spread."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1.0, 2**decade + 1, dtype=np.float32)
        means = ((edges[:-1] + edges[1:]) / np.float32(2)).astype(np.float64) * 10.0 ** (decade - 6)
        values += [*means.tolist(), *(-means).tolist()]
    return tuple(sorted(float(np.float32(value)) for value in values))


_DYNAMIC8 = CodebookLayout(_dynamic_table())
