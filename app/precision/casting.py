"""Arrays of numbers from one floating-point format into another, and what that costs them. Pure; one block at a time.

Formats and rounding are those of NumPy and `ml_dtypes`: to nearest, ties to even. Two schemes have scales beside them,
and both read back as `value = stored * scale`: FP8 with one scale a tensor, and int8 with one a channel.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""Numbers of any format, one dimension."""

FORMATS = MappingProxyType(
    {
        "fp32": np.dtype(np.float32),
        "fp16": np.dtype(np.float16),
        "bf16": np.dtype(ml_dtypes.bfloat16),
        "fp8_e4m3": np.dtype(ml_dtypes.float8_e4m3fn),
        "fp8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
        "int8": np.dtype(np.int8),
    }
)
"""What values can be converted into. Both FP8 formats are those of the OCP specification: E4M3 has no infinities."""

_ROW = 4096
"""Squares are summed in rows of this many in their own format, and rows in FP64: as exact as anybody reads, and six
times as fast as FP64 throughout."""

_SAFE_SQUARES = (1e-25, 1e37)
"""Between these the sum of a row of FP32 squares has neither lost nor overflown anything that counts."""


def largest_number(dtype: np.dtype[Any]) -> float:
    """The largest finite number of a format. For int8 it is 127: the range is used symmetrically, without −128."""
    return 127.0 if dtype == np.int8 else float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Losses:
    """What a conversion did to some numbers. Sums add up over blocks; `+` joins two blocks.

    Errors are over elements that are finite before and after. `nan` and `inf` count the input; `overflowed` what was
    finite and no longer is; `saturated` what was clipped to the largest number; `underflowed` what became zero.
    """

    elements: int = 0
    nan: int = 0
    inf: int = 0
    overflowed: int = 0
    saturated: int = 0
    underflowed: int = 0
    max_abs_error: float = 0.0
    max_relative_error: float = 0.0
    sum_squared_error: float = 0.0
    sum_squares: float = 0.0

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(
            self.elements + other.elements,
            self.nan + other.nan,
            self.inf + other.inf,
            self.overflowed + other.overflowed,
            self.saturated + other.saturated,
            self.underflowed + other.underflowed,
            max(self.max_abs_error, other.max_abs_error),
            max(self.max_relative_error, other.max_relative_error),
            self.sum_squared_error + other.sum_squared_error,
            self.sum_squares + other.sum_squares,
        )


def widened(values: Array) -> Array:
    """`values` in the format that they are worked with: FP64 stays, all others are exact in FP32."""
    if values.dtype in (np.float64, np.float32):
        return values
    with np.errstate(invalid="ignore"):  # signalling NaN
        if values.dtype.itemsize == 1:
            return _byte_table(values.dtype)[values.view(np.uint8)]
        return values.astype(np.float32)


def scaled_back(values: Array, scales: Array) -> Array:
    """The numbers that stored `values` stand for: each times its scale, FP32."""
    with np.errstate(all="ignore"):
        back: Array = widened(values) * scales
        return back


def _byte_table(dtype: np.dtype[Any]) -> Array:
    """The number behind each byte of an eight-bit format, FP32: three times as fast as its own conversion."""
    if dtype not in _BYTE_TABLES:
        _BYTE_TABLES[dtype] = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    return _BYTE_TABLES[dtype]


_BYTE_TABLES: dict[np.dtype[Any], Array] = {}


def largest_magnitudes(values: Array, row_starts: Array) -> tuple[Array, bool]:
    """The largest finite magnitude in each row of `values`, which begin at `row_starts` (the first at 0), FP32; and
    whether there is a NaN, which not every format has. Infinities say nothing about a scale.
    """
    magnitudes = np.abs(widened(values))
    found, has_nan = np.maximum.reduceat(magnitudes, row_starts), False
    if not np.isfinite(found).all():
        has_nan = bool(np.isnan(found).any())
        found = np.maximum.reduceat(np.where(np.isfinite(magnitudes), magnitudes, 0), row_starts)
    return np.minimum(found, np.finfo(np.float32).max).astype(np.float32), has_nan


def scales_for(largest: Array, dtype: np.dtype[Any]) -> Array:
    """The scales, FP32, that bring numbers of these largest magnitudes into `dtype`: magnitude / largest number.

    1 where there is nothing but zeros, and never below the smallest normal FP32 number.
    """
    scales = (largest / np.float32(largest_number(dtype))).astype(np.float32)
    return np.where(largest == 0, np.float32(1), np.maximum(scales, np.finfo(np.float32).smallest_normal))


