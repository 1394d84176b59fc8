"""NVML → telemetry. The one module that knows pynvml, its versions, and what NVML's error codes mean for a reader.

NVML is opened by the first reading and again after it failed, never at import, so a driver that is loaded, replaced or
reloaded under a running agent is picked up. Three kinds of failure are kept apart:

- the driver cannot be asked at all: no GPUs, and the reading's `error` says what to do;
- one GPU is sick (lost, in need of a reset, or its memory cannot be read): it carries an `error`, the others do not;
- a card does not offer a field, or not to us: that field is `None`.
"""

import _ctypes
import logging
import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import pynvml

from app.agent.reading import NodeReading, ProcessDetail
from app.telemetry import (
    MAX_CELSIUS,
    MAX_GPUS_PER_NODE,
    MAX_PROCESSES_PER_GPU,
    MAX_TEXT_LENGTH,
    MAX_WATTS,
    GpuMemory,
    GpuProcess,
    GpuReading,
    GpuUtilization,
)

logger = logging.getLogger(__name__)


# The driver or its library is older than a function, or than the struct version asked for.
_TOO_OLD = frozenset({pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH})

# The card or our permissions do not offer the field; nothing is wrong with the card.
_NOT_OFFERED = _TOO_OLD | {
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_NOT_FOUND,
    pynvml.NVML_ERROR_NO_DATA,
    pynvml.NVML_ERROR_DEPRECATED,
}

# The card as a whole is unusable, whichever field it was that said so.
_SICK = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED})

_NODE_ERRORS = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "no NVIDIA driver library (libnvidia-ml.so.1) here: install the driver, or mount it into the container"
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA kernel driver is not loaded: load it, or restart the node",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA kernel driver and its library have different versions: reload the kernel driver or restart the node"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: "the agent may not use the NVIDIA driver: check who may open /dev/nvidia*",
    pynvml.NVML_ERROR_UNKNOWN: (
        "the NVIDIA driver answers with an unknown error: look for Xid in the kernel log; in a container, the device "
        "permissions may have been lost, and restarting the container brings them back"
    ),
}

_T = TypeVar("_T")
_Number = TypeVar("_Number", int, float)


