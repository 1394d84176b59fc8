"""Values into the codes of an element's layout and back: bit exact, vectorised.

ml_dtypes and NumPy round; two things are ours. A float64 is first brought to float32 by rounding to odd, because
ml_dtypes would round it twice (Boldo and Melquiond 2008, https://doi.org/10.1109/TC.2007.70819: two bits more than the
target has are enough). And overflow follows the format's own rule, or saturates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from app.precision.layouts import CodebookLayout, FixedPointLayout, FloatLayout, IntegerLayout, Layout, Specials

Values = NDArray[np.float64]
Codes = NDArray[np.uint64]
Mask = NDArray[np.bool_]

_TYPES: Mapping[tuple[int, int, Specials], Any] = MappingProxyType(
    {
        (11, 52, "ieee"): np.float64,
        (8, 23, "ieee"): np.float32,
        (5, 10, "ieee"): np.float16,
        (8, 7, "ieee"): ml_dtypes.bfloat16,
        (4, 3, "nan-only"): ml_dtypes.float8_e4m3fn,
        (5, 2, "ieee"): ml_dtypes.float8_e5m2,
        (4, 3, "unsigned-zero"): ml_dtypes.float8_e4m3fnuz,
        (5, 2, "unsigned-zero"): ml_dtypes.float8_e5m2fnuz,
        (2, 3, "finite"): ml_dtypes.float6_e2m3fn,
        (3, 2, "finite"): ml_dtypes.float6_e3m2fn,
        (2, 1, "finite"): ml_dtypes.float4_e2m1fn,
    }
)
"""The NumPy type of a float layout, by exponent bits, mantissa bits and what its special codes are."""

_TF32_DROPPED_BITS = 13
"""TF32 is FP32 without so many bits of its mantissa; no library has it as a type."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """What values became. All arrays have the shape of the values."""

    codes: Codes
    """Bit patterns, in the low bits; 0 for a NaN that the format has no code for."""
    values: Values
    """What the codes mean. NaN where NaN came in, whether there is a code for it or not."""
    overflowed: Mask
    """Where a number, or an infinity that the format lacks, was beyond the largest number after rounding."""


def round_to(layout: Layout, values: Values, *, saturate: bool = False, draws: Values | None = None) -> Rounded:
    """Round values to the nearest number of the layout, ties to even.

    With `draws`, uniform in [0, 1), up or down at random instead, in proportion to how near each neighbour is
    (stochastic rounding). `saturate` makes the largest number of what overflows, infinities too; integers, fixed-point
    numbers and finite formats always do.
    """
    if isinstance(layout, FloatLayout):
        return _round_to_float(layout, values, saturate=saturate, draws=draws)
    if isinstance(layout, CodebookLayout):
        return _round_to_codebook(layout, values)
    return round_to_whole(layout, values, draws)


def decode(layout: Layout, codes: Codes) -> Values:
    """What bit patterns mean. Exact."""
    if isinstance(layout, CodebookLayout):
        return _wide(np.take(np.array(layout.values), codes.astype(np.int64)))
    if isinstance(layout, FloatLayout):
        kind = _type_of(layout)
        if layout.bits <= 8:
            return np.take(_table_of(layout), codes.view(np.int64))
        if kind is None:
            return _wide((codes << np.uint64(_TF32_DROPPED_BITS)).astype(np.uint32).view(np.float32))
        return _wide(codes.astype(_unsigned(kind)).view(kind))
    whole = codes.astype(np.int64)
    if layout.sign_bits:
        whole = np.where(whole >> (layout.bits - 1), whole - (1 << layout.bits), whole)
    return whole.astype(np.float64) * (layout.step if isinstance(layout, FixedPointLayout) else 1.0)


@cache
def _table_of(layout: FloatLayout) -> Values:
    """What every code of a narrow format means: to look it up is quicker than to convert."""
    return _wide(np.arange(2**layout.bits, dtype=np.uint8).view(_type_of(layout)))


def _wide(numbers: NDArray[Any]) -> Values:
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        wide: Values = numbers.astype(np.float64)
    return wide


def units_in_the_last_place(layout: FloatLayout, values: Values) -> Values:
    """From a number of the size of each value to the next; beyond the largest number, as far as below it."""
    _, exponents = np.frexp(np.where(np.isfinite(values), values, 0.0))
    exponents = np.where(values == 0, layout.smallest_exponent, exponents - 1)
    bounded = np.clip(exponents, layout.smallest_exponent, layout.largest_exponent)
    found: Values = np.ldexp(np.ones_like(values), bounded - layout.mantissa_bits)
    return found


def to_odd(values: Values, inexact: Mask, beyond: Mask) -> Values:
    """Numbers rounded to odd, for those of which it is known that they were rounded (`inexact`), and away from zero
    (`beyond`): the last bit then says that something was left, and the next rounding is as good as the first.
    """
    bits = values.view(np.uint64)
    toward_zero = np.where(beyond, bits - np.uint64(1), bits)
    return np.where(inexact, toward_zero | np.uint64(1), bits).view(np.float64)


def _round_to_float(layout: FloatLayout, values: Values, *, saturate: bool, draws: Values | None) -> Rounded:
    if draws is not None:
        values = _drawn(layout, values, draws)
    finite = np.isfinite(values)
    overflowed = _is_beyond(layout, np.abs(values)) & finite
    if not layout.has_infinity:
        overflowed |= np.isinf(values)
    clipped = values
    if saturate or layout.specials == "finite":
        clipped = np.clip(values, -layout.largest, layout.largest)
        overflowed |= np.isinf(values)
    kind = _type_of(layout)
    if kind is None:
        codes = _tf32_codes(_float32_to_odd(clipped))
    else:
        narrow = clipped if kind in (np.float64, np.float32) else _float32_to_odd(clipped)
        with np.errstate(over="ignore", invalid="ignore"):
            codes = narrow.astype(kind).view(_unsigned(kind)).astype(np.uint64)
    if not layout.has_nan:
        codes[np.isnan(values)] = 0
    rounded = decode(layout, codes)
    if not layout.has_nan:
        rounded[np.isnan(values)] = np.nan
    return Rounded(codes, rounded, overflowed)


def _is_beyond(layout: FloatLayout, magnitudes: Values) -> Mask:
    """Whether rounding, with no bound on the exponent, gives more than the largest number."""
    if layout.largest == np.finfo(np.float64).max:
        return np.zeros(magnitudes.shape, np.bool_)
    ulp = 2.0 ** (layout.largest_exponent - layout.mantissa_bits)
    with np.errstate(over="ignore", invalid="ignore"):  # invalid: a signalling NaN
        beyond: Mask = np.rint(magnitudes / ulp) * ulp > layout.largest
    return beyond


def _drawn(layout: FloatLayout, values: Values, draws: Values) -> Values:
    ulp = units_in_the_last_place(layout, values)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows here is far beyond the largest number
        return np.where(np.isfinite(values), np.floor(values / ulp + draws) * ulp, values)


def _float32_to_odd(values: Values) -> NDArray[np.float32]:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        nearest = values.astype(np.float32)
    with np.errstate(invalid="ignore"):
        wide = nearest.astype(np.float64)
        inexact = (wide != values) & ~np.isnan(values)
        beyond = inexact & (np.abs(wide) > np.abs(values))
    if not inexact.any():
        return nearest
    bits = nearest.view(np.uint32) - beyond.astype(np.uint32)
    odd: NDArray[np.float32] = (bits | inexact.astype(np.uint32)).view(np.float32)
    return odd


def _tf32_codes(values: NDArray[np.float32]) -> Codes:
    bits = values.view(np.uint32).astype(np.uint64)
    dropped = np.uint64(_TF32_DROPPED_BITS)
    half = np.uint64((1 << (_TF32_DROPPED_BITS - 1)) - 1)
    nearest = (bits + half + ((bits >> dropped) & np.uint64(1))) >> dropped
    quiet = (bits >> dropped) | np.uint64(1 << 9)
    return np.where(np.isnan(values), quiet, nearest)


def round_to_whole(
    layout: IntegerLayout | FixedPointLayout,
    values: Values,
    draws: Values | None = None,
    *,
    zero_points: Values | float = 0.0,
    symmetric: bool = False,
) -> Rounded:
    """Round to whole multiples of a step, with `zero_points` as the code of zero. Never beyond the layout's numbers;
    with `symmetric`, no further below the zero point than above it.
    """
    step = layout.step if isinstance(layout, FixedPointLayout) else 1.0
    largest = layout.largest / step
    smallest = -largest if isinstance(layout, FixedPointLayout) else float(layout.smallest)
    if symmetric and isinstance(layout, IntegerLayout):
        smallest = layout.smallest + 1.0
    with np.errstate(invalid="ignore"):
        whole = (np.rint(values / step) if draws is None else np.floor(values / step + draws)) + zero_points
        overflowed = (whole > largest) | (whole < smallest)
    missing = np.isnan(values)
    inside = np.where(missing, 0.0, np.clip(whole, smallest, largest))
    codes = (inside.astype(np.int64) & ((1 << layout.bits) - 1)).astype(np.uint64)
    return Rounded(codes, np.where(missing, np.nan, (inside - zero_points) * step + 0.0), overflowed)


def _round_to_codebook(layout: CodebookLayout, values: Values) -> Rounded:
    """To the nearest entry; halfway, to the lower one, as bitsandbytes' thresholds do."""
    table = np.array(layout.values)
    codes = np.searchsorted((table[1:] + table[:-1]) / 2, values).astype(np.uint64)
    missing = np.isnan(values)
    codes[missing] = 0
    found = table[codes.astype(np.int64)]
    found[missing] = np.nan
    with np.errstate(invalid="ignore"):
        return Rounded(codes, found, np.isinf(values))


def _type_of(layout: FloatLayout) -> Any:
    return _TYPES.get((layout.exponent_bits, layout.mantissa_bits, layout.specials))


def _unsigned(kind: Any) -> Any:
    return {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[np.dtype(kind).itemsize]
