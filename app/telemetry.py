"""What an agent says and the server hears: one definition for both ends, in the standard library alone.

The agent builds these and sends `to_json(batch)`; the server takes `ReportBatch` as its request body as it stands.

Bytes are integers and a reading that a card does not offer is `None`, never a sentinel. Bounds are checked whenever one
of these is built, on either end, and a `ValueError` says in one sentence what is wrong.

pydantic is never imported here. It finds `__pydantic_config__` (unknown fields are refused, the text under a field
becomes its description) and asks the markers in `Annotated` for their schema: `"1"`, `true` and `1.0` are no integers.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

MAX_REPORTS_PER_BATCH = 1_000
MAX_GPUS_PER_NODE = 64
MAX_PROCESSES_PER_GPU = 1_024
MAX_LABELS = 64
MAX_TEXT_LENGTH = 255
MAX_ERROR_LENGTH = 2_000
MAX_SEQUENCE = 2**63 - 1
MAX_WATTS = 100_000.0
MAX_CELSIUS = 1_000

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1

_Rule = tuple[re.Pattern[str], str]  # what a text must match, and how to say so
_NAME = "letters, digits, '.', '_' and '-', a letter or digit first, at most"
_NODE_NAME: _Rule = (re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}"), f"{_NAME} 253")
_POOL: _Rule = (re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"), f"{_NAME} 63")
_LABEL_KEY: _Rule = (
    re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"),
    "letters, digits, '.', '_', '/' and '-', at most 63",
)
_BOOT_ID: _Rule = (re.compile(r"[A-Za-z0-9-]{1,64}"), "letters, digits and '-', at most 64")
_GPU_UUID: _Rule = (re.compile(r"[A-Za-z0-9][A-Za-z0-9/_-]{0,95}"), "letters, digits, '-', '_' and '/', at most 96")
_PCI_BUS_ID: _Rule = (
    re.compile(r"[0-9A-Fa-f]{4,8}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-7]"),
    "a PCI address, written domain:bus:device.function",
)
_RFC3339 = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII)

_Schema = dict[str, Any]


class _Strict:
    """Tells pydantic to take values of exactly this type from parsed JSON: no numbers in strings, no booleans for 1."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], _Schema]) -> _Schema:
        return {**handler(source), "strict": True}


