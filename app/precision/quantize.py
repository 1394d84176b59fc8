"""A tensor of any size into a format: scales, codes, errors, portion by portion, with a bounded amount of memory.

Stochastic rounding draws from Philox 4x64-10 (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405), keyed by
seed and tensor: element i takes the i-th number, so that the portions a tensor comes in change nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType

import numpy as np

from app.errors import InvalidInput
from app.precision.definition import Format
from app.precision.layouts import CodebookLayout, FloatLayout, IntegerLayout
from app.precision.rounding import Codes, Mask, Rounded, Values
from app.precision.scaling import (
    TensorScales,
    TileScales,
    linear,
    linear_of_tensor,
    nested,
    nested_of_tensor,
    round_scaled,
    shared_exponents,
    two_levels,
    two_levels_of_tensor,
    unscaled,
)
from app.precision.scheme import Scheme
from app.precision.tiles import PORTION_ELEMENTS, ChannelsFirst, Elements, Part, Portion, Tiling, check_tile
from app.precision.totals import ErrorSummary, ErrorTotals

DEFAULT_BLOCK_SIZE = 128
SCALES_SHOWN = 256
"""Of a tensor with more scales, a report has their number and their range; of one of many tensors, with more than
`FEW_SCALES`.
"""
FEW_SCALES = 16

_OfTiles = Callable[[Sequence[Values], TensorScales, Format, Scheme], list[TileScales]]
_OfTensor = Callable[[Callable[[], Iterator[Values]], Format, Scheme], TensorScales]

_OWN_SCALES: Mapping[str, tuple[_OfTiles, _OfTensor | None]] = MappingProxyType(
    {
        "fp32": (linear, None),
        "e8m0": (shared_exponents, None),
        "fp8_e4m3": (two_levels, two_levels_of_tensor),
        "dynamic8": (nested, nested_of_tensor),
    }
)
"""How scales of block formats are made: those of tiles, and what the tensor has once."""


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of a tensor: all of them where they are few, in the shape of the grid of tiles."""

    count: int
    smallest: float | None
    largest: float | None
    shape: tuple[int, ...]
    values: tuple[float | None, ...] | None
    """Row-major; null where there are more than 256, or 16 in a report on many tensors. A NaN, which marks a block of
    MX that had one, is null.
    """
    zero_points: tuple[int, ...] | None
    """Codes of zero, one for each scale; null where zero is code 0, or scales are null."""
    tensor_scale: float | None
    """NVFP4's FP32 scale, which multiplies all others."""
    offset: float | None
    """The mean that was taken off NF4's scales before they were quantized; `values` have it again."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a format did to a tensor."""

    totals: ErrorTotals
    scales: Scales | None
    """None where values are rounded as they are."""

    @property
    def errors(self) -> ErrorSummary:
        """What was lost."""
        return self.totals.summary()


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a tensor of one shape is brought into a format."""

    format: Format
    scheme: Scheme
    tiling: Tiling
    of_tiles: _OfTiles
    of_tensor: _OfTensor | None
    saturates: bool
    channels: tuple[int, int, int] | None = None
    """The tensor as outer × channels × inner elements, where channels do not come first."""
    stream: int = 0
    """Which tensor of a file it is: each has random numbers of its own."""
    scales_shown: int = SCALES_SHOWN

    @property
    def reads_in_order_once(self) -> bool:
        """Whether elements can be read as they come; otherwise they are read several times, or in another order."""
        return self.of_tensor is None and self.channels is None and self.tiling.is_sequential

    def run(self, elements: Elements, keep: "Kept | None" = None) -> Report:
        """Convert the tensor, and say what became of it; `keep` gets every code and value."""
        if self.channels is not None:
            elements = ChannelsFirst(elements, *self.channels)
        known = (
            TensorScales()
            if self.of_tensor is None
            else self.of_tensor(
                lambda: (self.tiling.read(elements, portion) for portion in self.tiling.portions()),
                self.format,
                self.scheme,
            )
        )
        totals, summary = ErrorTotals(), _ScaleSummary(self, known)
        for portion in self.tiling.portions():
            values = self.tiling.read(elements, portion)
            draws = self._draws(portion)
            tiles = [part.to_tiles(values) for part in portion.parts]
            found = self.of_tiles(tiles, known, self.format, self.scheme)
            for part, tile, scales in zip(portion.parts, tiles, found, strict=True):
                rounded = round_scaled(
                    self.format.layout,
                    tile,
                    scales,
                    self.scheme,
                    None if draws is None else part.to_tiles(draws),
                    saturate=self.saturates,
                )
                with np.errstate(over="ignore", invalid="ignore"):
                    stored = rounded.values * scales.factors
                totals.add(tile, stored, rounded, self.format.layout)
                summary.add(portion, part, scales)
                if keep is not None:
                    keep.put(portion, part, rounded, stored, scales)
        return Report(totals, summary.finish())

    def _draws(self, portion: Portion) -> Values | None:
        if self.scheme.rounding == "nearest":
            return None
        tiling = self.tiling
        start = (portion.plane * tiling.rows + portion.row) * tiling.columns + portion.column
        if portion.width == tiling.columns:
            return self._uniform(start, portion.height * portion.width).reshape(portion.height, portion.width)
        starts = range(start, start + portion.height * tiling.columns, tiling.columns)
        return np.stack([self._uniform(at, portion.width) for at in starts])

    def _uniform(self, start: int, count: int) -> Values:
        block, skipped = divmod(start, 4)  # one step of the counter gives four numbers
        source = np.random.Philox(key=np.array([self.scheme.seed, self.stream], np.uint64), counter=block)
        return np.random.Generator(source).random(skipped + count)[skipped:]


class Kept:
    """Codes and values of a whole tensor that is small enough, in its own order."""

    def __init__(self, quantization: Quantization) -> None:
        tiling = quantization.tiling
        shape = (tiling.planes, tiling.rows, tiling.columns)
        self._channels = quantization.channels
        self.codes: Codes = np.zeros(shape, np.uint64)
        self.elements: Values = np.zeros(shape)
        self.stored: Values = np.zeros(shape)
        self.factors: Values = np.zeros(shape)
        self.overflowed: Mask = np.zeros(shape, np.bool_)

    def put(self, portion: Portion, part: Part, rounded: Rounded, stored: Values, scales: TileScales) -> None:
        """Write the tiles of a part to their places."""
        at = (
            portion.plane,
            slice(portion.row, portion.row + portion.height),
            slice(portion.column, portion.column + portion.width),
        )
        part.put_back(rounded.codes, self.codes[at])
        part.put_back(rounded.values, self.elements[at])
        part.put_back(stored, self.stored[at])
        part.put_back(np.broadcast_to(np.abs(scales.factors), stored.shape), self.factors[at])
        part.put_back(rounded.overflowed, self.overflowed[at])

    def flat(self, name: str) -> np.ndarray:
        """One of the arrays, in the tensor's row-major order."""
        array: np.ndarray = getattr(self, name)
        if self._channels is None:
            return array.reshape(-1)
        outer, channels, inner = self._channels
        return array.reshape(channels, outer, inner).transpose(1, 0, 2).reshape(-1)


