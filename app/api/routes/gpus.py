"""`/v1/gpus`: the GPUs of the catalogue, and the team's own."""

from collections.abc import Iterable
from typing import Annotated

from fastapi import Body, Path, Query, Response
from sqlalchemy.orm import Session

from app.api.answers import described, documented, shown_with
from app.api.auth import Planner, Viewer
from app.api.deps import CatalogDep, Tx
from app.api.entry_examples import GPU_ANSWER, GPU_REQUESTS, NEW_GPU_REQUESTS
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
    refuse_shipped,
    shown,
)
from app.catalog import Catalog
from app.catalog.gpus import Card, GpuFacts
from app.errors import Conflict, Fault, NotFound, UnknownName
from app.storage import entries
from app.units import MIB

router = v1_router("catalogue")

Key = Annotated[str, Path(description="Key or alias of the GPU.", examples=["h100-sxm-80gb"])]


class GpuQuery(OriginQuery):
    """Filters of the list of GPUs."""

    architecture: Annotated[str, Query(min_length=1, max_length=100)] | None = None
    """NVIDIA architecture, such as `Hopper`; upper or lower case."""

    nvml_name: Annotated[str, Query(min_length=1, max_length=200)] | None = None
    """The exact name that NVML gives the card, such as `NVIDIA H100 80GB HBM3`."""

    total_bytes: Annotated[int, Query(ge=1, le=2**63 - 1)] | None = None
    """The total memory that NVML reports: with a name, what tells cards of one name apart."""

    min_memory_bytes: Annotated[int, Query(ge=1, le=2**63 - 1)] | None = None
    """Cards with at least this much memory."""


class NewGpu(GpuFacts, Keyed):
    """A GPU of the team's own, with its key."""


@router.get("/gpus", summary="List GPUs", operation_id="listGpus", responses=raises(UnknownName))
@shown_with(query=GpuQuery(limit=1, architecture="Hopper"))
def list_gpus(query: Annotated[GpuQuery, Query()], catalog: CatalogDep, _: Viewer) -> Page[Card]:
    """GPUs by key: memory as the driver reports it, dense peak rates, bandwidths, MIG profiles, and where each figure
    comes from. With `nvml_name` and `total_bytes`, the card that a driver means; a name or total that no card has is
    refused with the nearest ones.
    """
    cards = catalog.cards() if query.nvml_name is None else _reported(query.nvml_name, query.total_bytes, catalog)
    found = [
        (place, card)
        for place, card in by_key(cards, query.origin)
        if (query.architecture is None or card.architecture.lower() == query.architecture.lower())
        and (query.total_bytes is None or card.reports_total(query.total_bytes))
        and (query.min_memory_bytes is None or card.memory_bytes >= query.min_memory_bytes)
    ]
    return page_of(found, query, "gpus")


@router.get(
    "/gpus/{key}",
    operation_id="getGpu",
    summary="Read a GPU",
    response_model=Card,
    responses={200: {"description": "The GPU.", "headers": described(TAGGED)}, **NOT_MODIFIED, **raises(NotFound)},
)
@shown_with(key="h100-sxm-80gb", kept=IfNoneMatch(None))
def get_gpu(key: Key, catalog: CatalogDep, kept: Kept, _: Viewer) -> Response:
    """A GPU by its key or one of its aliases, or an instance of one by the `gpu` of its MIG profile."""
    return shown(catalog.card_at_path(key), kept)


@router.post(
    "/gpus",
    operation_id="createGpu",
    summary="Store a GPU of your own",
    status_code=201,
    response_model=Card,
    responses={201: documented(GPU_ANSWER, "The GPU.", {**TAGGED, **PLACED}), **raises(Conflict, UnknownName)},
)
def create_gpu(
    body: Annotated[NewGpu, Body(openapi_examples=NEW_GPU_REQUESTS)],
    principal: Planner,
    once: OnceDep,
    tx: Tx,
    catalog: CatalogDep,
) -> Response:
    """Store a GPU for the whole team, to be named wherever a GPU is named. Neither its key nor a name that NVML gives
    it, with its memory, may be those of another card.
    """

    def check() -> None:
        refuse_shipped(body.key, ships=catalog.ships_gpu(body.key))
        _check(body.key, body, catalog)

    return Store("gpu", "/v1/gpus", tx, principal).create(body.key, body, once, check)


@router.put(
    "/gpus/{key}",
    operation_id="replaceGpu",
    summary="Change a GPU of your own",
    response_model=Card,
    responses={
        200: documented(GPU_ANSWER, "The GPU as it stands now.", TAGGED),
        **raises(NotFound, Conflict, UnknownName),
    },
)
def replace_gpu(
    key: Key,
    body: Annotated[GpuFacts, Body(openapi_examples=GPU_REQUESTS)],
    if_match: Precondition,
    principal: Planner,
    tx: Tx,
    catalog: CatalogDep,
) -> Response:
    """Replace what is stored of a GPU. Saved plans keep the GPU as it was."""
    store = Store("gpu", "/v1/gpus", tx, principal)
    return store.replace(key, body, if_match, lambda: _check(key.lower(), body, catalog))


@router.delete(
    "/gpus/{key}",
    operation_id="deleteGpu",
    summary="Delete a GPU of your own",
    status_code=204,
    response_class=Response,
    response_description="The GPU is gone.",
    responses=raises(NotFound, Conflict),
)
def delete_gpu(key: Key, if_match: Precondition, principal: Planner, tx: Tx) -> None:
    """Take a GPU out of every list, once no node shape or instance of yours has it. Saved plans keep it."""
    Store("gpu", "/v1/gpus", tx, principal).delete(key, if_match, lambda: _check_unused(key.lower(), tx))


def _reported(name: str, total_bytes: int | None, catalog: Catalog) -> Iterable[Card]:
    found = catalog.cards_reported_as(name, total_bytes)
    if not found:
        detail = catalog.not_reported(name, total_bytes).detail
        raise UnknownName(detail, errors=(Fault(detail=detail, parameter="nvml_name"),))
    return found


def _check(key: str, facts: GpuFacts, catalog: Catalog) -> None:
    """Raises UnknownName for a link that there is not, and Conflict for a name that means another card already."""
    if facts.interconnect is not None:
        catalog.interconnect(facts.interconnect, pointer="/interconnect")
    for name in facts.nvml_names:
        for total_bytes in (facts.memory_bytes, *facts.other_memory_bytes):
            other = next((card for card in catalog.cards_reported_as(name, total_bytes) if card.key != key), None)
            if other is not None:
                raise Conflict(
                    f"a GPU that reports the name {name!r} with {total_bytes // MIB} MiB is {other.key}; "
                    f"leave the name out of nvml_names, or use {other.key}"
                )


def _check_unused(key: str, tx: Session) -> None:
    kinds: tuple[entries.Kind, ...] = ("node-shape", "instance")
    used = [f"{kind} {user}" for kind in kinds for user in entries.naming(tx, kind, "gpu", key)]
    if used:
        raise Conflict(f"{key} is the GPU of {', '.join(used[:5])}; change or delete what has it first")
