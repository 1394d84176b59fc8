"""Links between GPUs, and between nodes: what they are made for, and what was measured over them."""

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import groupby
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from app.catalog.rows import Rate, Text, in_base_units, lines, tables
from app.planning.specs import Count, Name, Spec
from app.units import GB

LinkKind = Literal["nvlink", "nvlink-bridge", "nvlink-c2c", "pcie", "infiniband", "roce", "efa", "gpudirect-tcpx"]
"""What a link is. Bridges join pairs of cards, or two to four of them; `nvlink-c2c` joins a GPU and its own CPU."""

Collective = Literal["all-reduce", "all-gather", "reduce-scatter", "peer-to-peer", "host-to-device", "device-to-host"]


class Measurement(Spec):
    """What somebody measured over a link, and how."""

    collective: Collective
    """What was measured: a collective operation, or a copy from one place to another."""
    gpu: Name | None = None
    """Key of the GPUs; null where the report names none."""
    gpus: Count | None = None
    """GPUs that took part."""
    nodes: Count | None = None
    """Nodes that they were in."""
    message_bytes: Count | None = None
    """Size of the message; null where the report says no more than that it was large."""
    bus_bandwidth_bytes_per_second: Rate | None = None
    """Bus bandwidth per GPU, as nccl-tests counts it; of a copy, its rate in one direction."""
    latency_seconds: Rate | None = None
    """Time of the smallest message."""
    configuration: Text
    """Under which conditions."""
    is_problem_report: StrictBool = False
    """True where whoever reported it found it too slow: no figure to plan with."""
    source: Text
    """Where the figure comes from."""


class Interconnect(Spec):
    """A kind of link."""

    key: Name
    """Key of the link, such as `nvlink-4`."""
    name: Name
    """Name for people."""
    kind: LinkKind
    """What kind of link it is."""
    counts_per: Literal["gpu", "adapter", "slot"]
    """What one of has this bandwidth: a GPU with all its links, a network adapter, a PCIe slot."""
    bytes_per_second_per_direction: Rate
    """Peak payload bandwidth in one direction."""
    links: Count | None = None
    """Links that the bandwidth is the sum of, or lanes of a slot."""
    latency_seconds: Rate | None = None
    """Published latency of a port; null where none is."""
    is_announced: StrictBool = False
    """True for what cannot be bought yet."""
    measurements: tuple[Measurement, ...] = ()
    """What was measured over it."""
    source: Text
    """Where the peak comes from."""
    notes: Text | None = None
    """What a planner should know."""


class SweepPoint(Spec):
    """One message size of a sweep."""

    message_bytes: Count
    """Size of the message."""
    time_seconds: Rate
    """Time of the operation."""
    bus_bandwidth_bytes_per_second: Annotated[float, Field(ge=0)]
    """Bus bandwidth per GPU, as nccl-tests counts and rounds it: the smallest messages may have 0."""


class Sweep(Spec):
    """An operation measured over all sizes of messages: what a latency and a bandwidth can be fitted to."""

    interconnect: Name
    """Key of the slowest link that it went over."""
    collective: Collective
    """The operation."""
    gpu: Name
    """Key of the GPUs."""
    gpus: Count
    """GPUs that took part."""
    nodes: Count
    """Nodes that they were in."""
    tool: Text
    """What measured it, and which figures are derived from others."""
    source: Text
    """Where it was published."""
    points: tuple[SweepPoint, ...]
    """Sizes in ascending order."""


@cache
def interconnects() -> MappingProxyType[str, Interconnect]:
    """All links by key. Raises ValueError for a row that is wrong."""
    rows = tables(files("app.catalog") / "interconnects.toml")
    return MappingProxyType({key: _interconnect(key, row) for key, row in rows.items()})


@cache
def sweeps() -> tuple[Sweep, ...]:
    """All sweeps. Raises ValueError for a row that is wrong."""
    return tuple(_sweeps(list(lines(files("app.catalog") / "collective_sweeps.csv"))))


def _interconnect(key: str, row: dict[str, Any]) -> Interconnect:
    measurements = tuple(Measurement(**in_base_units(one)) for one in row.pop("measurements", ()))
    return Interconnect(key=key, measurements=measurements, **in_base_units(row))


def _sweeps(rows: list[dict[str, str]]) -> Iterator[Sweep]:
    of_sweep = ("interconnect", "collective", "gpu", "gpus", "nodes", "tool", "source")
    for about, group in groupby(rows, key=lambda row: tuple(row[name] for name in of_sweep)):
        told: dict[str, Any] = dict(zip(of_sweep, about, strict=True))
        numbers = {"gpus": int(told["gpus"]), "nodes": int(told["nodes"])}
        yield Sweep(**{**told, **numbers}, points=tuple(map(_point, group)))


def _point(row: dict[str, str]) -> SweepPoint:
    return SweepPoint(
        message_bytes=int(row["message_bytes"]),
        time_seconds=float(row["time_microseconds"]) * 1e-6,
        bus_bandwidth_bytes_per_second=float(row["bus_bandwidth_gb_per_second"]) * GB,
    )