@dataclass(slots=True)
class _ScaleSummary:
    quantization: Quantization
    known: TensorScales
    count: int = 0
    smallest: float | None = None
    largest: float | None = None
    grid: Values | None = field(init=False)
    zeros: Values | None = None

    def __post_init__(self) -> None:
        shape = self.quantization.tiling.grid
        few = self.known.range is None and prod(shape) <= self.quantization.scales_shown
        self.grid = np.zeros(shape) if few else None

    def add(self, portion: Portion, part: Part, scales: TileScales) -> None:
        usable = scales.scales[np.isfinite(scales.scales)]
        self.count += scales.scales.size
        if usable.size:
            low, high = float(usable.min()), float(usable.max())
            self.smallest = low if self.smallest is None else min(self.smallest, low)
            self.largest = high if self.largest is None else max(self.largest, high)
        if self.known.range is not None:
            self.grid, self.zeros = scales.scales, scales.zero_points
        elif self.grid is not None:
            down, across = self.quantization.tiling.scales_of(portion, part)
            self.grid[portion.plane, down, across] = scales.scales.reshape(down.stop - down.start, -1)
            if scales.zero_points is not None:
                self.zeros = np.zeros(self.grid.shape) if self.zeros is None else self.zeros
                self.zeros[portion.plane, down, across] = scales.zero_points.reshape(down.stop - down.start, -1)

    def finish(self) -> Scales | None:
        if self.quantization.of_tiles is unscaled:
            return None
        once = self.known.range is not None
        shape: tuple[int, ...] = () if once else self.quantization.tiling.grid
        return Scales(
            count=1 if once else self.count,
            smallest=self.smallest,
            largest=self.largest,
            shape=tuple(size for index, size in enumerate(shape) if index or size > 1),
            values=None if self.grid is None else tuple(_or_null(scale) for scale in self.grid.reshape(-1)),
            zero_points=None if self.zeros is None else tuple(int(zero) for zero in self.zeros.reshape(-1)),
            tensor_scale=self.known.scale,
            offset=self.known.offset,
        )


