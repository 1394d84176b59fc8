"""A training budget in GPU-hours, petaFLOP/s-days or dollars as floating-point operations, which the laws speak of."""

from dataclasses import dataclass
from typing import Literal

from app.errors import InvalidInput
from app.planning.scaling_laws import PETAFLOP_S_DAY_FLOPS
from app.planning.sources import TRAINING_FLOPS
from app.planning.specs import Gpu
from app.sources import Source

BudgetKind = Literal["flops", "petaflop_s_days", "gpu_hours", "cost_usd"]

SMALLEST_FLOPS, LARGEST_FLOPS = 1e12, 1e32
"""Budgets that a law can be asked about at all; far beyond both ends of anything trained."""

SIX_ND_OF_MODEL = "6 * active_parameters * tokens"


@dataclass(frozen=True, slots=True)
class BudgetInputs:
    """A budget as it was given. `amount` is in the unit of `kind`, None for what training `model` takes."""

    kind: BudgetKind | None = None
    amount: float | None = None
    gpu: Gpu | None = None
    format: str | None = None
    """Number format whose dense peak `mfu` is a share of."""
    mfu: float | None = None
    achieved_flops_per_second: float | None = None
    """Model operations per second that one GPU gets done, instead of `mfu`."""
    price_per_gpu_hour_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget in every unit that is known; `formula` gives `flops`."""

    flops: float
    petaflop_s_days: float
    gpu_hours: float | None
    cost_usd: float | None
    achieved_flops_per_second: float | None
    """Model operations per second and GPU that the conversion assumes."""
    formula: str
    source: Source


def budget_of(given: BudgetInputs, own_flops: float | None, assumptions: list[str]) -> Budget:
    """The budget in operations; without one, those that training the model takes (`own_flops`). What was decided to
    read it is added to `assumptions`. Raises InvalidInput for a missing or contradictory way to convert it.
    """
    rate = _rate(given, assumptions)
    price = given.price_per_gpu_hour_usd
    if given.kind in ("gpu_hours", "cost_usd") and rate is None:
        raise InvalidInput.at(
            f"/{given.kind}",
            f"{given.kind} needs the operations that a GPU gets done: send gpu and mfu (0.3 to 0.5 is usual), or "
            "achieved_flops_per_second",
        )
    if given.kind == "cost_usd" and price is None:
        raise InvalidInput.at("/cost_usd", "cost_usd needs price_per_gpu_hour_usd")
    if price is not None and rate is None:
        raise InvalidInput.at(
            "/price_per_gpu_hour_usd", "a price needs gpu and mfu, or achieved_flops_per_second, to become operations"
        )
    flops, formula = _flops(given, own_flops, rate or 0.0, price or 1.0)
    if not SMALLEST_FLOPS <= flops <= LARGEST_FLOPS:
        raise InvalidInput.at(
            f"/{given.kind or 'model'}",
            f"this budget is {flops:.3g} floating-point operations; the laws are asked from {SMALLEST_FLOPS:.0e} to "
            f"{LARGEST_FLOPS:.0e}",
        )
    hours = None if rate is None else flops / (rate * 3600)
    cost = None if hours is None or price is None else hours * price
    sent = {given.kind: given.amount}  # said again to the last digit, which flops and back would not give
    return Budget(
        flops=flops,
        petaflop_s_days=sent.get("petaflop_s_days") or flops / PETAFLOP_S_DAY_FLOPS,
        gpu_hours=sent.get("gpu_hours") or hours,
        cost_usd=sent.get("cost_usd") or cost,
        achieved_flops_per_second=rate,
        formula=formula,
        source=TRAINING_FLOPS,
    )


def _rate(given: BudgetInputs, assumptions: list[str]) -> float | None:
    """Operations per second that one GPU gets done; None where nothing says so."""
    if given.mfu is not None and given.achieved_flops_per_second is not None:
        raise InvalidInput.at(
            "/mfu", "send either mfu or achieved_flops_per_second, not both: one follows from the other"
        )
    if given.gpu is None:
        for name in ("mfu", "format"):
            if getattr(given, name) is not None:
                raise InvalidInput.at(f"/{name}", f"{name} needs gpu, the card whose peak rate it speaks of")
        return given.achieved_flops_per_second
    peaks = given.gpu.dense_flops_per_second
    format = given.format or "bf16"
    if format not in peaks:
        raise InvalidInput.at(
            "/format" if given.format else "/gpu",
            f"{given.gpu.key} has no dense peak rate for {format}; send `format` as one of: {', '.join(peaks)}",
        )
    if given.mfu is None and given.achieved_flops_per_second is None:
        raise InvalidInput.at("/gpu", "a gpu needs mfu (0.3 to 0.5 is usual), or achieved_flops_per_second")
    if given.format is None:
        assumptions.append("format: bf16")
    if given.mfu is not None:
        return given.mfu * peaks[format]
    achieved = given.achieved_flops_per_second
    if achieved is not None and achieved > peaks[format]:
        raise InvalidInput.at(
            "/achieved_flops_per_second",
            f"{achieved:.4g} per second is more than the dense {format} peak of {given.gpu.key}, {peaks[format]:.4g}; "
            "send what one GPU gets done",
        )
    return achieved


def _flops(given: BudgetInputs, own_flops: float | None, rate: float, price: float) -> tuple[float, str]:
    if given.kind is None or given.amount is None:
        if own_flops is None:
            raise InvalidInput.at(
                "", "send exactly one of flops, petaflop_s_days, gpu_hours and cost_usd; or a model and its tokens"
            )
        return own_flops, SIX_ND_OF_MODEL
    flops, formula = {
        "flops": (1.0, "flops"),
        "petaflop_s_days": (PETAFLOP_S_DAY_FLOPS, f"petaflop_s_days * {PETAFLOP_S_DAY_FLOPS:g}"),
        "gpu_hours": (3600 * rate, "gpu_hours * 3600 * achieved_flops_per_second"),
        "cost_usd": (3600 * rate / price, "cost_usd / price_per_gpu_hour_usd * 3600 * achieved_flops_per_second"),
    }[given.kind]
    return given.amount * flops, formula
