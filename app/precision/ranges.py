"""How far a scale reaches: to the largest magnitude, to a percentile, or as far as makes the squared error least.

Ranges are found for many tiles at once, one tile a row; or for a whole tensor, portion by portion, by accumulators that
keep a few numbers however many elements they see. NaN and infinities are left out of every range.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

import numpy as np
from numpy.typing import NDArray

from app.precision.rounding import Values
from app.precision.scheme import Scheme

RATIOS: Values = 0.95 ** np.arange(48.0)
"""Parts of the whole range that `mse` tries."""

DEFAULT_PERCENTILE = 99.9

_DIGIT_BITS = 16
_DIGITS = 64 // _DIGIT_BITS
_SIGN = np.uint64(1 << 63)

Quantized = Callable[[Values, "Range"], Values]
"""What values become when they are quantized in a range: for `mse`."""


@dataclass(frozen=True, slots=True)
class Range:
    """The lowest and the highest number that a scale reaches; one of each for every tile, as a column."""

    low: Values
    high: Values

    def times(self, ratio: float) -> "Range":
        """A part of the range."""
        return Range(self.low * ratio, self.high * ratio)


def range_of_tiles(tiles: Values, scheme: Scheme, quantized: Quantized) -> Range:
    """The range of each row of `tiles`."""
    finite = np.where(np.isfinite(tiles), tiles, 0.0)
    if scheme.calibration == "percentile":
        return _percentiles(tiles, scheme)
    whole = _widest(finite, scheme)
    if scheme.calibration == "max":
        return whole
    errors = np.stack([_squared_error(finite, quantized(finite, whole.times(ratio))) for ratio in RATIOS])
    best = RATIOS[errors.argmin(axis=0)][:, None]
    return Range(whole.low * best, whole.high * best)


def range_of_tensor(portions: Callable[[], Iterable[Values]], scheme: Scheme, quantized: Quantized) -> Range:
    """The one range of a tensor, whose portions are gone through as often as the calibration needs."""
    if scheme.calibration == "percentile":
        percentile = _percentile(scheme)
        if scheme.kind == "symmetric":
            high = select(lambda: (np.abs(portion) for portion in portions()), percentile)
            return Range(np.array([[-high]]), np.array([[high]]))
        low, high = (select(portions, share) for share in (100 - percentile, percentile))
        return Range(np.array([[min(low, 0.0)]]), np.array([[max(high, 0.0)]]))
    whole = Range(np.zeros((1, 1)), np.zeros((1, 1)))
    for portion in portions():
        found = _widest(np.where(np.isfinite(portion), portion, 0.0).reshape(1, -1), scheme)
        whole = Range(np.minimum(whole.low, found.low), np.maximum(whole.high, found.high))
    if scheme.calibration == "max":
        return whole
    errors = np.zeros(len(RATIOS))
    for portion in portions():
        row = np.where(np.isfinite(portion), portion, 0.0).reshape(1, -1)
        errors += [float(_squared_error(row, quantized(row, whole.times(ratio)))[0]) for ratio in RATIOS]
    return whole.times(float(RATIOS[errors.argmin()]))


def select(portions: Callable[[], Iterable[Values]], percentile: Fraction) -> float:
    """The smallest finite value that at least `percentile` percent of the finite values do not exceed; 0 for none.

    Exact, in four passes and constant memory: each pass counts 16 more bits of the values that are still candidates.
    """
    search = _Search(percentile)
    for _ in range(_DIGITS):
        for portion in portions():
            search.count(portion)
        search.narrow()
    return search.value


@dataclass(slots=True)
class _Search:
    """A search for one order statistic by the leading bits of float64 keys that sort as the numbers do."""

    percentile: Fraction
    prefix: int = 0
    digits_known: int = 0
    rank: int | None = None
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1 << _DIGIT_BITS, np.int64))

    def count(self, portion: Values) -> None:
        bits = (portion[np.isfinite(portion)] + 0.0).view(np.uint64)
        keys = np.where(bits & _SIGN, ~bits, bits | _SIGN)
        left = 64 - self.digits_known * _DIGIT_BITS
        if self.digits_known:
            keys = keys[keys >> np.uint64(left) == np.uint64(self.prefix)]
        digits = (keys >> np.uint64(left - _DIGIT_BITS)) & np.uint64((1 << _DIGIT_BITS) - 1)
        self.counts += np.bincount(digits.astype(np.int64), minlength=1 << _DIGIT_BITS)

    def narrow(self) -> None:
        total = int(self.counts.sum())
        if self.rank is None:
            self.rank = _rank(self.percentile, total)
        reached = np.cumsum(self.counts)
        digit = int(np.searchsorted(reached, self.rank)) if total else 0
        self.rank -= int(reached[digit - 1]) if digit else 0
        self.prefix = self.prefix << _DIGIT_BITS | digit
        self.digits_known += 1
        self.counts[:] = 0

    @property
    def value(self) -> float:
        if not self.prefix:
            return 0.0
        key = np.array([self.prefix], np.uint64)
        return float(np.where(key & _SIGN, key & ~_SIGN, ~key).view(np.float64)[0])


def _widest(finite: Values, scheme: Scheme) -> Range:
    if scheme.kind == "symmetric":
        high = np.abs(finite).max(axis=1, keepdims=True)
        return Range(-high, high)
    low, high = finite.min(axis=1, keepdims=True), finite.max(axis=1, keepdims=True)
    return Range(np.minimum(low, 0.0), np.maximum(high, 0.0))


def _percentiles(tiles: Values, scheme: Scheme) -> Range:
    percentile = _percentile(scheme)
    if scheme.kind == "symmetric":
        high = _select_of_tiles(np.abs(tiles), percentile)
        return Range(-high, high)
    low, high = (_select_of_tiles(tiles, share) for share in (100 - percentile, percentile))
    return Range(np.minimum(low, 0.0), np.maximum(high, 0.0))


def _select_of_tiles(tiles: Values, percentile: Fraction) -> Values:
    """`select` for each row."""
    if np.isfinite(tiles).all():
        at = _rank(percentile, tiles.shape[1]) - 1
        chosen: Values = np.partition(tiles, at, axis=1)[:, at : at + 1]
        return chosen
    rows = [row[np.isfinite(row)] for row in tiles]
    return np.array([[_select_of_tiles(row[None, :], percentile)[0, 0] if row.size else 0.0] for row in rows])


def _percentile(scheme: Scheme) -> Fraction:
    """The decimal that was asked for: of 1000 values 99.9 % are 999, which float64 makes 999.0000000000001."""
    return Fraction(repr(DEFAULT_PERCENTILE if scheme.percentile is None else scheme.percentile))


def _rank(percentile: Fraction, count: int) -> int:
    """How many of `count` values, in ascending order, are at least so many percent of them; one at least."""
    return max(ceil(percentile * count / 100), 1)


def _squared_error(values: Values, stored: Values) -> Values:
    """Infinite where float64 does not reach: then no range is better than another, and the whole one is taken."""
    with np.errstate(over="ignore"):
        error: Values = np.square(values - stored).sum(axis=1)
    return error
