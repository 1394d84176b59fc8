"""A made-up node of H100s with jobs that come and go, so that a fleet can be seen without a GPU.

Everything follows from the node's name and the time: a restarted demonstration goes on where it was, two nodes differ.
"""

import hashlib
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from app.agent.reading import NodeReading
from app.telemetry import GpuMemory, GpuProcess, GpuReading, GpuUtilization
from app.units import MIB

GPU_NAME = "NVIDIA H100 80GB HBM3"
TOTAL_BYTES = 81_559 * MIB
RESERVED_BYTES = 479 * MIB
CUDA_CONTEXT_BYTES = 518 * MIB

_SHIFT_SECONDS = 600  # every ten minutes the node's jobs change
_STARTUP_SECONDS = 40  # a job loads its model before it computes
_IDLE_WATTS = 70.0
_POWER_LIMIT_WATTS = 700.0
_GROUP_SIZES = (1, 2, 4, 8)
_JOB_NAMES = ("pretrain", "finetune", "torchrun", "evaluate")


@dataclass(frozen=True, slots=True)
class _Job:
    """What one process on one GPU does: `age_seconds` since it started, `full_bytes` of memory once it computes."""

    pid: int
    name: str
    age_seconds: float
    full_bytes: int


class DemoSource:
    """The made-up node `node_name` with `gpu_count` GPUs. `clock` gives the time in seconds since 1970."""

    def __init__(self, node_name: str, gpu_count: int, *, clock: Callable[[], float] = time.time) -> None:
        self._node_name = node_name
        self._gpu_count = gpu_count
        self._clock = clock

    def read(self) -> NodeReading:
        """The node as it is at this moment of its made-up life."""
        now = self._clock()
        return NodeReading(
            driver_version="590.48.01",
            cuda_version="13.1",
            gpus=tuple(self._read_gpu(index, now) for index in range(self._gpu_count)),
        )

    def close(self) -> None:
        """Nothing is held."""

    def _read_gpu(self, index: int, now: float) -> GpuReading:
        job = self._job(index, now)
        used_bytes = _used_bytes(job)
        busy = 0.0 if job is None or job.age_seconds < _STARTUP_SECONDS else 0.93 + 0.06 * math.sin(now / 7 + index)
        watts = _IDLE_WATTS + index % 3 + busy * 590
        return GpuReading(
            uuid=f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{self._node_name}/{index}')}",
            index=index,
            name=GPU_NAME,
            memory=GpuMemory(
                total_bytes=TOTAL_BYTES,
                used_bytes=used_bytes,
                free_bytes=TOTAL_BYTES - RESERVED_BYTES - used_bytes,
                reserved_bytes=RESERVED_BYTES,
            ),
            utilization=GpuUtilization(gpu_percent=round(busy * 100), memory_percent=round(busy * 45)),
            power_watts=round(watts, 1),
            power_limit_watts=_POWER_LIMIT_WATTS,
            temperature_celsius=31 + index % 3 + round(busy * 34),
            pci_bus_id=f"00000000:{0x19 + 0x11 * index & 0xFF:02X}:00.0",
            mig_mode="disabled",
            processes=() if job is None else (GpuProcess(pid=job.pid, used_memory_bytes=used_bytes, name=job.name),),
        )

    def _job(self, index: int, now: float) -> _Job | None:
        """The job on GPU `index`, if any: it runs on a whole group of GPUs, for a part of the shift."""
        shift, elapsed_seconds = divmod(now, _SHIFT_SECONDS)
        group_size = _GROUP_SIZES[int(self._chance(f"{shift:.0f}/group size") * len(_GROUP_SIZES))]
        group = f"{shift:.0f}/{index // group_size}"
        starts_at_seconds = self._chance(f"{group}/start") * 0.3 * _SHIFT_SECONDS
        ends_at_seconds = (0.6 + self._chance(f"{group}/end") * 0.4) * _SHIFT_SECONDS
        if self._chance(f"{group}/idle") < 0.25 or not starts_at_seconds <= elapsed_seconds < ends_at_seconds:
            return None
        return _Job(
            pid=10_000 + int(self._chance(f"{group}/pid") * 80_000) + index % group_size,
            name=_JOB_NAMES[int(self._chance(f"{group}/name") * len(_JOB_NAMES))],
            age_seconds=elapsed_seconds - starts_at_seconds,
            full_bytes=int((20_000 + self._chance(f"{group}/memory") * 57_000) * MIB),
        )

    def _chance(self, what: str) -> float:
        """A number from 0 up to 1 that is the same for the same node and `what`."""
        digest = hashlib.sha256(f"{self._node_name}/{what}".encode()).digest()
        return int.from_bytes(digest[:6]) / 2**48


def _used_bytes(job: _Job | None) -> int:
    if job is None:
        return 0
    loaded = min(1.0, job.age_seconds / _STARTUP_SECONDS)
    return CUDA_CONTEXT_BYTES + int(job.full_bytes * loaded) // (2 * MIB) * (2 * MIB)
