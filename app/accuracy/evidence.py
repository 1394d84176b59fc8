"""Which features of a request runs and traced steps hold, and how well the upper bound held there.

`app.planning.covered` is written from it by `make accuracy`; docs/accuracy.md shows it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from app.accuracy.grades import grade_of, percentile
from app.accuracy.scoring import Outcome, features_of
from app.planning.coverage import (
    CHANGES,
    LEAST_HELD_OPEN_PERCENT,
    LEAST_HELD_PERCENT,
    LEAST_RUNS,
    Covered,
    Evidence,
    field_of,
)

PEAKS = frozenset({"allocated", "reserved", "nvidia-smi", "unspecified"})
"""Kinds of readings that are of a whole step's peak."""

Spread = Literal["activations", "states"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: the runs and traced steps that hold it, and how far estimates of these runs are off."""

    feature: str
    runs: int
    """Published configurations with a reading of the peak, of sources graded A or B."""
    traced: int
    judged: int
    """Of both, those by which the bound is judged: the fully stated ones, or all where these are fewer than three."""
    held: int
    """Of these, those whose readings the bound covers, were every feature covered."""
    median_error: float
    """Median over the judged ones of the absolute error of the reading that is most off."""
    short_percent: int
    """What the bound lacked for 95 of 100 of them, in percent of the expected allocation, where it held too seldom."""

    @property
    def evidence(self) -> Evidence:
        """What planning keeps of it."""
        return Evidence(self.runs, self.traced, self.judged, self.held, self.short_percent)


@dataclass(frozen=True, slots=True)
class _Run:
    """A configuration with all its readings, or a traced step."""

    features: frozenset[str]
    is_traced: bool
    is_stated: bool
    error: float
    """Of the reading that is most off."""
    lacking: float
    """What the most of its readings is beyond the bound, as a part of the expected allocation; negative within."""
    bias: Mapping[Spread, float]
    """What it is beyond the estimate, as a part of what features decide about."""


@dataclass(frozen=True, slots=True)
class Covering:
    """What some outcomes cover."""

    features: tuple[Feature, ...]
    spread: Mapping[Spread, float]
    """Of the errors of such features as decide about one thing or the other; `app.accuracy.table` says how."""

    @property
    def evidence(self) -> Covered:
        """What planning keeps of it."""
        return {line.feature: line.evidence for line in self.features}


def gather(outcomes: Iterable[Outcome]) -> Covering:
    """Every feature that a run or a traced step holds; the bounds must be those of `scoring.score`."""
    runs = _runs(outcomes)
    return Covering(_lines(runs), _spread([run for run in _stated(runs) if not run.is_traced]))


def _lines(runs: Sequence[_Run]) -> tuple[Feature, ...]:
    short = _short(runs)
    found = []
    for feature in _named(runs):
        holding = [run for run in runs if feature in run.features]
        judged = _judged(holding)
        found.append(
            Feature(
                feature,
                sum(not run.is_traced for run in holding),
                sum(run.is_traced for run in holding),
                len(judged),
                sum(run.lacking <= 0 for run in judged),
                median(abs(run.error) for run in judged),
                short.get(feature, 0),
            )
        )
    return tuple(found)


def _named(runs: Iterable[_Run]) -> list[str]:
    return sorted({feature for run in runs for feature in run.features})


def _spread(runs: Sequence[_Run]) -> Mapping[Spread, float]:
    """Of each feature the median of its runs, and of these what 95 of 100 features do not exceed."""
    found: dict[Spread, list[float]] = {"activations": [], "states": []}
    for feature in _named(runs):
        change = CHANGES[field_of(feature)]
        holding = [run for run in runs if feature in run.features]
        if change in ("activations", "states") and len(holding) >= LEAST_RUNS:
            found[change].append(median(run.bias[change] for run in holding))
    return {change: percentile(medians, 95) for change, medians in found.items() if medians}


def as_module(found: Iterable[Feature]) -> str:
    """The source of `app.planning.covered`."""
    lines = "".join(f'    "{line.feature}": {tuple(line.evidence)},\n' for line in found)
    return (
        '"""What runs and traced steps cover: written by `make accuracy`, never by hand.\n\n'
        "Of each feature the runs and traced steps that hold it, the runs by which the bound is judged, those for\n"
        "which it held, and what it lacked in percent of the expected allocation (`app.planning.coverage.Evidence`).\n"
        '"""\n\n'
        "from collections.abc import Mapping\n"
        "from types import MappingProxyType\n\n"
        "COVERED: Mapping[str, tuple[int, int, int, int, int]] = MappingProxyType(\n    {\n"
        f"{lines.replace('    ', '        ')}"
        "    }\n)\n"
    )


