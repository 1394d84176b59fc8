"""The estimator run against every row of ground truth."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from app.accuracy import measured, traced
from app.accuracy.jobs import Job, Kind, Reading, Unexpressed
from app.accuracy.rows import GroundTruth, MeasuredRow, TracedRow
from app.accuracy.sources import RULES
from app.errors import TonnageError
from app.planning import memory
from app.planning.coverage import Covered, doubts, features
from app.planning.memory import MemoryEstimate, MemoryInputs
from app.planning.recipe import resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row: what was measured, what the estimator says, or why it says nothing."""

    id: str
    config_id: str
    source: str
    """Name of the file the row comes from."""
    source_family: str
    metric: str
    kind: Kind | None
    """None for a metric that is not about memory."""
    measured_bytes: int | None = None
    predicted_bytes: int | None = None
    gpus: int = 1
    """GPUs over which the reading is a sum."""
    upper_bound_bytes: int | None = None
    """Of the driver's reading, over as many GPUs."""
    error: float | None = None
    """Predicted over measured, minus one."""
    run: measured.Outcome = None
    """How the run ended; None where the row does not say, or the GPU is not known."""
    fits_expected: bool | None = None
    fits_upper_bound: bool | None = None
    reason: str | None = None
    """Why there is no prediction."""
    assumptions: tuple[str, ...] = ()
    is_fully_stated: bool = False
    inputs: MemoryInputs | None = None
    estimate: MemoryEstimate | None = None


class Estimator:
    """`memory.estimate`, asked once for each different job."""

    def __init__(self, covered: Covered | None) -> None:
        self._covered = covered
        self._answers: dict[Any, MemoryEstimate | str] = {}

    def answer(self, inputs: MemoryInputs) -> MemoryEstimate:
        """The estimate. Raises Unexpressed with the sentence of the refusal."""
        shapes = inputs.architecture.shapes
        key = (
            inputs.architecture.family.model_type,
            shapes.layout,
            tuple(sorted(shapes.sizes.items())),
            inputs.training,
            inputs.parallelism,
            None if inputs.gpu is None else inputs.gpu.key,
        )
        if key not in self._answers:
            try:
                self._answers[key] = memory.estimate(replace(inputs, covered=self._covered))
            except TonnageError as error:
                self._answers[key] = error.detail
        found = self._answers[key]
        if isinstance(found, str):
            raise Unexpressed(found)
        return found


def score(truth: GroundTruth) -> list[Outcome]:
    """One outcome for each row, in the order read, with the upper bound of a request whose every feature is covered."""
    estimator = Estimator(None)
    siblings = _siblings(truth.measured)
    outcomes = [_measured(row, siblings[row.file, row.config_id], estimator) for row in truth.measured]
    return outcomes + [_traced(row, estimator) for row in truth.traced]


def judged(outcomes: Iterable[Outcome], covered: Covered) -> list[Outcome]:
    """The same outcomes with the upper bound that an answer has where `covered` is what runs and traced steps cover."""
    estimator = Estimator(covered)
    return [_judged(outcome, covered, estimator) for outcome in outcomes]


def _judged(outcome: Outcome, covered: Covered, estimator: Estimator) -> Outcome:
    inputs = outcome.inputs
    if inputs is None or outcome.estimate is None:
        return outcome
    found = doubts(features_of(inputs), covered, inputs.architecture.family.model_type)
    if not found.uncovered and not found.short:
        return outcome
    estimate = estimator.answer(inputs)
    bound = estimate.per_gpu.upper_bound_bytes * outcome.gpus
    fits = None if outcome.fits_upper_bound is None else estimate.fits
    return replace(outcome, estimate=estimate, upper_bound_bytes=bound, fits_upper_bound=fits)


def features_of(inputs: MemoryInputs) -> list[str]:
    """The features of a request that can be answered."""
    training, layout, architecture, gpu = inputs.training, inputs.parallelism, inputs.architecture, inputs.gpu
    return features(training, layout, architecture, resolve(training, layout, architecture, gpu), gpu)