class NvmlSource:
    """This machine's GPUs as NVML describes them, with `processes` in the detail asked for.

    While a GPU is sick, NVML is opened anew every `reopen_when_sick_seconds`: it does not notice that one came back.
    """

    def __init__(self, *, processes: ProcessDetail = "named", reopen_when_sick_seconds: float = 60.0) -> None:
        self._processes = processes
        self._reopen_when_sick_seconds = reopen_when_sick_seconds
        self._open = False
        self._opened_at = 0.0
        # The last healthy reading of each index, since a lost GPU no longer tells its name.
        self._known: dict[int, GpuReading] = {}

    def read(self) -> NodeReading:
        """All GPUs as they are now; see the module for what is an error and what is `None`."""
        try:
            if not self._open:
                pynvml.nvmlInit()
                self._open = True
                self._opened_at = time.monotonic()
            count: int = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            explanation = _NODE_ERRORS.get(error.value, f"NVML fails: {error}")
            self.close()
            return NodeReading(driver_version=None, cuda_version=None, gpus=(), error=explanation)
        gpus = self._read_gpus(min(count, MAX_GPUS_PER_NODE))
        reading = NodeReading(driver_version=_driver_version(), cuda_version=_cuda_version(), gpus=gpus)
        if any(gpu.error for gpu in gpus) and time.monotonic() - self._opened_at >= self._reopen_when_sick_seconds:
            self.close()
        return reading

    def close(self) -> None:
        """Shut NVML down and unload its library, so that the next reading takes the library that is installed then."""
        if self._open:
            self._open = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                logger.warning("NVML did not shut down cleanly", extra={"reason": str(error)})
        library, pynvml.nvmlLib = pynvml.nvmlLib, None
        pynvml._nvmlGetFunctionPointer_cache.clear()
        if library is not None:
            _ctypes.dlclose(library._handle)

    def _read_gpus(self, count: int) -> tuple[GpuReading, ...]:
        if len(self._known) > count:
            self._known.clear()  # cards have gone, so that the remaining ones may have new positions
        names = _ProcessNames() if self._processes == "named" else None
        gpus = []
        for index in range(count):
            gpu = self._read_gpu(index, names)
            if gpu.error is None:
                self._known[index] = gpu
            gpus.append(gpu)
        return tuple(gpus)

    def _read_gpu(self, index: int, names: "_ProcessNames | None") -> GpuReading:
        known = self._known.get(index)
        uuid, name, pci_bus_id = (known.uuid, known.name, known.pci_bus_id) if known else (None, None, None)
        try:
            card = _Card(pynvml.nvmlDeviceGetHandleByIndex(index))
            uuid = card.ask(_uuid, essential=True) or uuid
            name = card.ask(_name) or name
            pci_bus_id = card.ask(_pci_bus_id) or pci_bus_id
            memory = card.ask(_memory, essential=True)
            utilization = card.ask(_utilization)
            power_watts = card.ask(_power_watts)
            power_limit_watts = card.ask(_power_limit_watts)
            temperature_celsius = card.ask(_temperature_celsius)
            mig_mode = card.ask(_mig_mode)
            processes = None if self._processes == "none" else _processes(card, names)
            return GpuReading(
                uuid=uuid,
                index=index,
                name=name,
                memory=memory if card.error is None else None,  # a card in need of a reset may answer with zeros
                utilization=utilization,
                power_watts=power_watts,
                power_limit_watts=power_limit_watts,
                temperature_celsius=temperature_celsius,
                pci_bus_id=pci_bus_id,
                mig_mode=mig_mode,
                processes=processes,
                error=card.error,
            )
        except (pynvml.NVMLError, ValueError) as error:
            return GpuReading(uuid=uuid, index=index, name=name, pci_bus_id=pci_bus_id, error=str(error))


class _Card:
    """One GPU being asked. `error` is the first answer that means that the card itself is sick."""

    def __init__(self, handle: object) -> None:
        self._handle = handle
        self._gone = False
        self.error: str | None = None

    def ask(self, function: Callable[[Any], _T], *, essential: bool = False) -> _T | None:
        """What `function` reads from the card, or None. Without an `essential` field a card cannot be used."""
        if self._gone:
            return None  # each further question to a lost card may take until a time-out
        try:
            return function(self._handle)
        except pynvml.NVMLError as error:
            self._gone = error.value in _SICK
            if self._gone or (essential and error.value not in _NOT_OFFERED):
                self.error = self.error or str(error)
        except ValueError:
            pass  # text that is not UTF-8, or figures that contradict each other (GB10: a total of 0), are no answer
        return None


class _ProcessNames:
    """Names of executables by process id, asked once per reading, since one process may be on all GPUs."""

    def __init__(self) -> None:
        self._names: dict[int, str | None] = {}

    def get(self, pid: int) -> str | None:
        """The name without its folder and arguments, which may hold secrets; None when it cannot be read."""
        if pid not in self._names:
            try:
                command: str = pynvml.nvmlSystemGetProcessName(pid)
            except (pynvml.NVMLError, UnicodeDecodeError):
                command = ""
            words = command.split(maxsplit=1)
            self._names[pid] = (words[0].rsplit("/", 1)[-1][:MAX_TEXT_LENGTH] or None) if words else None
        return self._names[pid]


def _newest(handle: object, *variants: Callable[[object], _T]) -> _T:
    """The answer of the first of `variants`, newest first, that the installed driver knows."""
    for variant in variants[:-1]:
        try:
            return variant(handle)
        except pynvml.NVMLError as error:
            if error.value not in _TOO_OLD:
                raise
    return variants[-1](handle)


def _uuid(handle: object) -> str:
    return str(pynvml.nvmlDeviceGetUUID(handle))


def _name(handle: object) -> str:
    return str(pynvml.nvmlDeviceGetName(handle))