def convert(
    values: Array, dtype: np.dtype[Any], *, scales: Array | None = None, saturate: bool = False
) -> tuple[Array, Losses]:
    """`values`, of any format, in `dtype`, and what they lost.

    `scales`: one for all or one for each element; stored is `values / scales`. `saturate`: what lies beyond the
    largest number, infinities included, becomes that number, as the OCP specification has it; otherwise it becomes
    infinite, or NaN in FP8 E4M3. int8 always saturates, and has no NaN: those must not come here.
    """
    with np.errstate(all="ignore"):
        wide = widened(values)
        scaled = wide if scales is None else wide / scales
        saturated = 0
        if dtype == np.int8:
            rounded = np.rint(scaled)
            saturated = int(np.count_nonzero(np.abs(rounded) > 127))
            stored = np.clip(rounded, -127, 127).astype(np.int8)
            back: Array = stored.astype(np.float32)
        else:
            # from the format they came in: by way of FP32 the numbers would be the same, but not the bits of NaN
            stored = (values if scales is None else scaled).astype(dtype)
            back = widened(stored)
            if saturate and not np.isfinite(back).all():
                beyond = ~np.isfinite(back) & ~np.isnan(scaled)
                back = np.where(beyond, np.copysign(np.float32(largest_number(dtype)), scaled), back)
                stored[beyond] = back[beyond].astype(dtype)
                saturated = int(np.count_nonzero(beyond))
        if scales is not None:
            back = back * scales
        losses = compare(wide, back)
    return stored, losses if saturated == 0 else losses + Losses(saturated=saturated)


def compare(before: Array, after: Array) -> Losses:
    """What lies between numbers and what became of them, both FP32 or FP64."""
    if before.size == 0:
        return Losses()
    with np.errstate(all="ignore"):
        losses = _compare_finite(before, after)
        if np.isfinite(losses.max_abs_error) and np.isfinite(losses.sum_squared_error):
            return losses
        # some number is not finite, or an error is beyond FP32
        finite_before, finite_after = np.isfinite(before), np.isfinite(after)
        both = finite_before & finite_after
        counted = Losses(
            elements=before.size - int(np.count_nonzero(both)),
            nan=int(np.count_nonzero(np.isnan(before))),
            inf=int(np.count_nonzero(np.isinf(before))),
            overflowed=int(np.count_nonzero(finite_before & ~finite_after)),
        )
        if not both.any():
            return counted
        return counted + _compare_finite(before[both].astype(np.float64), after[both].astype(np.float64))


def _compare_finite(before: Array, after: Array) -> Losses:
    """`compare` for numbers that are all finite; if one is not, some error in the answer is not."""
    error = before - after
    highest = _highest_magnitude(error)
    if highest == 0 and not np.isnan(error).any():
        return Losses(elements=before.size, sum_squares=_sum_of_squares(before))
    sum_squared_error = _sum_of_squares(error)
    worst = _highest_magnitude(np.divide(error, before, out=error))  # in place: one array less to keep in the cache
    return Losses(
        elements=before.size,
        # a relative error is 1 wherever something became zero, so that most blocks need not be searched for it
        underflowed=int(np.count_nonzero((after == 0) & (before != 0))) if worst >= 1 else 0,
        max_abs_error=highest,
        max_relative_error=worst,
        sum_squared_error=sum_squared_error,
        sum_squares=_sum_of_squares(before),
    )


def _highest_magnitude(values: Array) -> float:
    """Of all but NaN, such as that of 0 / 0; three times as fast as a maximum that has to look for NaN."""
    return max(float(np.fmax.reduce(values)), -float(np.fmin.reduce(values)))


def _sum_of_squares(values: Array) -> float:
    if values.dtype == np.float64:
        return float(np.einsum("i,i->", values, values))
    whole = values.size - values.size % _ROW
    total = 0.0
    for rows in (values[:whole].reshape(-1, _ROW), values[whole:].reshape(1, -1)):
        sums = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
        unsafe = (sums < _SAFE_SQUARES[0]) | (sums > _SAFE_SQUARES[1])
        if unsafe.any():
            exact = rows[unsafe].astype(np.float64)
            sums[unsafe] = np.einsum("ij,ij->i", exact, exact)
        total += float(sums.sum())
    return total
