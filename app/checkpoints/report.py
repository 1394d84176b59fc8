"""What a conversion did to each tensor, as numbers for a report."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from app.checkpoints.plan import Step
from app.precision.casting import Losses


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor before and after. `losses` is None where its bytes were copied."""

    name: str
    shard: str
    shape: tuple[int, ...]
    dtype_before: str
    dtype_after: str
    what: str
    scale_name: str | None
    bytes_before: int
    losses: Losses | None

    @classmethod
    def of(cls, step: Step, losses: Losses | None) -> "TensorReport":
        """The report of a step that was done."""
        tensor = step.tensor
        return cls(
            tensor.name,
            step.shard.name,
            tensor.shape,
            tensor.dtype,
            step.dtype,
            step.why,
            step.scale_name,
            tensor.bytes,
            losses,
        )

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "TensorReport":
        """What `kept` wrote."""
        losses = None if given["losses"] is None else Losses(**given["losses"])
        return cls(**{**given, "shape": tuple(given["shape"]), "losses": losses})

    def kept(self) -> dict[str, Any]:
        """All of it, to be read again by a later run."""
        return asdict(self)

    @property
    def mean_squared_error(self) -> float | None:
        """Over the elements that are finite before and after; None where there are none."""
        finite = self.finite_elements
        return self.losses.sum_squared_error / finite if self.losses and finite else None

    @property
    def finite_elements(self) -> int:
        """How many elements are finite before and after."""
        if self.losses is None:
            return 0
        apart = self.losses.nan + self.losses.inf + self.losses.overflowed
        return self.losses.elements - apart

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantisation noise in decibels; None where nothing was lost, or there is no signal."""
        losses = self.losses
        if losses is None or not 0 < losses.sum_squared_error < math.inf or not 0 < losses.sum_squares < math.inf:
            return None
        return 10 * (math.log10(losses.sum_squares) - math.log10(losses.sum_squared_error))

    def as_json(self) -> dict[str, Any]:
        """What the report says of this tensor. A number that cannot be told is null."""
        said: dict[str, Any] = {
            "name": self.name,
            "shard": self.shard,
            "shape": list(self.shape),
            "dtype_before": self.dtype_before,
            "dtype_after": self.dtype_after,
            "what": self.what,
            "scale_name": self.scale_name,
        }
        if self.losses is None:
            return said
        return said | {
            "elements": self.losses.elements,
            "max_abs_error": _finite(self.losses.max_abs_error),
            "max_relative_error": _finite(self.losses.max_relative_error),
            "mean_squared_error": _finite(self.mean_squared_error),
            "sqnr_db": _finite(self.sqnr_db),
            "overflowed": self.losses.overflowed,
            "saturated": self.losses.saturated,
            "underflowed": self.losses.underflowed,
            "nan": self.losses.nan,
            "inf": self.losses.inf,
        }


def total(reports: Iterable[TensorReport]) -> Losses:
    """What all tensors lost together."""
    return sum((report.losses for report in reports if report.losses is not None), Losses())


def worst(reports: Iterable[TensorReport], count: int) -> list[TensorReport]:
    """The tensors that lost most: those that overflowed, then by signal to noise."""
    lossy = [one for one in reports if one.losses is not None and (one.sqnr_db is not None or one.losses.overflowed)]
    return sorted(lossy, key=_loss)[:count]


def _loss(report: TensorReport) -> tuple[int, float]:
    overflowed = report.losses.overflowed if report.losses else 0
    return -overflowed, math.inf if report.sqnr_db is None else report.sqnr_db


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None