def _pci_bus_id(handle: object) -> str:
    return str(pynvml.nvmlDeviceGetPciInfo_v3(handle).busId)


def _memory(handle: object) -> GpuMemory:
    return _newest(handle, _memory_v2, _memory_v1)


def _memory_v2(handle: object) -> GpuMemory:
    info = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return GpuMemory(total_bytes=info.total, used_bytes=info.used, free_bytes=info.free, reserved_bytes=info.reserved)


def _memory_v1(handle: object) -> GpuMemory:
    info = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return GpuMemory(total_bytes=info.total, used_bytes=info.used, free_bytes=info.free)


def _utilization(handle: object) -> GpuUtilization:
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    return GpuUtilization(gpu_percent=rates.gpu, memory_percent=rates.memory)


def _power_watts(handle: object) -> float:
    return _plausible(int(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1_000, MAX_WATTS)


def _power_limit_watts(handle: object) -> float:
    return _plausible(int(pynvml.nvmlDeviceGetEnforcedPowerLimit(handle)) / 1_000, MAX_WATTS)


def _temperature_celsius(handle: object) -> int:
    return _plausible(_newest(handle, _temperature_v1, _temperature_unversioned), MAX_CELSIUS)


def _temperature_v1(handle: object) -> int:
    return int(pynvml.nvmlDeviceGetTemperatureV(handle, pynvml.NVML_TEMPERATURE_GPU))


def _temperature_unversioned(handle: object) -> int:
    return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))


def _plausible(value: _Number, most: _Number) -> _Number:
    """`value`, unless it is one of NVML's "not available" numbers, which are the largest that fit into the field."""
    if value > most:
        raise ValueError(f"{value} is no reading")
    return value


def _mig_mode(handle: object) -> Literal["enabled", "disabled"]:
    current, _pending = pynvml.nvmlDeviceGetMigMode(handle)
    return "enabled" if current == pynvml.NVML_DEVICE_MIG_ENABLE else "disabled"


def _compute_processes(handle: object) -> list[Any]:
    return _newest(
        handle, pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetComputeRunningProcesses_v2
    )


def _graphics_processes(handle: object) -> list[Any]:
    return _newest(
        handle, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v2
    )


def _mps_processes(handle: object) -> list[Any]:
    return _newest(
        handle, pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v3, pynvml.nvmlDeviceGetMPSComputeRunningProcesses_v2
    )


def _processes(card: _Card, names: _ProcessNames | None) -> tuple[GpuProcess, ...] | None:
    """Processes on a card, largest first. One that computes and draws is in two lists, with the same figure in both."""
    lists = [card.ask(listed) for listed in (_compute_processes, _graphics_processes, _mps_processes)]
    if all(entries is None for entries in lists):
        return None
    held: dict[int, dict[int, int]] = {}  # process → GPU instance (more than one only in MIG mode) → bytes
    for entry in (entry for entries in lists for entry in entries or ()):
        instances = held.setdefault(entry.pid, {})
        if entry.usedGpuMemory is not None:
            instances[entry.gpuInstanceId] = max(instances.get(entry.gpuInstanceId, 0), entry.usedGpuMemory)
    processes = [
        GpuProcess(
            pid=pid,
            used_memory_bytes=sum(instances.values()) if instances else None,
            name=names.get(pid) if names else None,
        )
        for pid, instances in held.items()
    ]
    processes.sort(key=lambda process: (-(process.used_memory_bytes or 0), process.pid))
    return tuple(processes[:MAX_PROCESSES_PER_GPU])


def _driver_version() -> str | None:
    return _optional(pynvml.nvmlSystemGetDriverVersion)


def _cuda_version() -> str | None:
    version = _optional(pynvml.nvmlSystemGetCudaDriverVersion_v2)
    return None if version is None else f"{version // 1_000}.{version % 1_000 // 10}"


def _optional(function: Callable[[], _T]) -> _T | None:
    try:
        return function()
    except pynvml.NVMLError:
        return None