def _siblings(rows: Iterable[MeasuredRow]) -> Mapping[tuple[str, str], Mapping[str, float]]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        found.setdefault((row.file, row.config_id), {})[row.measured_metric] = row.value
    return found


def _measured(row: MeasuredRow, siblings: Mapping[str, float], estimator: Estimator) -> Outcome:
    reading = measured.READINGS.get(row.measured_metric)
    known: dict[str, Any] = {
        "id": row.id,
        "config_id": row.config_id,
        "source": row.file,
        "source_family": row.source_family,
        "metric": row.measured_metric,
        "kind": None if reading is None else reading.kind,
    }
    try:
        if reading is not None:
            known["measured_bytes"] = measured.measured_bytes(row)
        job = measured.job_of(row, siblings, RULES)
        known |= {"assumptions": job.assumptions, "is_fully_stated": job.is_fully_stated, "inputs": job.inputs}
        known["kind"] = job.reading.kind
        return Outcome(**known, **_answers(job, known["measured_bytes"], row, estimator.answer(job.inputs)))
    except Unexpressed as error:
        return Outcome(**known, reason=str(error))
    except TonnageError as error:
        return Outcome(**known, reason=error.detail)


def _traced(row: TracedRow, estimator: Estimator) -> Outcome:
    known: dict[str, Any] = {
        "id": row.id,
        "config_id": row.id,
        "source": row.file,
        "source_family": "traced",
        "metric": "peak_bytes",
        "kind": "traced",
        "measured_bytes": row.peak_bytes,
    }
    try:
        job = traced.job_of(row)
        known |= {"is_fully_stated": True, "inputs": job.inputs}
        estimate = estimator.answer(job.inputs)
        return Outcome(**known, **_compared(estimate, job.reading, row.peak_bytes))
    except Unexpressed as error:
        return Outcome(**known, reason=str(error))


def _answers(job: Job, measured_bytes: int | None, row: MeasuredRow, estimate: MemoryEstimate) -> dict[str, Any]:
    found = _compared(estimate, job.reading, measured_bytes)
    if estimate.gpu is not None:
        usable = estimate.gpu.usable_bytes
        found["run"] = measured.outcome_of(row)
        found["fits_expected"] = estimate.per_gpu.total_bytes <= usable
        found["fits_upper_bound"] = estimate.per_gpu.upper_bound_bytes <= usable
    return found


def _compared(estimate: MemoryEstimate, reading: Reading, measured_bytes: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "estimate": estimate,
        "gpus": reading.gpus,
        "upper_bound_bytes": estimate.per_gpu.upper_bound_bytes * reading.gpus,
    }
    predicted = predicted_bytes(estimate, reading)
    if predicted is not None:
        found["predicted_bytes"] = predicted
        if measured_bytes:
            found["error"] = predicted / measured_bytes - 1
    return found


def predicted_bytes(estimate: MemoryEstimate, reading: Reading) -> int | None:
    """The figure of the estimate that answers a reading; None for a mere verdict."""
    if reading.figure == "none":
        return None
    per_gpu = estimate.per_gpu
    outside = {component.name: component.bytes for component in estimate.components if component.group == "framework"}
    stages = estimate.pipeline_stages if reading.stage is None else [estimate.pipeline_stages[reading.stage]]
    heaviest = max(stages, key=lambda stage: stage.total_bytes)
    states = per_gpu.weights_bytes + per_gpu.gradients_bytes + per_gpu.optimizer_states_bytes
    amounts = {
        "weights": per_gpu.weights_bytes,
        "states": states,
        "activations": per_gpu.activations_bytes,
        "between_steps": max(stage.between_steps_bytes for stage in stages),
        "tensors": heaviest.allocated_bytes - outside.get("cublas_workspace", 0),
        "allocated": heaviest.allocated_bytes,
        "reserved": heaviest.reserved_bytes,
        "driver": heaviest.total_bytes,
        "driver_increase": heaviest.total_bytes - outside.get("cuda_context", 0),
    }
    return amounts[reading.figure] * reading.gpus
