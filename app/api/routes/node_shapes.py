"""`/v1/node-shapes`: kinds of nodes, and the team's own."""

from itertools import chain
from typing import Annotated

from fastapi import Body, Path, Query, Response

from app.api.answers import described, documented, shown_with
from app.api.auth import Planner, Viewer
from app.api.deps import CatalogDep, Tx
from app.api.entry_examples import NEW_SHAPE_REQUESTS, SHAPE_ANSWER, SHAPE_REQUESTS
from app.api.idempotency import OnceDep
from app.api.paging import Page, page_of
from app.api.preconditions import IfNoneMatch, Kept, Precondition
from app.api.problems import raises
from app.api.routing import v1_router
from app.api.team_entries import (
    NOT_MODIFIED,
    PLACED,
    TAGGED,
    Keyed,
    OriginQuery,
    Store,
    by_key,
    gpu_of_query,
    interconnect_of_query,
    refuse_shipped,
    shown,
)
from app.catalog import Catalog
from app.catalog.nodes import NodeFacts, NodeShape
from app.errors import Conflict, NotFound, UnknownName

router = v1_router("catalogue")

Key = Annotated[str, Path(description="Key of the node shape.", examples=["dgx-h100"])]


class ShapeQuery(OriginQuery):
    """Which node shapes to list."""

    gpu: Annotated[str, Query(min_length=1, max_length=200)] | None = None
    """Shapes with this GPU, by its key or an alias."""
    interconnect: Annotated[str, Query(min_length=1, max_length=200)] | None = None
    """Shapes whose GPUs or adapters have this link, by its key."""
    instance_type: Annotated[str, Query(min_length=1, max_length=200)] | None = None
    """Shapes that an instance of a cloud is, as its seller calls it."""
    min_gpus: Annotated[int, Query(ge=1, le=1_000_000)] | None = None
    """Shapes with at least this many GPUs in a node."""


class NewShape(NodeFacts, Keyed):
    """A node shape of the team's own, with its key."""


@router.get("/node-shapes", summary="List node shapes", operation_id="listNodeShapes", responses=raises(UnknownName))
@shown_with(query=ShapeQuery(limit=1, gpu="h100-sxm-80gb"))
def list_node_shapes(query: Annotated[ShapeQuery, Query()], catalog: CatalogDep, _: Viewer) -> Page[NodeShape]:
    """Node shapes by key: their GPUs, the link between these, and the network outside."""
    gpu, link = gpu_of_query(query.gpu, catalog), interconnect_of_query(query.interconnect, catalog)
    shapes = chain(catalog.node_shapes.values(), catalog.team.node_shapes.values())
    found = [
        (place, shape)
        for place, shape in by_key(shapes, query.origin)
        if gpu in (None, shape.gpu)
        and link in (None, shape.intra_node_link, shape.network, shape.host_link)
        and (query.instance_type is None or query.instance_type in shape.instance_types)
        and (query.min_gpus is None or shape.gpus_per_node >= query.min_gpus)
    ]
    return page_of(found, query, "node shapes")


@router.get(
    "/node-shapes/{key}",
    operation_id="getNodeShape",
    summary="Read a node shape",
    response_model=NodeShape,
    responses={200: {"description": "The shape.", "headers": described(TAGGED)}, **NOT_MODIFIED, **raises(NotFound)},
)
@shown_with(key="dgx-h100", kept=IfNoneMatch(None))
def get_node_shape(key: Key, catalog: CatalogDep, kept: Kept, _: Viewer) -> Response:
    """A node shape by its key."""
    return shown(catalog.node_shape_at_path(key), kept)


@router.post(
    "/node-shapes",
    operation_id="createNodeShape",
    summary="Store a node shape of your own",
    status_code=201,
    response_model=NodeShape,
    responses={201: documented(SHAPE_ANSWER, "The shape.", {**TAGGED, **PLACED}), **raises(Conflict, UnknownName)},
)
def create_node_shape(
    body: Annotated[NewShape, Body(openapi_examples=NEW_SHAPE_REQUESTS)],
    principal: Planner,
    once: OnceDep,
    tx: Tx,
    catalog: CatalogDep,
) -> Response:
    """Store a node shape for the whole team."""

    def check() -> None:
        refuse_shipped(body.key, ships=body.key in catalog.node_shapes)
        _check(body, catalog)

    return Store("node-shape", "/v1/node-shapes", tx, principal).create(body.key, body, once, check)


@router.put(
    "/node-shapes/{key}",
    operation_id="replaceNodeShape",
    summary="Change a node shape of your own",
    response_model=NodeShape,
    responses={
        200: documented(SHAPE_ANSWER, "The shape as it stands now.", TAGGED),
        **raises(NotFound, UnknownName),
    },
)
def replace_node_shape(
    key: Key,
    body: Annotated[NodeFacts, Body(openapi_examples=SHAPE_REQUESTS)],
    if_match: Precondition,
    principal: Planner,
    tx: Tx,
    catalog: CatalogDep,
) -> Response:
    """Replace what is stored of a node shape."""
    store = Store("node-shape", "/v1/node-shapes", tx, principal)
    return store.replace(key, body, if_match, lambda: _check(body, catalog))


@router.delete(
    "/node-shapes/{key}",
    operation_id="deleteNodeShape",
    summary="Delete a node shape of your own",
    status_code=204,
    response_class=Response,
    response_description="The shape is gone.",
    responses=raises(NotFound),
)
def delete_node_shape(key: Key, if_match: Precondition, principal: Planner, tx: Tx) -> None:
    """Take a node shape out of every list."""
    Store("node-shape", "/v1/node-shapes", tx, principal).delete(key, if_match)


def _check(facts: NodeFacts, catalog: Catalog) -> None:
    """Raises UnknownName for a GPU or a link that there is not."""
    catalog.gpu(facts.gpu, pointer="/gpu")
    for field in ("intra_node_link", "host_link", "network"):
        link = getattr(facts, field)
        if link is not None:
            catalog.interconnect(link, pointer=f"/{field}")
