"""What a source of GPU readings gives: the driver on a real node, or the made-up node of the demonstration."""

from dataclasses import dataclass
from typing import Literal, Protocol

from app.telemetry import GpuReading

ProcessDetail = Literal["named", "unnamed", "none"]
"""How much to tell of the processes on a GPU: "unnamed" leaves their names out, "none" leaves them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading:
    """One look at all GPUs of this machine. `error` says why there are none when the driver cannot be asked at all."""

    driver_version: str | None
    cuda_version: str | None
    gpus: tuple[GpuReading, ...]
    error: str | None = None


class Source(Protocol):
    """Something that can be asked for readings again and again."""

    def read(self) -> NodeReading:
        """The GPUs as they are now. Never raises for a sick GPU or an absent driver: the reading says so instead."""
        ...

    def close(self) -> None:
        """Let go of the driver. Reading again opens it again."""
        ...