class _Rfc3339:
    """Tells pydantic to take an RFC 3339 string only; by itself it would also read numbers as seconds since 1970."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], _Schema]) -> _Schema:
        parse = {"type": "no-info", "function": parse_timestamp}
        return {"type": "function-before", "function": parse, "schema": handler(source)}


Int = Annotated[int, _Strict()]
Float = Annotated[float, _Strict()]
Bool = Annotated[bool, _Strict()]
Text = Annotated[str, _Strict()]
Timestamp = Annotated[datetime, _Rfc3339()]

_CONFIG: _Schema = {"extra": "forbid", "use_attribute_docstrings": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """A GPU's memory as the driver counts it. If `reserved_bytes` is known, used + free + reserved is the total."""

    __pydantic_config__: ClassVar[_Schema] = _CONFIG

    total_bytes: Int
    """All memory of the card, at least 1. It is more than CUDA can hand out: see `reserved_bytes`."""

    used_bytes: Int
    """Taken by processes. Where `reserved_bytes` is null, it also holds what the driver keeps for itself."""

    free_bytes: Int
    """What the driver would still hand out."""

    reserved_bytes: Int | None = None
    """Kept by driver and firmware, never available to processes; null where the driver does not tell (before 510)."""

    def __post_init__(self) -> None:
        _whole("total_bytes", self.total_bytes, at_least=1)
        _whole("used_bytes", self.used_bytes, at_most=self.total_bytes)
        _whole("free_bytes", self.free_bytes, at_most=self.total_bytes)
        _whole("reserved_bytes", self.reserved_bytes, at_most=self.total_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUtilization:
    """How busy a GPU was over the driver's last sampling period (1/6 s to 1 s, by card)."""

    __pydantic_config__: ClassVar[_Schema] = _CONFIG

    gpu_percent: Int
    """Share of time in which at least one kernel ran, 0 to 100."""

    memory_percent: Int
    """Share of time in which device memory was read or written, 0 to 100. Not the share of memory in use."""

    def __post_init__(self) -> None:
        _whole("gpu_percent", self.gpu_percent, at_most=100)
        _whole("memory_percent", self.memory_percent, at_most=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds memory on a GPU."""

    __pydantic_config__: ClassVar[_Schema] = _CONFIG

    pid: Int
    """Process id as the driver sees it: in the host's numbering, even where the agent runs in a container."""

    used_memory_bytes: Int | None = None
    """Device memory it holds; null where the driver does not tell (MIG without permission, Windows)."""

    name: Text | None = None
    """Name of its executable; null where it cannot be read or the agent was told to leave names out."""

    def __post_init__(self) -> None:
        _whole("pid", self.pid, at_most=2**32 - 1)
        _whole("used_memory_bytes", self.used_memory_bytes)
        _text("name", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One GPU at one moment. A reading is null when the card does not offer it, or is sick: then `error` says why."""

    __pydantic_config__: ClassVar[_Schema] = _CONFIG

    uuid: Text | None
    """The GPU's own identity, such as `GPU-…`. Null only with an `error`: a card too sick to say who it is."""

    index: Int
    """Position on the node in the driver's order (PCI bus order), from 0. It may change with a restart of the node."""

    name: Text | None
    """Product name exactly as the driver gives it, such as `NVIDIA H100 80GB HBM3`."""

    memory: GpuMemory | None = None
    """Memory; null where the driver refuses it (unified-memory parts) or the GPU is sick."""

    utilization: GpuUtilization | None = None
    """Utilisation; null where not offered (always so in MIG mode)."""

    power_watts: Float | None = None
    """Power drawn now, in watts."""

    power_limit_watts: Float | None = None
    """Power limit in force, in watts."""

    temperature_celsius: Int | None = None
    """Temperature of the die, in degrees Celsius."""

    pci_bus_id: Text | None = None
    """PCI address as the driver writes it: `00000000:19:00.0`."""

    mig_mode: Literal["enabled", "disabled"] | None = None
    """Whether the GPU is partitioned into MIG instances; null where it cannot be."""

    processes: tuple[GpuProcess, ...] | None = None
    """Processes holding memory here; empty when there are none, null when not asked for or not offered."""

    error: Text | None = None
    """Why the GPU cannot be used, in the driver's words: "GPU is lost". Null for a healthy GPU."""

    def __post_init__(self) -> None:
        if self.uuid is None and self.error is None:
            raise ValueError("uuid can only be null when error says why")
        _matching("uuid", self.uuid, _GPU_UUID)
        _whole("index", self.index, at_most=_MAX_INT32)
        _text("name", self.name)
        _real("power_watts", self.power_watts, 0.0, MAX_WATTS)
        _real("power_limit_watts", self.power_limit_watts, 0.0, MAX_WATTS)
        _whole("temperature_celsius", self.temperature_celsius, at_least=-273, at_most=MAX_CELSIUS)
        _matching("pci_bus_id", self.pci_bus_id, _PCI_BUS_ID)
        if self.processes is not None and len(self.processes) > MAX_PROCESSES_PER_GPU:
            raise ValueError(f"at most {MAX_PROCESSES_PER_GPU} processes per GPU")
        _text("error", self.error, longest=MAX_ERROR_LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The machine that reports, as its agent was configured and its driver describes itself."""

    __pydantic_config__: ClassVar[_Schema] = _CONFIG

    name: Text
    """Unique in the fleet; the host name unless configured. Letters, digits, '.', '_' and '-', at most 253."""

    agent_version: Text
    """Version of the agent that took the reading."""

    driver_version: Text | None = None
    """NVIDIA driver, such as `590.48.01`; null when it cannot be asked."""

    cuda_version: Text | None = None
    """Newest CUDA version the driver supports, such as `13.1`."""

    pool: Text | None = None
    """Group of nodes that work is planned for. Letters, digits, '.', '_' and '-', at most 63."""

    labels: dict[Text, Text] = field(default_factory=dict)
    """Free key-value pairs to select nodes by, at most 64."""

    demo: Bool = False
    """True when the node and its GPUs are made up."""

    def __post_init__(self) -> None:
        _matching("name", self.name, _NODE_NAME)
        _text("agent_version", self.agent_version, longest=64)
        _text("driver_version", self.driver_version, longest=64)
        _text("cuda_version", self.cuda_version, longest=64)
        _matching("pool", self.pool, _POOL)
        if len(self.labels) > MAX_LABELS:
            raise ValueError(f"at most {MAX_LABELS} labels per node")
        for key, value in self.labels.items():
            _matching("a label's key", key, _LABEL_KEY)
            _text(f"label {key}", value, shortest=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """One look at one node, known by `(node.name, boot_id, sequence)`: stored once, however often it is sent."""

    __pydantic_config__: ClassVar[_Schema] = _CONFIG

    node: Node
    """The node that was looked at."""

    boot_id: Text
    """Changes whenever the node starts, so that `sequence` may begin anew. Letters, digits and '-', at most 64."""

    sequence: Int
    """Grows with every report since `boot_id` began; gaps are allowed, repetition is not."""

    sampled_at: Timestamp
    """When the reading was taken, by the node's clock: RFC 3339 with an offset, kept in UTC."""

    gpus: tuple[GpuReading, ...]
    """All GPUs of the node, the sick ones too; empty when the driver cannot be asked, and then `error` says why."""

    error: Text | None = None
    """Why the node's GPUs cannot be read at all, such as a driver that is not loaded. Null when they can."""

    def __post_init__(self) -> None:
        _matching("boot_id", self.boot_id, _BOOT_ID)
        _whole("sequence", self.sequence, at_most=MAX_SEQUENCE)
        if self.sampled_at.utcoffset() != timedelta(0):
            raise ValueError("sampled_at must be in UTC")
        if len(self.gpus) > MAX_GPUS_PER_NODE:
            raise ValueError(f"at most {MAX_GPUS_PER_NODE} GPUs per node")
        _distinct("index", [gpu.index for gpu in self.gpus])
        _distinct("uuid", [gpu.uuid for gpu in self.gpus if gpu.uuid is not None])
        _text("error", self.error, longest=MAX_ERROR_LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportBatch:
    """What an agent sends at once: one report when all is well, more after the server was away."""

    __pydantic_config__: ClassVar[_Schema] = _CONFIG

    reports: tuple[NodeReport, ...]
    """One to 1,000 reports, in any order."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.reports) <= MAX_REPORTS_PER_BATCH:
            raise ValueError(f"a batch holds 1 to {MAX_REPORTS_PER_BATCH} reports")


def to_json(value: ReportBatch | NodeReport) -> bytes:
    """`value` as one line of JSON in UTF-8, with timestamps in RFC 3339 UTC: what the agent sends and keeps."""
    return json.dumps(value, default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def parse_timestamp(value: object) -> datetime:
    """An RFC 3339 timestamp as an aware UTC `datetime`. Raises ValueError for anything else, numbers included."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or _RFC3339.fullmatch(value) is None:
        raise ValueError("a timestamp is an RFC 3339 string with an offset, such as 2026-01-31T12:00:00Z")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the timestamp lies outside the years 1 to 9999 in UTC") from error


def _plain(value: object) -> Mapping[str, object] | str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if is_dataclass(value):
        return {entry.name: getattr(value, entry.name) for entry in fields(value)}
    raise TypeError(f"{type(value).__name__} is not part of a report")


def _whole(name: str, value: int | None, *, at_least: int = 0, at_most: int = _MAX_INT64) -> None:
    if value is not None and not at_least <= value <= min(at_most, _MAX_INT64):
        raise ValueError(f"{name} must be from {at_least} to {min(at_most, _MAX_INT64)}, not {value}")


def _real(name: str, value: float | None, at_least: float, at_most: float) -> None:
    if value is not None and not (math.isfinite(value) and at_least <= value <= at_most):
        raise ValueError(f"{name} must be from {at_least:g} to {at_most:g}, not {value}")


def _text(name: str, value: str | None, *, shortest: int = 1, longest: int = MAX_TEXT_LENGTH) -> None:
    if value is None:
        return
    if not shortest <= len(value) <= longest:
        raise ValueError(f"{name} must have {shortest} to {longest} characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name} has a character that cannot be stored (NUL or half of a surrogate pair)")


def _matching(name: str, value: str | None, rule: _Rule) -> None:
    pattern, meaning = rule
    if value is not None and pattern.fullmatch(value) is None:
        raise ValueError(f"{name} must be {meaning}")


def _distinct(name: str, values: list[int] | list[str]) -> None:
    if len(set(values)) != len(values):
        raise ValueError(f"two GPUs of one node have the same {name}")
