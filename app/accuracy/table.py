"""Scores: how far predictions are off, how often verdicts are right, by source and overall, beside the peers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from types import MappingProxyType
from typing import Any, Literal

from app import __version__
from app.accuracy import peers
from app.accuracy.evidence import Covering, Feature, Spread
from app.accuracy.grades import grade_of, percentile
from app.accuracy.jobs import Kind
from app.accuracy.scoring import Outcome

KINDS: tuple[Kind, ...] = ("traced", "allocated", "between steps", "reserved", "nvidia-smi", "unspecified", "pieces")

Rows = Literal["all", "A and B, fully stated"]
Failures = Literal["out of memory", "out of memory or another crash"]


@dataclass(frozen=True, slots=True)
class Score:
    """How far predictions are off over some rows. Errors are fractions: 0.05 is five percent too much."""

    rows: int
    expressed: int
    """Rows for which the estimator gives an answer."""
    median_error: float | None
    """Median of the absolute errors."""
    p95_error: float | None
    """The absolute error that 95 of 100 rows stay under."""
    mean_signed_error: float | None
    within_bound: int
    """Rows whose reading is at most the upper bound."""
    worst: str | None
    """Id of the row with the largest absolute error."""
    worst_error: float | None


@dataclass(frozen=True, slots=True)
class Line:
    """The score of one source and one kind of reading."""

    source: str
    grade: str
    kind: str
    score: Score


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Whether jobs fit, as said and as they turned out, each configuration counted once."""

    rows: Rows
    failures: Failures
    """What counts as a run that found no memory: rows that say so, or rows that may have failed otherwise too."""
    ran: int
    """Runs that finished on a known GPU."""
    ran_said_not_to_fit: int
    """Of these, expected to need more than the GPU has."""
    ran_beyond_bound: int
    """Of these, whose upper bound is more than the GPU has: not promised to fit."""
    ran_out: int
    """Runs that found no memory."""
    ran_out_said_to_fit: int
    """Of these, expected to need less than the GPU has."""
    ran_out_within_bound: int
    """Of these, promised to fit: even the upper bound is less than the GPU has."""


