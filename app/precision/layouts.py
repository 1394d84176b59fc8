"""How the bits of an element are read: as a float, as an integer, or as an index into a codebook.

All limits follow from the layout and are exact in float64, which holds every format described here.
"""

from dataclasses import dataclass
from typing import Literal

Specials = Literal["ieee", "nan-only", "unsigned-zero", "finite"]
"""What a float format gives codes away for.

`ieee`: the largest exponent means infinity (mantissa 0) and NaN. `nan-only` (OCP E4M3): all ones are NaN, there is no
infinity. `unsigned-zero` (FNUZ): the code of -0 is the one NaN, there is no infinity. `finite`: every code is a number.
"""


@dataclass(frozen=True, slots=True)
class FloatLayout:
    """A sign, an exponent and a mantissa: (-1)^s · 2^(e - bias) · 1.m, and 2^(1 - bias) · 0.m where e is 0."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    specials: Specials

    @property
    def sign_bits(self) -> int:
        """One: every float format here is signed."""
        return 1

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the smallest normal number and of all subnormal ones."""
        return 1 - self.bias

    @property
    def largest_exponent(self) -> int:
        """Exponent of the largest number."""
        all_ones = (1 << self.exponent_bits) - 1
        return all_ones - self.bias - (1 if self.specials == "ieee" else 0)

    @property
    def largest(self) -> float:
        """The largest finite number."""
        ulps = (2 << self.mantissa_bits) - (2 if self.specials == "nan-only" else 1)
        return float(ulps) * 2.0 ** (self.largest_exponent - self.mantissa_bits)

    @property
    def smallest_normal(self) -> float:
        """The smallest positive number with all bits of its mantissa."""
        return 2.0**self.smallest_exponent

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive number."""
        return 2.0 ** (self.smallest_exponent - self.mantissa_bits)

    @property
    def epsilon(self) -> float:
        """From 1 to the next number."""
        return 2.0**-self.mantissa_bits

    @property
    def has_infinity(self) -> bool:
        """Whether infinity has a code."""
        return self.specials == "ieee"

    @property
    def has_nan(self) -> bool:
        """Whether NaN has a code."""
        return self.specials != "finite"

    @property
    def has_negative_zero(self) -> bool:
        """Whether -0 has a code of its own."""
        return self.specials != "unsigned-zero"


@dataclass(frozen=True, slots=True)
class IntegerLayout:
    """A whole number, in two's complement when signed."""

    bits: int
    signed: bool

    @property
    def sign_bits(self) -> int:
        """One when signed."""
        return int(self.signed)

    @property
    def smallest(self) -> int:
        """The smallest number."""
        return -(1 << self.bits - 1) if self.signed else 0

    @property
    def largest(self) -> int:
        """The largest number."""
        return (1 << self.bits - self.sign_bits) - 1


@dataclass(frozen=True, slots=True)
class FixedPointLayout:
    """An integer in two's complement, read as a multiple of 2^-fraction_bits: the element of MXINT8."""

    bits: int
    fraction_bits: int

    @property
    def sign_bits(self) -> int:
        """One: it is signed."""
        return 1

    @property
    def step(self) -> float:
        """From one number to the next."""
        return 2.0**-self.fraction_bits

    @property
    def largest(self) -> float:
        """The largest number; -2 itself is left unused, so that values are symmetric."""
        return ((1 << self.bits - 1) - 1) * self.step


@dataclass(frozen=True, slots=True)
class CodebookLayout:
    """An index into a table of values, ascending."""

    values: tuple[float, ...]

    @property
    def bits(self) -> int:
        """Bits of an index."""
        return (len(self.values) - 1).bit_length()

    @property
    def sign_bits(self) -> int:
        """None: the sign belongs to the table's values."""
        return 0

    @property
    def largest(self) -> float:
        """The largest value of the table."""
        return self.values[-1]


Layout = FloatLayout | IntegerLayout | FixedPointLayout | CodebookLayout

NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""Quantiles of a normal distribution, scaled to [-1, 1] (QLoRA, appendix E); the values bitsandbytes has."""
