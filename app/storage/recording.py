"""What comes in from the agents: every report is stored once, and nodes and GPUs move forward to the newest.

Which of two reports is newer is told within one boot of a node by their sequence numbers, else by their times, where a
node's clock that runs ahead of ours counts as ours. A report that comes late fills the history and nothing else.

A batch takes four or five statements, however many nodes and GPUs it is about.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Table,
    TableValuedAlias,
    Text,
    and_,
    cast,
    column,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.orm import Session

from app import telemetry
from app.storage import Json
from app.storage.tables import Moment, gpus, nodes, reports

_NODE_FIELDS = tuple(entry.name for entry in fields(telemetry.Node))
_NODE_COLUMNS = (*_NODE_FIELDS, "error", "unidentified_gpus", "boot_id", "sequence", "sampled_at")
_GPU_COLUMNS = ("uuid", "node_id", "gpu_index", "name", "present", "reading", "sampled_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """How many reports of a batch were new, and how many were stored before or twice in it."""

    accepted: int
    duplicates: int


def record(session: Session, batch: telemetry.ReportBatch, *, received_at: datetime) -> Recorded:
    """Store the reports of a batch that are not stored yet, and move nodes and GPUs forward to the newest of them.

    Any number of batches may be recorded at the same time: rows are locked in the order of their names.
    """
    newest: dict[str, telemetry.NodeReport] = {}
    for report in batch.reports:
        known = newest.get(report.node.name)
        if known is None or _is_newer(report, known):
            newest[report.node.name] = report
    moved = _move_nodes(session, newest, received_at)
    accepted = _store_reports(session, batch, received_at)
    if moved:
        _move_gpus(session, moved, received_at)
    return Recorded(accepted=accepted, duplicates=len(batch.reports) - accepted)


def _is_newer(report: telemetry.NodeReport, than: telemetry.NodeReport) -> bool:
    if report.boot_id == than.boot_id:
        return report.sequence > than.sequence
    return report.sampled_at > than.sampled_at


def _move_nodes(
    session: Session, newest: Mapping[str, telemetry.NodeReport], received_at: datetime
) -> dict[int, telemetry.NodeReport]:
    """Make each node what its newest report says, unless it is newer already. Returns the reports that won, by node id.

    Every node is locked until the end of the transaction, whether it moved or not.
    """
    given = _rows([_node_values(report) for report in newest.values()], nodes, _NODE_COLUMNS)
    arrival = literal(received_at, Moment)
    names = [*_NODE_COLUMNS, "first_seen_at", "received_at"]
    statement = insert(nodes).from_select(names, select(*given.c, arrival, arrival).order_by(given.c.name))
    new = statement.excluded
    is_newer = or_(
        and_(nodes.c.boot_id == new.boot_id, nodes.c.sequence < new.sequence),
        and_(nodes.c.boot_id != new.boot_id, _time(nodes.c) < _time(new)),
    )
    changes = {name: new[name] for name in names if name not in {"name", "first_seen_at"}}
    upsert = statement.on_conflict_do_update(index_elements=[nodes.c.name], set_=changes, where=is_newer)
    return {row.id: newest[row.name] for row in session.execute(upsert.returning(nodes.c.id, nodes.c.name))}


def _store_reports(session: Session, batch: telemetry.ReportBatch, received_at: datetime) -> int:
    """Store every report that is not stored yet, and say how many those were. Their nodes must be there."""
    sent = cast(literal(telemetry.to_json(batch).decode(), Text), JSONB)["reports"]
    report = func.jsonb_array_elements(sent).table_valued(column("value", JSONB), name="report").c.value
    values = (
        nodes.c.id,
        report["boot_id"].astext,
        cast(report["sequence"].astext, reports.c.sequence.type),
        cast(report["sampled_at"].astext, Moment),
        literal(received_at, Moment),
        report,
    )
    found = select(*values).join_from(report.table, nodes, nodes.c.name == report["node"]["name"].astext)
    # Said again, because PostgreSQL cannot know how few nodes a batch is about, and would read all of them.
    found = found.where(_is_any(nodes.c.name, {one.node.name for one in batch.reports}))
    names = ["node_id", "boot_id", "sequence", "sampled_at", "received_at", "payload"]
    statement = insert(reports).from_select(names, found).on_conflict_do_nothing()
    return len(session.execute(statement.returning(reports.c.sequence)).all())


def _move_gpus(session: Session, moved: Mapping[int, telemetry.NodeReport], received_at: datetime) -> None:
    """Bring the GPUs of the nodes that moved in step with those nodes' newest reports."""
    told = {gpu.uuid for report in moved.values() for gpu in report.gpus if gpu.uuid is not None}
    # All rows that are going to change are locked at once and in one order, for GPUs may be changing nodes.
    theirs = or_(gpus.c.node_id.in_(moved), _is_any(gpus.c.uuid, told))
    locked = select(gpus).where(theirs).order_by(gpus.c.uuid).with_for_update(key_share=True)
    present = [row for row in session.execute(locked).all() if row.present]
    newest: dict[str | None, tuple[int, telemetry.GpuReading]] = {}
    vanished: set[str] = set()
    for node_id, report in sorted(moved.items(), key=lambda item: item[1].sampled_at):
        readings = _readings(report, [row for row in present if row.node_id == node_id])
        newest.update({gpu.uuid: (node_id, gpu) for gpu in readings})
        vanished |= {row.uuid for row in present if row.node_id == node_id} - {gpu.uuid for gpu in readings}
    if vanished:
        session.execute(update(gpus).where(gpus.c.uuid.in_(vanished)).values(present=False))
    _store_readings(session, moved, newest.values(), received_at)


