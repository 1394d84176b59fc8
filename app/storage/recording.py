"""What comes in from the agents: every report is stored once, and nodes and GPUs move forward to the newest.

Which of two reports is newer is told within one boot of a node by their sequence numbers, else by their times, where a
node's clock that runs ahead of ours counts as ours. A report that comes late fills the history and nothing else.

A batch takes four or five statements, however many nodes and GPUs it is about.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    Select,
    Table,
    Text,
    and_,
    any_,
    bindparam,
    cast,
    column,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, Insert, insert
from sqlalchemy.orm import Session

from app import telemetry
from app.storage import Json
from app.storage.tables import Moment, gpus, nodes, reports

_NODE_FIELDS = tuple(entry.name for entry in fields(telemetry.Node))
_NODE_COLUMNS = (*_NODE_FIELDS, "error", "unidentified_gpus", "boot_id", "sequence", "sampled_at")
_GPU_COLUMNS = ("uuid", "node_id", "gpu_index", "name", "present", "reading", "sampled_at")
_REPORT_COLUMNS = ("node_id", "boot_id", "sequence", "sampled_at", "received_at", "payload")


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
    rows = [_node_row(report) for report in newest.values()]
    moved = session.execute(_MOVE_NODES, {"rows": rows, "arrival": received_at})
    return {row.id: newest[row.name] for row in moved}


def _store_reports(session: Session, batch: telemetry.ReportBatch, received_at: datetime) -> int:
    """Store every report that is not stored yet, and say how many those were. Their nodes must be there."""
    names = {report.node.name for report in batch.reports}
    sent = {"batch": telemetry.to_json(batch).decode(), "names": list(names), "arrival": received_at}
    return len(session.execute(_STORE_REPORTS, sent).all())


def _move_gpus(session: Session, moved: Mapping[int, telemetry.NodeReport], received_at: datetime) -> None:
    """Bring the GPUs of the nodes that moved in step with those nodes' newest reports."""
    told = {gpu.uuid for report in moved.values() for gpu in report.gpus if gpu.uuid is not None}
    # All rows that are going to change are locked at once and in one order, for GPUs may be changing nodes.
    known = session.execute(_LOCK_GPUS, {"node_ids": list(moved), "uuids": list(told)}).all()
    names = {row.uuid: row.name for row in known}
    present: dict[int, list[Row[Any]]] = {}
    for row in known:
        if row.present:
            present.setdefault(row.node_id, []).append(row)
    rows: dict[str | None, Json] = {}
    vanished: set[str] = set()
    for node_id, report in sorted(moved.items(), key=lambda item: item[1].sampled_at):
        before = present.get(node_id, [])
        now = {gpu.uuid: _gpu_row(gpu, node_id, report, names) for gpu in _readings(report, before)}
        vanished |= {row.uuid for row in before} - now.keys()
        rows.update(now)  # of two nodes that claim one GPU, the later is believed
    if vanished:
        session.execute(update(gpus).where(gpus.c.uuid.in_(vanished)).values(present=False))
    session.execute(_MOVE_GPUS, {"rows": list(rows.values()), "arrival": received_at})


def _readings(report: telemetry.NodeReport, before: Collection[Row[Any]]) -> list[telemetry.GpuReading]:
    """What a report says of each GPU that it can tell apart, where its node had the GPUs of `before`.

    A driver that cannot be asked says the same of all of them.
    """
    if report.error is None or report.gpus:
        return [gpu for gpu in report.gpus if gpu.uuid is not None]
    return [
        telemetry.GpuReading(uuid=row.uuid, index=row.gpu_index, name=row.name, error=report.error) for row in before
    ]


def _node_row(report: telemetry.NodeReport) -> Json:
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


def _gpu_row(
    gpu: telemetry.GpuReading, node_id: int, report: telemetry.NodeReport, names: Mapping[str | None, str | None]
) -> Json:
    return {
        "uuid": gpu.uuid,
        "node_id": node_id,
        "gpu_index": gpu.index,
        "name": gpu.name or names.get(gpu.uuid),  # a sick GPU may not know its name any more
        "present": True,
        "reading": asdict(gpu),
        "sampled_at": report.sampled_at.isoformat(),
    }


# The statements, built once: building them takes longer than PostgreSQL takes to run them for one node.

_Row = Any  # the columns of a table, or of the row that was to be inserted in it


def _time(of: _Row) -> ColumnElement[datetime]:
    return func.least(of.sampled_at, of.received_at)


def _node_is_newer(old: _Row, new: _Row) -> ColumnElement[bool]:
    return or_(
        and_(old.boot_id == new.boot_id, old.sequence < new.sequence),
        and_(old.boot_id != new.boot_id, _time(old) < _time(new)),
    )


def _gpu_is_newer(old: _Row, new: _Row) -> ColumnElement[bool]:
    """Another node's word counts when the GPU has left the node it was on, or was seen there since."""
    return or_(old.node_id == new.node_id, old.present.is_(False), _time(old) < _time(new))


def _move(table: Table, key: str, names: Collection[str], is_newer: Callable[[_Row, _Row], Any]) -> Insert:
    """Insert `rows`, however many, in the order of their `key`; what is there already is changed if a row is newer."""
    typed = [column(name, table.c[name].type) for name in names]
    rows = func.jsonb_to_recordset(bindparam("rows", type_=JSONB)).table_valued(*typed, name="given")
    given = rows.render_derived(with_types=True)
    arrival = bindparam("arrival", type_=Moment)
    chosen = select(*given.c, arrival.label("first_seen_at"), arrival.label("received_at")).order_by(given.c[key])
    statement = insert(table).from_select([*names, "first_seen_at", "received_at"], chosen)
    new = statement.excluded
    changes = {name: new[name] for name in (*names, "received_at") if name != key}
    return statement.on_conflict_do_update(index_elements=[table.c[key]], set_=changes, where=is_newer(table.c, new))


def _store() -> Insert:
    sent = cast(bindparam("batch", type_=Text), JSONB)["reports"]
    report = func.jsonb_array_elements(sent).table_valued(column("value", JSONB), name="report").c.value
    values = (
        nodes.c.id,
        report["boot_id"].astext,
        cast(report["sequence"].astext, BigInteger),
        cast(report["sampled_at"].astext, Moment),
        bindparam("arrival", type_=Moment),
        report,
    )
    found = select(*values).join_from(report.table, nodes, nodes.c.name == report["node"]["name"].astext)
    # Said again, because PostgreSQL cannot know how few nodes a batch is about, and would read all of them.
    found = found.where(nodes.c.name == any_(bindparam("names", type_=ARRAY(Text))))
    return insert(reports).from_select(_REPORT_COLUMNS, found).on_conflict_do_nothing()


_MOVE_NODES = _move(nodes, "name", _NODE_COLUMNS, _node_is_newer).returning(nodes.c.id, nodes.c.name)
_MOVE_GPUS = _move(gpus, "uuid", _GPU_COLUMNS, _gpu_is_newer)
_STORE_REPORTS = _store().returning(reports.c.sequence)
_LOCK_GPUS: Select[Any] = (
    select(gpus.c.uuid, gpus.c.node_id, gpus.c.gpu_index, gpus.c.name, gpus.c.present)
    .where(
        or_(
            gpus.c.node_id == any_(bindparam("node_ids", type_=ARRAY(BigInteger))),
            gpus.c.uuid == any_(bindparam("uuids", type_=ARRAY(Text))),
        )
    )
    .order_by(gpus.c.uuid)
    .with_for_update(key_share=True)
)