def _or_null(scale: float) -> float | None:
    return None if np.isnan(scale) else float(scale)


def plan(format: Format, scheme: Scheme, shape: tuple[int, ...], *, pointer: str, stream: int = 0) -> Quantization:
    """How a tensor of this shape is brought into a format, by the format's own scales or those of the scheme.

    Raises InvalidInput, pointing at the scheme, for one that the shape or the format cannot have.
    """
    elements = prod(shape)
    if format.scales:
        own = Scheme(kind="symmetric", rounding=scheme.rounding, seed=scheme.seed)
        of_tiles, of_tensor = _OWN_SCALES[format.scales[0].format]
        if scheme.rounding == "stochastic" and isinstance(format.layout, CodebookLayout):
            raise InvalidInput.at(
                f"{pointer}/rounding", f"{format.name} is a table of values, and rounded to the nearest; send nearest"
            )
        tiling = _own_tiling(format, shape)
        return Quantization(format, own, tiling, of_tiles, of_tensor, saturates=True, stream=stream)
    flat = Tiling(1, 1, elements, 1, PORTION_ELEMENTS)
    if not takes(format, scheme):
        return Quantization(format, scheme, flat, unscaled, None, saturates=scheme.saturate, stream=stream)
    if scheme.granularity == "tensor":
        return Quantization(format, scheme, flat, linear, linear_of_tensor, saturates=True, stream=stream)
    tiling, channels = _tiling(scheme, shape, pointer)
    check_tile(tiling, pointer=f"{pointer}/granularity")
    return Quantization(format, scheme, tiling, linear, None, saturates=True, channels=channels, stream=stream)


def takes(format: Format, scheme: Scheme) -> bool:
    """Whether the scheme gives this format a scale: integers, and narrow floats if it says so."""
    if scheme.kind == "none" or format.scales:
        return False
    is_narrow = isinstance(format.layout, FloatLayout) and format.layout.bits <= 8 and scheme.scale_floats
    return isinstance(format.layout, IntegerLayout) or is_narrow


def _own_tiling(format: Format, shape: tuple[int, ...]) -> Tiling:
    scale = format.scales[0]
    columns = 1 if scale.columns is None else scale.columns
    if scale.flat:
        return Tiling(1, 1, prod(shape), 1, columns)
    *leading, last = shape or (1,)
    if scale.rows == 1:
        return Tiling(1, prod(leading), last, 1, columns)
    return Tiling(prod(leading[:-1]), leading[-1] if leading else 1, last, scale.rows, columns)


def _tiling(scheme: Scheme, shape: tuple[int, ...], pointer: str) -> tuple[Tiling, tuple[int, int, int] | None]:
    if scheme.granularity == "block":
        *leading, last = shape or (1,)
        return Tiling(1, prod(leading), last, 1, scheme.block_size or DEFAULT_BLOCK_SIZE), None
    axis = scheme.channel_axis
    if axis >= len(shape):
        raise InvalidInput.at(
            f"{pointer}/channel_axis", f"axis {axis} does not exist in a tensor of {len(shape)} dimensions"
        )
    outer, channels, inner = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
    size = max(outer * inner, 1)
    return Tiling(1, channels, outer * inner, 1, size), (outer, channels, inner) if outer > 1 else None