def _runs(outcomes: Iterable[Outcome]) -> list[_Run]:
    """Runs with a reading of the peak, and traced steps."""
    readings: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        is_peak = outcome.kind in PEAKS and grade_of(outcome.source) in ("A", "B")
        if outcome.error is not None and (is_peak or outcome.kind == "traced"):
            readings.setdefault((outcome.source, outcome.config_id), []).append(outcome)
    return [_run(of_run) for of_run in readings.values()]


def _run(readings: Sequence[Outcome]) -> _Run:
    worst = max(readings, key=lambda outcome: abs(outcome.error or 0))
    most = max(readings, key=lambda outcome: (outcome.measured_bytes or 0) / (outcome.upper_bound_bytes or 1))
    if most.estimate is None or most.measured_bytes is None or most.upper_bound_bytes is None:
        raise ValueError(f"{most.id} has no estimate")
    per_gpu = most.estimate.per_gpu
    moving_bytes = most.gpus * (per_gpu.activations_bytes + per_gpu.temporary_bytes)
    held_bytes = most.gpus * (per_gpu.weights_bytes + per_gpu.gradients_bytes + per_gpu.optimizer_states_bytes)
    beyond = most.measured_bytes - (most.predicted_bytes or 0)
    return _Run(
        features=frozenset(name for outcome in readings if outcome.inputs for name in features_of(outcome.inputs)),
        is_traced=most.kind == "traced",
        is_stated=all(outcome.is_fully_stated for outcome in readings),
        error=worst.error or 0,
        lacking=(most.measured_bytes - most.upper_bound_bytes) / (moving_bytes + held_bytes),
        bias={
            "activations": beyond / moving_bytes if moving_bytes else 0,
            "states": beyond / held_bytes if held_bytes else 0,
        },
    )


def _stated(runs: Iterable[_Run]) -> list[_Run]:
    return [run for run in runs if run.is_stated]


def _judged(runs: Sequence[_Run]) -> list[_Run]:
    stated = _stated(runs)
    return stated if len(stated) >= LEAST_RUNS else list(runs)


def _held_too_seldom(runs: Sequence[_Run]) -> bool:
    judged = _judged(runs)
    least = LEAST_HELD_PERCENT if len(_stated(runs)) >= LEAST_RUNS else LEAST_HELD_OPEN_PERCENT
    return len(judged) >= LEAST_RUNS and _share_held(judged) * 100 < least


def _share_held(judged: Sequence[_Run]) -> float:
    return sum(run.lacking <= 0 for run in judged) / len(judged)


def _short(runs: Sequence[_Run]) -> Mapping[str, int]:
    """Features whose bound held too seldom. A run that the bound does not cover is put down to the one of its features
    that fares worst; the runs of that feature then say nothing about the others.
    """
    left = list(runs)
    found: dict[str, int] = {}
    suspects = [name for name in _named(runs) if _held_too_seldom([run for run in runs if name in run.features])]
    while True:
        holding = {name: [run for run in left if name in run.features] for name in suspects}
        failing = {name: _judged(its_runs) for name, its_runs in holding.items() if _held_too_seldom(its_runs)}
        if not failing:
            return found
        worst = min(failing, key=lambda name: (_share_held(failing[name]), -len(failing[name]), len(name), name))
        lacking = percentile((run.lacking for run in failing[worst]), 95)
        found[worst] = max(1, math.ceil(100 * lacking))
        left = [run for run in left if worst not in run.features]
