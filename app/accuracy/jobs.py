"""A row of ground truth as a job the estimator can be asked about, and which figure of its answer the row measured."""

from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from app.planning.architecture import Architecture
from app.planning.memory import MemoryInputs
from app.planning.specs import Gpu, Parallelism, Training

Kind = Literal["traced", "allocated", "between steps", "reserved", "nvidia-smi", "unspecified", "pieces", "verdict"]
"""What a reading counts: the operators' tensors; the allocator's peak; what it holds between steps; what it has taken
from the driver; the driver's own figure; a peak whose counter the source does not name; a part of the peak; or only
whether the job ran.
"""

Figure = Literal[
    "tensors",
    "allocated",
    "between_steps",
    "reserved",
    "driver",
    "driver_increase",
    "weights",
    "states",
    "activations",
    "none",
]
"""The figure of an estimate that answers a row."""


class Unexpressed(Exception):
    """Why a row cannot be put to the estimator, in one sentence."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured: how it counts, which figure of the estimate answers it, and on which pipeline stage."""

    kind: Kind
    figure: Figure
    stage: int | None = None
    """Index of the pipeline stage, -1 for the last; None for the heaviest."""
    gpus: int = 1
    """GPUs over which the reading is a sum."""


@dataclass(frozen=True, slots=True)
class Job:
    """A request and what its answer is compared with."""

    inputs: MemoryInputs
    reading: Reading
    assumptions: tuple[str, ...]
    is_fully_stated: bool
    """Whether the source states everything that decides the answer."""


@dataclass(slots=True)
class Draft:
    """A job while its row is being read: a source's own rules change what the shared columns gave."""

    reading: Reading
    architecture: Architecture | None = None
    gpu: Gpu | None = None
    training: dict[str, Any] = field(default_factory=dict)
    parallelism: dict[str, Any] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)
    is_fully_stated: bool = True

    def assume(self, sentence: str, *, decisive: bool = False) -> None:
        """Notes what the source leaves open; `decisive` where another choice changes the answer much."""
        if sentence not in self.assumptions:
            self.assumptions.append(sentence)
        if decisive:
            self.is_fully_stated = False

    def job(self) -> Job:
        """The finished job. Raises Unexpressed where the request would be refused as such."""
        if self.architecture is None:
            raise Unexpressed("the model is not named and its shapes are not given")
        try:
            inputs = MemoryInputs(
                architecture=self.architecture,
                training=Training.model_validate(self.training),
                parallelism=Parallelism.model_validate(self.parallelism),
                gpu=self.gpu,
                gpus=None,
                estimator="detailed",
            )
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise Unexpressed(f"{place}: {first['msg']}") from error
        return Job(inputs, self.reading, tuple(self.assumptions), self.is_fully_stated)
