"""What a number format is, and the scales that blocks of it share."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Literal

from app.precision.hardware import NativeUnits
from app.precision.layouts import Layout
from app.sources import Source

Kind = Literal["float", "integer", "block"]
ScaleFormat = Literal["fp32", "e8m0", "fp8_e4m3", "dynamic8"]

SCALE_BITS: Mapping[ScaleFormat, int] = MappingProxyType({"fp32": 32, "e8m0": 8, "fp8_e4m3": 8, "dynamic8": 8})
"""Bits of one scale. `dynamic8` is bitsandbytes' 8-bit table of values, which has more of them near zero."""


@dataclass(frozen=True, slots=True)
class Scale:
    """A scale that `rows` × `columns` elements share: a tile of the last two dimensions, or a run along the last.

    `columns` is null where all elements of a tensor share it. `flat` runs go on from one row to the next.
    """

    format: ScaleFormat
    rows: int
    columns: int | None
    flat: bool = False

    @property
    def elements(self) -> int | None:
        """Elements under one scale; null for the whole tensor."""
        return None if self.columns is None else self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Format:
    """A number format as it is defined, without the scales of block formats except in `bytes_per_parameter`."""

    name: str
    title: str
    kind: Kind
    layout: Layout
    used_for: str
    native: tuple[NativeUnits, ...]
    sources: tuple[Source, ...]
    element: str = ""
    """Name of the element's own format; its own name where it has no scales."""
    scales: tuple[Scale, ...] = ()
    storage_bits: int = 0
    """Bits that one element takes in memory."""

    @property
    def bytes_per_parameter(self) -> Fraction:
        """Of a large tensor: elements and the scales that they share; what a tensor has once does not count."""
        shared = sum(
            (Fraction(SCALE_BITS[scale.format], scale.elements) for scale in self.scales if scale.elements is not None),
            Fraction(0),
        )
        return (self.storage_bits + shared) / 8

    @property
    def bytes_per_tensor(self) -> int:
        """What every tensor has once, whatever its size."""
        return sum(SCALE_BITS[scale.format] // 8 for scale in self.scales if scale.elements is None)