def _readings(report: telemetry.NodeReport, present: Collection[Row[Any]]) -> list[telemetry.GpuReading]:
    """What a report says of each GPU that it can tell apart, where `present` are the GPUs that its node had.

    A driver that cannot be asked says the same of all of them.
    """
    if report.error is None or report.gpus:
        return [gpu for gpu in report.gpus if gpu.uuid is not None]
    return [
        telemetry.GpuReading(uuid=row.uuid, index=row.gpu_index, name=row.name, error=report.error) for row in present
    ]


def _store_readings(
    session: Session,
    moved: Mapping[int, telemetry.NodeReport],
    readings: Collection[tuple[int, telemetry.GpuReading]],
    received_at: datetime,
) -> None:
    """Make each GPU what its reading says, and a GPU of the node that reports it."""
    values = [
        {
            "uuid": gpu.uuid,
            "node_id": node_id,
            "gpu_index": gpu.index,
            "name": gpu.name,
            "present": True,
            "reading": asdict(gpu),
            "sampled_at": moved[node_id].sampled_at.isoformat(),
        }
        for node_id, gpu in readings
    ]
    given = _rows(values, gpus, _GPU_COLUMNS)
    arrival = literal(received_at, Moment)
    names = [*_GPU_COLUMNS, "first_seen_at", "received_at"]
    statement = insert(gpus).from_select(names, select(*given.c, arrival, arrival).order_by(given.c.uuid))
    new = statement.excluded
    # Another node's word counts when the GPU has left the node it was on, or is known to be there since.
    is_newer = or_(gpus.c.node_id == new.node_id, gpus.c.present.is_(False), _time(gpus.c) < _time(new))
    changes: dict[str, Any] = {name: new[name] for name in names if name not in {"uuid", "first_seen_at"}}
    changes["name"] = func.coalesce(new.name, gpus.c.name)  # a sick GPU may not know its name any more
    session.execute(statement.on_conflict_do_update(index_elements=[gpus.c.uuid], set_=changes, where=is_newer))


def _node_values(report: telemetry.NodeReport) -> Json:
    unidentified = [
        {"index": gpu.index, "pci_bus_id": gpu.pci_bus_id, "error": gpu.error}
        for gpu in report.gpus
        if gpu.uuid is None
    ]
    return {
        **asdict(report.node),
        "error": report.error,
        "unidentified_gpus": unidentified,
        "boot_id": report.boot_id,
        "sequence": report.sequence,
        "sampled_at": report.sampled_at.isoformat(),
    }


def _rows(values: list[Json], table: Table, names: Collection[str]) -> TableValuedAlias:
    """Rows of the table's columns, sent as one value however many they are."""
    columns = [column(name, table.c[name].type) for name in names]
    given = func.jsonb_to_recordset(literal(values, JSONB)).table_valued(*columns, name="given")
    return given.render_derived(with_types=True)


def _is_any(of: ColumnElement[str], values: Collection[str]) -> ColumnElement[bool]:
    return of == func.any(literal(list(values), ARRAY(Text)))


def _time(of: Any) -> ColumnElement[datetime]:
    return func.least(of.sampled_at, of.received_at)
