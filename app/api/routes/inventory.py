"""The live fleet: agents report, planners look."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import Body, Path, Query

from app.api.answers import documented
from app.api.auth import Agent, Viewer
from app.api.deps import CatalogDep, ServiceDep, Tx
from app.api.inventory_views import (
    GPU_EXAMPLE,
    NODE_EXAMPLE,
    REPORT_EXAMPLES,
    GpuQuery,
    GpuView,
    NodeQuery,
    NodeView,
    Receipt,
)
from app.api.paging import Page, decode, encode
from app.api.problems import raises
from app.api.routing import v1_router
from app.api.team_entries import gpu_of_query
from app.catalog import Catalog
from app.catalog.gpus import Card
from app.errors import Forbidden, NotFound, UnknownName
from app.storage import inventory
from app.storage.inventory import GpuFilter, GpuKey
from app.telemetry import GpuReading, ReportBatch

router = v1_router("inventory")


@router.post(
    "/agent/reports",
    operation_id="reportNodes",
    summary="Report nodes",
    responses={200: documented({"accepted": 1, "duplicates": 0}, "The reports are stored.")},
)
def report_nodes(
    body: Annotated[ReportBatch, Body(openapi_examples=REPORT_EXAMPLES)], principal: Agent, tx: Tx, service: ServiceDep
) -> Receipt:
    """Store what an agent has read. The answer comes once everything is stored; before it, an agent forgets nothing.

    A report is known by node, boot and sequence, and stored once however often it is sent. A token made for one node
    reports for that node only.
    """
    if principal.node is not None:
        strangers = {report.node.name for report in body.reports} - {principal.node}
        if strangers:
            raise Forbidden(f"this token reports for node {principal.node} only, not for {min(strangers)}")
    recorded = inventory.record(tx, body, received_at=datetime.now(UTC))
    service.metrics.reports.labels("accepted").inc(recorded.accepted)
    service.metrics.reports.labels("duplicate").inc(recorded.duplicates)
    return Receipt(accepted=recorded.accepted, duplicates=recorded.duplicates)


@router.get(
    "/nodes",
    operation_id="listNodes",
    summary="List nodes",
    responses={200: documented({"items": [NODE_EXAMPLE], "next_cursor": None}, "Nodes by name.")},
)
def list_nodes(query: Annotated[NodeQuery, Query()], _: Viewer, tx: Tx, service: ServiceDep) -> Page[NodeView]:
    """Every node that ever reported, by name."""
    filters = query.filters()
    found = inventory.list_nodes(
        tx,
        freshness=service.freshness(),
        limit=query.limit,
        after=None if query.cursor is None else decode(query.cursor, "nodes", filters)[0],
        pool=query.pool,
        statuses=query.status or None,
    )
    cursor = None if found.next_key is None else encode([found.next_key], "nodes", filters)
    return Page(items=[NodeView.of(node) for node in found.items], next_cursor=cursor)


@router.get(
    "/nodes/{node_id}",
    operation_id="getNode",
    summary="Read a node",
    responses={200: documented(NODE_EXAMPLE, "The node as its newest report describes it."), **raises(NotFound)},
)
def get_node(
    node_id: Annotated[int, Path(ge=1, le=2**63 - 1, description="The node's id.", examples=[1])],
    _: Viewer,
    tx: Tx,
    service: ServiceDep,
) -> NodeView:
    """One node, as its newest report describes it."""
    return NodeView.of(inventory.get_node(tx, node_id, freshness=service.freshness()))


@router.get(
    "/inventory/gpus",
    operation_id="listInventoryGpus",
    summary="List the fleet's GPUs",
    responses={
        200: documented({"items": [GPU_EXAMPLE], "next_cursor": None}, "GPUs by node and index."),
        **raises(UnknownName),
    },
)
def list_inventory_gpus(
    query: Annotated[GpuQuery, Query()], _: Viewer, tx: Tx, catalog: CatalogDep, service: ServiceDep
) -> Page[GpuView]:
    """The GPUs of the fleet as the agents last reported them, by node and index."""
    filters = query.filters()
    after = None if query.cursor is None else GpuKey(*decode(query.cursor, "gpus", filters))
    card = _card(query, catalog)
    wanted = GpuFilter(
        pool=query.pool,
        names=_names(query, card),
        other_totals_mib=_other_totals_mib(card, catalog),
        min_free_bytes=query.min_free_bytes,
        statuses=query.status or None,
        node=query.node,
        include_absent=query.include_absent,
    )
    found = inventory.list_gpus(tx, wanted, freshness=service.freshness(), limit=query.limit, after=after)
    cursor = None if found.next_key is None else encode(list(found.next_key), "gpus", filters)
    items = [GpuView.of(gpu, _keys(gpu.reading, catalog)) for gpu in found.items]
    return Page(items=items, next_cursor=cursor)


def _card(query: GpuQuery, catalog: Catalog) -> Card | None:
    """The card that is wanted; None for all."""
    key = gpu_of_query(query.gpu, catalog)
    return None if key is None else catalog.card_at_path(key)


def _names(query: GpuQuery, card: Card | None) -> set[str] | None:
    """The driver's names of the GPUs that are wanted; None for all."""
    names = None if query.name is None else {query.name}
    if card is None:
        return names
    known = set(card.nvml_names)
    return known if names is None else known & names


def _other_totals_mib(card: Card | None, catalog: Catalog) -> set[int]:
    """Totals of the other cards that report a name of this one: they are told apart by nothing else."""
    if card is None:
        return set()
    others = (other for other in catalog.cards() if not set(card.nvml_names).isdisjoint(other.nvml_names))
    return {total for other in others if other.key != card.key for total in other.totals_mib} - card.totals_mib


def _keys(reading: GpuReading, catalog: Catalog) -> list[str]:
    """The card that reports this name and total; all of the name where the total is not known, or is none of theirs, as
    that of a slice.
    """
    if reading.name is None:
        return []
    total_bytes = None if reading.memory is None else reading.memory.total_bytes
    found = catalog.cards_reported_as(reading.name, total_bytes) or catalog.cards_reported_as(reading.name)
    return [card.key for card in found]
