"""Which elements of a tensor share a scale, and in which portions a tensor of any size is worked through.

A tensor is seen as `planes` × `rows` × `columns`; a tile is a rectangle of a plane, and what is left at an edge is a
smaller tile. Elements are read in portions of whole tiles, in row-major order wherever a band of tiles is small enough.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import InvalidInput
from app.precision.rounding import Values

PORTION_ELEMENTS = 2**19
"""Elements worked on at once, where tiles allow it."""

_WIDEST_BAND_ELEMENTS = 4 * PORTION_ELEMENTS
"""Elements of a band of two-dimensional tiles that is read at once, so that elements can be read as they come."""

LARGEST_TILE_ELEMENTS = 2**22
"""Elements that may share a scale of a channel or block: all of them are in memory at once."""


class Elements(Protocol):
    """The elements of a tensor in row-major order, wherever they are kept."""

    def read(self, start: int, stop: int) -> Values:
        """Elements `start` up to `stop`, as float64."""


@dataclass(frozen=True, slots=True)
class InMemory:
    """Elements of an array."""

    array: NDArray[Any]

    def read(self, start: int, stop: int) -> Values:
        """Elements `start` up to `stop`, as float64."""
        part: Values = self.array.reshape(-1)[start:stop].astype(np.float64)
        return part


@dataclass(frozen=True, slots=True)
class ChannelsFirst:
    """Elements of a tensor `outer` × `channels` × `inner`, channel by channel. Reads whole channels only."""

    elements: Elements
    outer: int
    channels: int
    inner: int

    def read(self, start: int, stop: int) -> Values:
        """Elements `start` up to `stop` in the order of channels."""
        size = self.outer * self.inner
        first, last = start // size, stop // size
        width = (last - first) * self.inner
        parts = np.empty((self.outer, last - first, self.inner))
        for index in range(self.outer):
            at = (index * self.channels + first) * self.inner
            parts[index] = self.elements.read(at, at + width).reshape(last - first, self.inner)
        return parts.transpose(1, 0, 2).reshape(-1)


@dataclass(frozen=True, slots=True)
class Part:
    """Whole tiles of one size inside a portion: columns `left` up to `right` of it, in tiles of one size."""

    left: int
    right: int
    tile_rows: int
    tile_columns: int

    def to_tiles(self, portion: NDArray[Any]) -> NDArray[Any]:
        """The part's elements, one row for each tile."""
        elements = portion[:, self.left : self.right]
        height, width = elements.shape
        if self.tile_rows == 1:
            return elements.reshape(-1, self.tile_columns)
        down, across = height // self.tile_rows, width // self.tile_columns
        parts = elements.reshape(down, self.tile_rows, across, self.tile_columns)
        return parts.transpose(0, 2, 1, 3).reshape(down * across, -1)

    def put_back(self, tiles: NDArray[Any], portion: NDArray[Any]) -> None:
        """Write one row for each tile to where the elements were."""
        elements = portion[:, self.left : self.right]
        height, width = elements.shape
        down, across = height // self.tile_rows, width // self.tile_columns
        parts = tiles.reshape(down, across, self.tile_rows, self.tile_columns)
        elements[...] = parts.transpose(0, 2, 1, 3).reshape(height, width)


@dataclass(frozen=True, slots=True)
class Portion:
    """A rectangle of a plane that is read at once."""

    plane: int
    row: int
    column: int
    height: int
    width: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Tiling:
    """A tensor of `planes` × `rows` × `columns` elements in tiles of `tile_rows` × `tile_columns`."""

    planes: int
    rows: int
    columns: int
    tile_rows: int
    tile_columns: int

    @property
    def elements(self) -> int:
        """Elements of the tensor."""
        return self.planes * self.rows * self.columns

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles by plane, down and across: the shape of the scales."""
        return self.planes, ceil(self.rows / self.tile_rows), ceil(self.columns / self.tile_columns)

    @property
    def is_sequential(self) -> bool:
        """Whether portions follow each other in row-major order, so that elements can be read as they come."""
        return self.tile_rows == 1 or self.tile_rows * self.columns <= _WIDEST_BAND_ELEMENTS

    def portions(self) -> Iterator[Portion]:
        """All of the tensor: in row-major order where that is possible."""
        for plane in range(self.planes if self.elements else 0):
            for row, height, tile_rows in self._bands():
                for column, width in self._spans(height):
                    yield Portion(plane, row, column, height, width, self._parts(width, tile_rows))

    def read(self, elements: Elements, portion: Portion) -> Values:
        """The elements of a portion: `height` × `width`."""
        start = (portion.plane * self.rows + portion.row) * self.columns + portion.column
        if portion.width == self.columns:
            return elements.read(start, start + portion.height * self.columns).reshape(portion.height, portion.width)
        starts = range(start, start + portion.height * self.columns, self.columns)
        return np.stack([elements.read(at, at + portion.width) for at in starts])

    def scales_of(self, portion: Portion, part: Part) -> tuple[slice, slice]:
        """Where in the grid of a plane's scales a part's are."""
        top, left = portion.row // self.tile_rows, (portion.column + part.left) // self.tile_columns
        down = portion.height // part.tile_rows
        return slice(top, top + down), slice(left, left + (part.right - part.left) // part.tile_columns)

    def _bands(self) -> Iterator[tuple[int, int, int]]:
        whole = self.rows // self.tile_rows * self.tile_rows
        at_once = self.tile_rows * max(1, PORTION_ELEMENTS // (self.tile_rows * self.columns))
        for row in range(0, whole, at_once):
            yield row, min(at_once, whole - row), self.tile_rows
        if whole < self.rows:
            yield whole, self.rows - whole, self.rows - whole

    def _spans(self, height: int) -> Iterator[tuple[int, int]]:
        limit = _WIDEST_BAND_ELEMENTS if self.is_sequential and self.tile_rows > 1 else PORTION_ELEMENTS
        at_once = max(1, limit // (height * self.tile_columns)) * self.tile_columns
        if height * self.columns <= limit:
            at_once = self.columns
        for column in range(0, self.columns, at_once):
            yield column, min(at_once, self.columns - column)

    def _parts(self, width: int, tile_rows: int) -> tuple[Part, ...]:
        whole = width // self.tile_columns * self.tile_columns
        parts = [Part(0, whole, tile_rows, self.tile_columns)] if whole else []
        if whole < width:
            parts.append(Part(whole, width, tile_rows, width - whole))
        return tuple(parts)


def check_tile(tiling: Tiling, *, pointer: str) -> None:
    """Raises InvalidInput where elements under one scale are too many to be held at once."""
    elements = tiling.tile_rows * tiling.tile_columns
    if elements > LARGEST_TILE_ELEMENTS:
        raise InvalidInput.at(
            pointer,
            f"{elements:,} elements share a scale, at most {LARGEST_TILE_ELEMENTS:,} may; "
            "take granularity tensor, or block",
        )
