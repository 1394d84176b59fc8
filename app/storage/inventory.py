"""The fleet as the agents reported it: nodes and GPUs in their newest state. `app.storage.recording` writes it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, get_args

from sqlalchemy import ColumnElement, Row, Select, and_, false, func, or_, select, tuple_
from sqlalchemy.orm import Session

from app import telemetry
from app.errors import NotFound
from app.storage import Json, Page
from app.storage.recording import Recorded, record
from app.storage.tables import gpus, nodes
from app.units import MIB

__all__ = [
    "NODE_STATUSES",
    "Freshness",
    "GpuFilter",
    "GpuKey",
    "GpuState",
    "NodeState",
    "NodeStatus",
    "Recorded",
    "UnidentifiedGpu",
    "get_node",
    "list_gpus",
    "list_nodes",
    "record",
]

NodeStatus = Literal["online", "stale", "offline"]
NODE_STATUSES: tuple[NodeStatus, ...] = get_args(NodeStatus)

_NODE_FIELDS = tuple(entry.name for entry in fields(telemetry.Node))


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """What tells a node's status: the ages its last report has to reach, at `now`, for it to be stale, then offline."""

    now: datetime
    stale_seconds: float
    offline_seconds: float

    @property
    def stale_since(self) -> datetime:
        """A last report received by then makes its node stale."""
        return self.now - timedelta(seconds=self.stale_seconds)

    @property
    def offline_since(self) -> datetime:
        """A last report received by then makes its node offline."""
        return self.now - timedelta(seconds=self.offline_seconds)

    def status(self, received_at: datetime) -> NodeStatus:
        """Status of a node whose last report was received then."""
        if received_at <= self.offline_since:
            return "offline"
        return "stale" if received_at <= self.stale_since else "online"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnidentifiedGpu:
    """A GPU of a node's newest report that is too sick to say who it is."""

    index: int
    pci_bus_id: str | None
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node as its newest report describes it.

    `sampled_at` is that report's time by the node's clock, `received_at` by ours. `status` goes by ours, so that a
    wrong clock takes no node away. `gpus` counts those present that say who they are.
    """

    id: int
    node: telemetry.Node
    status: NodeStatus
    error: str | None
    gpus: int
    unidentified_gpus: tuple[UnidentifiedGpu, ...]
    boot_id: str
    sequence: int
    first_seen_at: datetime
    sampled_at: datetime
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuState:
    """A GPU as the newest report that had it describes it. `present` is False once its node reports without it.

    When its node cannot ask its driver, the GPU stays present with no readings and the node's error in `reading.error`.
    """

    reading: telemetry.GpuReading
    present: bool
    node_id: int
    node: str
    node_status: NodeStatus
    pool: str | None
    demo: bool
    first_seen_at: datetime
    sampled_at: datetime
    received_at: datetime


class GpuKey(NamedTuple):
    """Place of a GPU in the list."""

    node: str
    gpu_index: int
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFilter:
    """Which GPUs to list. What is left out does not narrow the list, except that absent GPUs must be asked for.

    `names` are exact product names; what has one of `other_totals_mib` as its total, in whole MiB, is another card of
    such a name. A node must carry every one of `labels`. A GPU whose free memory is unknown is never among those with
    `min_free_bytes`.
    """

    pool: str | None = None
    names: Collection[str] | None = None
    other_totals_mib: Collection[int] = ()
    min_free_bytes: int | None = None
    statuses: Collection[NodeStatus] | None = None
    node: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    include_absent: bool = False


def list_nodes(
    session: Session,
    *,
    freshness: Freshness,
    limit: int,
    after: str | None = None,
    pool: str | None = None,
    statuses: Collection[NodeStatus] | None = None,
) -> Page[NodeState, str]:
    """Nodes by name, at most `limit`, behind the node named `after`."""
    statement = _nodes().order_by(nodes.c.name).limit(limit + 1)
    if after is not None:
        statement = statement.where(nodes.c.name > after)
    if pool is not None:
        statement = statement.where(nodes.c.pool == pool)
    if statuses is not None:
        statement = statement.where(_has_status(statuses, freshness))
    rows = session.execute(statement).all()
    found = tuple(_node_state(row, freshness) for row in rows[:limit])
    return Page(items=found, next_key=found[-1].node.name if len(rows) > limit else None)


def get_node(session: Session, node_id: int, *, freshness: Freshness) -> NodeState:
    """One node. Raises NotFound when none of this id ever reported."""
    row = session.execute(_nodes().where(nodes.c.id == node_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no node {node_id}; GET /v1/nodes lists those there are")
    return _node_state(row, freshness)


def list_gpus(
    session: Session, wanted: GpuFilter, *, freshness: Freshness, limit: int, after: GpuKey | None = None
) -> Page[GpuState, GpuKey]:
    """GPUs by node name, index and UUID, at most `limit`, behind `after`."""
    place = (nodes.c.name, gpus.c.gpu_index, gpus.c.uuid)
    of_node = (
        nodes.c.pool,
        nodes.c.demo,
        nodes.c.name.label("node_name"),
        nodes.c.received_at.label("node_received_at"),
    )
    statement = select(gpus, *of_node).join(nodes, nodes.c.id == gpus.c.node_id)
    statement = statement.where(*_conditions(wanted, freshness)).order_by(*place).limit(limit + 1)
    if after is not None:
        statement = statement.where(tuple_(*place) > tuple_(*after))
    rows = session.execute(statement).all()
    keys = [GpuKey(row.node_name, row.gpu_index, row.uuid) for row in rows[:limit]]
    found = tuple(_gpu_state(row, freshness) for row in rows[:limit])
    return Page(items=found, next_key=keys[-1] if len(rows) > limit else None)


def _nodes() -> Select[Any]:
    count = select(func.count()).where(gpus.c.node_id == nodes.c.id, gpus.c.present).scalar_subquery()
    return select(nodes, count.label("gpu_count"))


def _conditions(wanted: GpuFilter, freshness: Freshness) -> Iterator[ColumnElement[bool]]:
    if not wanted.include_absent:
        yield gpus.c.present
    if wanted.pool is not None:
        yield nodes.c.pool == wanted.pool
    if wanted.names is not None:
        yield gpus.c.name.in_(wanted.names)
    if wanted.other_totals_mib:
        total_mib = gpus.c.total_bytes // MIB
        yield total_mib.is_(None) | total_mib.not_in(wanted.other_totals_mib)
    if wanted.min_free_bytes is not None:
        yield gpus.c.free_bytes >= wanted.min_free_bytes
    if wanted.statuses is not None:
        yield _has_status(wanted.statuses, freshness)
    if wanted.node is not None:
        yield nodes.c.name == wanted.node
    if wanted.labels:
        yield nodes.c.labels.contains(dict(wanted.labels))


def _has_status(statuses: Collection[NodeStatus], freshness: Freshness) -> ColumnElement[bool]:
    """The same as `Freshness.status`, in SQL."""
    seen = nodes.c.received_at
    meanings = {
        "online": seen > freshness.stale_since,
        "stale": and_(seen <= freshness.stale_since, seen > freshness.offline_since),
        "offline": seen <= freshness.offline_since,
    }
    return or_(false(), *(meanings[status] for status in statuses))


def _node_state(row: Row[Any], freshness: Freshness) -> NodeState:
    return NodeState(
        id=row.id,
        node=telemetry.Node(**{name: getattr(row, name) for name in _NODE_FIELDS}),
        status=freshness.status(row.received_at),
        error=row.error,
        gpus=row.gpu_count,
        unidentified_gpus=tuple(UnidentifiedGpu(**gpu) for gpu in row.unidentified_gpus),
        boot_id=row.boot_id,
        sequence=row.sequence,
        first_seen_at=row.first_seen_at,
        sampled_at=row.sampled_at,
        received_at=row.received_at,
    )


def _gpu_state(row: Row[Any], freshness: Freshness) -> GpuState:
    return GpuState(
        reading=_reading(row),
        present=row.present,
        node_id=row.node_id,
        node=row.node_name,
        pool=row.pool,
        demo=row.demo,
        node_status=freshness.status(row.node_received_at),
        first_seen_at=row.first_seen_at,
        sampled_at=row.sampled_at,
        received_at=row.received_at,
    )


def _reading(row: Row[Any]) -> telemetry.GpuReading:
    said = _known(telemetry.GpuReading, row.reading)
    if said["memory"] is not None:
        said["memory"] = telemetry.GpuMemory(**_known(telemetry.GpuMemory, said["memory"]))
    if said["utilization"] is not None:
        said["utilization"] = telemetry.GpuUtilization(**_known(telemetry.GpuUtilization, said["utilization"]))
    if said["processes"] is not None:
        said["processes"] = tuple(telemetry.GpuProcess(**_known(telemetry.GpuProcess, p)) for p in said["processes"])
    return telemetry.GpuReading(**{**said, "name": row.name})


def _known(kind: type[Any], values: Json) -> Json:
    """The values that `kind` has fields for: a reading may have been stored by another version."""
    return {entry.name: values[entry.name] for entry in fields(kind) if entry.name in values}
