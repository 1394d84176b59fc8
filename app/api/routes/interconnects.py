"""`/v1/interconnects`: links between GPUs and between nodes."""

from typing import Annotated

from fastapi import Path, Query

from app.api.answers import shown_with
from app.api.auth import Viewer
from app.api.deps import CatalogDep
from app.api.paging import Page, PageQuery, page_of
from app.api.problems import raises
from app.api.routing import v1_router
from app.catalog.interconnects import Interconnect, LinkKind, Sweep
from app.errors import NotFound

router = v1_router("catalogue")


class InterconnectQuery(PageQuery):
    """Which links to list."""

    kind: LinkKind | None = None
    """Links of this kind."""
    is_announced: bool | None = None
    """`false` leaves out what cannot be bought yet."""


class InterconnectView(Interconnect):
    """A link, with the operations measured over it for all sizes of messages."""

    sweeps: tuple[Sweep, ...]
    """Time and bandwidth by size: what a latency and a bandwidth can be fitted to."""


@router.get("/interconnects", summary="List interconnects", operation_id="listInterconnects")
@shown_with(query=InterconnectQuery(limit=1, kind="nvlink"))
def list_interconnects(
    query: Annotated[InterconnectQuery, Query()], catalog: CatalogDep, _: Viewer
) -> Page[Interconnect]:
    """Links by key: peak bandwidth in one direction, and what was measured over each, with how it was measured."""
    found = [
        (key, link)
        for key, link in sorted(catalog.interconnects.items())
        if query.kind in (None, link.kind) and query.is_announced in (None, link.is_announced)
    ]
    return page_of(found, query, "interconnects")


@router.get(
    "/interconnects/{interconnect}",
    summary="Read an interconnect",
    operation_id="getInterconnect",
    responses=raises(NotFound),
)
@shown_with(interconnect="efa-4")
def get_interconnect(
    interconnect: Annotated[str, Path(description="Key of the link.", examples=["nvlink-4"])],
    catalog: CatalogDep,
    _: Viewer,
) -> InterconnectView:
    """A link by its key, with the operations that were measured over it from the smallest message to the largest."""
    link = catalog.interconnect_at_path(interconnect)
    sweeps = tuple(sweep for sweep in catalog.sweeps if sweep.interconnect == link.key)
    return InterconnectView(sweeps=sweeps, **{name: getattr(link, name) for name in Interconnect.model_fields})
