"""What conversion did to a tensor, summed up over portions of any number: a few numbers, whatever the tensor's size."""

import math
from dataclasses import dataclass

import numpy as np

from app.precision.layouts import FloatLayout, Layout
from app.precision.rounding import Mask, Rounded, Values

_SUMS = (
    "values",
    "compared",
    "errors",
    "squared_errors",
    "signal",
    "overflows",
    "saturated",
    "underflows",
    "subnormals",
    "nans",
)


@dataclass(frozen=True, slots=True)
class ErrorSummary:
    """Errors of a conversion. They are taken over the values that are finite before and after; the others are counted.

    `sqnr_db` is null where nothing was lost, or nothing was there.
    """

    values: int
    max_absolute_error: float
    mean_absolute_error: float
    mean_squared_error: float
    sqnr_db: float | None
    """Signal to quantization noise: 10 · log10(Σ value² ÷ Σ error²)."""
    overflows: int
    """Values beyond the largest number, whatever became of them."""
    saturated_share: float
    """Share of the values that became the largest number because they were beyond it."""
    underflows: int
    """Values that were not 0 and became 0."""
    subnormals: int
    """Values that are subnormal in the target."""
    nans: int
    """Values that are NaN afterwards, or were NaN where the target has none."""


@dataclass(slots=True)
class ErrorTotals:
    """Adds up. Sums are float64, portion by portion."""

    values: int = 0
    compared: int = 0
    largest_error: float = 0.0
    errors: float = 0.0
    squared_errors: float = 0.0
    signal: float = 0.0
    overflows: int = 0
    saturated: int = 0
    underflows: int = 0
    subnormals: int = 0
    nans: int = 0

    def add(
        self, values: Values, stored: Values, rounded: Rounded, layout: Layout, *, errors: Values | None = None
    ) -> None:
        """Count in a portion: the values, what they became, and the elements that say it.

        `errors` are how far they are apart, where the values themselves are known better than float64 can say.
        """
        finite = np.isfinite(values) & np.isfinite(stored)
        if errors is not None:
            finite &= np.isfinite(errors)
        every = bool(finite.all())
        if errors is not None:
            error = errors[finite]
        else:
            error = np.abs(values - stored) if every else np.abs(values[finite] - stored[finite])
        signal = values if every else values[finite]
        self.values += values.size
        self.compared += error.size
        if error.size:
            self.largest_error = max(self.largest_error, float(error.max()))
            with np.errstate(over="ignore", under="ignore"):
                self.errors += float(error.sum())
                self.squared_errors += float(np.square(error).sum())
                self.signal += float(np.square(signal).sum())
        self.overflows += int(rounded.overflowed.sum())
        self.saturated += int((rounded.overflowed & np.isfinite(rounded.values)).sum())
        self.underflows += int(((stored == 0) & (values != 0)).sum())
        self.subnormals += int(is_subnormal(layout, rounded.values).sum())
        self.nans += int((np.isnan(stored) & ~rounded.overflowed).sum())

    def merge(self, other: "ErrorTotals") -> None:
        """Count in another tensor."""
        self.largest_error = max(self.largest_error, other.largest_error)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def summary(self) -> ErrorSummary:
        """The figures so far."""
        compared = max(self.compared, 1)
        measurable = self.squared_errors > 0 and self.signal > 0 and math.isfinite(self.squared_errors + self.signal)
        return ErrorSummary(
            values=self.values,
            max_absolute_error=self.largest_error,
            mean_absolute_error=_bounded(self.errors / compared),
            mean_squared_error=_bounded(self.squared_errors / compared),
            sqnr_db=10 * math.log10(self.signal / self.squared_errors) if measurable else None,
            overflows=self.overflows,
            saturated_share=self.saturated / max(self.values, 1),
            underflows=self.underflows,
            subnormals=self.subnormals,
            nans=self.nans,
        )


def is_subnormal(layout: Layout, values: Values) -> Mask:
    """Which elements are below the smallest normal number, and not 0."""
    if not isinstance(layout, FloatLayout):
        return np.zeros(values.shape, np.bool_)
    found: Mask = (values != 0) & (np.abs(values) < layout.smallest_normal)
    return found


def _bounded(figure: float) -> float:
    """JSON has no infinity: a sum of squares beyond float64 is the largest there is."""
    return min(figure, float(np.finfo(np.float64).max))