@dataclass(frozen=True, slots=True)
class PeerScore:
    """A peer on the rows it can express, and this estimator on the same rows."""

    peer: str
    kind: str
    rows: int
    median_error: float
    p95_error: float
    our_median_error: float
    our_p95_error: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The whole table."""

    engine_version: str
    rows: int
    memory_rows: int
    expressed_rows: int
    overall: tuple[Line, ...]
    """By kind of reading: over all sources, and over those graded A and B whose rows are fully stated."""
    sources: tuple[Line, ...]
    verdicts: tuple[Verdicts, ...]
    peers: tuple[PeerScore, ...]
    reasons: tuple[tuple[str, int], ...]
    """Why rows have no prediction, and how many."""
    features: tuple[Feature, ...]
    """What of a request these rows cover, feature by feature."""
    spread: Mapping[Spread, float]
    """How far 95 of 100 features are off at most, in the median of their runs: a part of activations and temporary
    memory, or of weights, gradients and states, as the feature decides about one or the other.
    """


def tabulate(outcomes: Sequence[Outcome], covering: Covering) -> Accuracy:
    """The table over these outcomes, and what they cover."""
    memory = [outcome for outcome in outcomes if outcome.kind is not None]
    overall = []
    for kind in KINDS:
        of_kind = [outcome for outcome in memory if outcome.kind == kind]
        if of_kind:
            overall.append(Line("all", "", kind, score(of_kind)))
            stated = [outcome for outcome in of_kind if _is_stated(outcome)]
            if stated:
                overall.append(Line("A and B, fully stated", "", kind, score(stated)))
    lines = []
    for source in sorted({outcome.source for outcome in memory}):
        for kind in (*KINDS, "verdict"):
            found = [outcome for outcome in memory if outcome.source == source and outcome.kind == kind]
            if found:
                lines.append(Line(source.rpartition(".")[0], grade_of(source), kind, score(found)))
    reasons: dict[str, int] = {}
    for outcome in memory:
        if outcome.reason is not None:
            reasons[outcome.reason] = reasons.get(outcome.reason, 0) + 1
    return Accuracy(
        engine_version=__version__,
        rows=len(outcomes),
        memory_rows=len(memory),
        expressed_rows=sum(outcome.reason is None for outcome in memory),
        overall=tuple(overall),
        sources=tuple(lines),
        verdicts=tuple(verdicts(memory, rows, failures) for rows in _ROWS for failures in _FAILURES),
        peers=tuple(_peers(memory)),
        reasons=tuple(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        features=covering.features,
        spread=covering.spread,
    )


def score(outcomes: Iterable[Outcome]) -> Score:
    """The score over some rows of one kind."""
    found = list(outcomes)
    scored = [outcome for outcome in found if outcome.error is not None]
    errors = [outcome.error for outcome in scored if outcome.error is not None]
    worst = max(scored, key=lambda outcome: abs(outcome.error or 0), default=None)
    return Score(
        rows=len(found),
        expressed=sum(outcome.reason is None for outcome in found),
        median_error=median(map(abs, errors)) if errors else None,
        p95_error=percentile(map(abs, errors), 95) if errors else None,
        mean_signed_error=fmean(errors) if errors else None,
        within_bound=sum((outcome.measured_bytes or 0) <= (outcome.upper_bound_bytes or 0) for outcome in scored),
        worst=None if worst is None else worst.id,
        worst_error=None if worst is None else worst.error,
    )


_ROWS: tuple[Rows, ...] = ("all", "A and B, fully stated")
_FAILURES: Mapping[Failures, frozenset[str]] = MappingProxyType(
    {
        "out of memory": frozenset({"out of memory"}),
        "out of memory or another crash": frozenset({"out of memory", "failed"}),
    }
)


def verdicts(outcomes: Iterable[Outcome], rows: Rows, failures: Failures) -> Verdicts:
    """Verdicts by configuration over some rows, against some kind of failure."""
    ran: dict[tuple[str, str], Outcome] = {}
    ran_out: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        if rows != "all" and not _is_stated(outcome):
            continue
        if outcome.run == "finished":
            ran.setdefault((outcome.source, outcome.config_id), outcome)
        elif outcome.run in _FAILURES[failures]:
            ran_out.setdefault((outcome.source, outcome.config_id), outcome)
    return Verdicts(
        rows=rows,
        failures=failures,
        ran=len(ran),
        ran_said_not_to_fit=sum(not outcome.fits_expected for outcome in ran.values()),
        ran_beyond_bound=sum(not outcome.fits_upper_bound for outcome in ran.values()),
        ran_out=len(ran_out),
        ran_out_said_to_fit=sum(bool(outcome.fits_expected) for outcome in ran_out.values()),
        ran_out_within_bound=sum(bool(outcome.fits_upper_bound) for outcome in ran_out.values()),
    )


def _is_stated(outcome: Outcome) -> bool:
    return grade_of(outcome.source) in ("A", "B") and (outcome.is_fully_stated or outcome.reason is not None)


def _peers(outcomes: Sequence[Outcome]) -> Iterable[PeerScore]:
    said: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for outcome in outcomes:
        group = _group(outcome)
        if group is None or outcome.error is None or outcome.inputs is None or not outcome.measured_bytes:
            continue
        for name, amount in peers.answers(outcome.inputs).items():
            errors = (abs(amount / outcome.measured_bytes - 1), abs(outcome.error))
            said.setdefault((group, name), []).append(errors)
    for group in _GROUPS:
        for peer in peers.PEERS:
            errors_of = said.get((group, peer.name), [])
            if errors_of:
                theirs, ours = [error for error, _ in errors_of], [error for _, error in errors_of]
                scores = (median(theirs), percentile(theirs, 95), median(ours), percentile(ours, 95))
                yield PeerScore(peer.name, group, len(theirs), *scores)


_GROUPS = ("traced", "nanotron", "other peaks")


def _group(outcome: Outcome) -> str | None:
    if outcome.kind == "traced":
        return "traced"
    if outcome.kind not in ("allocated", "reserved", "nvidia-smi", "unspecified"):
        return None
    return "nanotron" if outcome.source_family == "nanotron_ultrascale" else "other peaks"


def as_json(accuracy: Accuracy) -> str:
    """The table as it is shipped: errors rounded to four digits, so that it changes only when the estimates do."""
    return json.dumps(_rounded(asdict(accuracy)), indent=1, ensure_ascii=False) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value


def row_as_json(outcome: Outcome) -> str:
    """One row for `--rows`."""
    fields = (
        "id",
        "config_id",
        "source",
        "metric",
        "kind",
        "measured_bytes",
        "predicted_bytes",
        "upper_bound_bytes",
        "error",
        "run",
        "fits_expected",
        "fits_upper_bound",
        "reason",
        "assumptions",
        "is_fully_stated",
    )
    return json.dumps({name: getattr(outcome, name) for name in fields}, ensure_ascii=False)
