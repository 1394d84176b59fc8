"""`/v1/plans`: estimates worth keeping, each with what was asked, what it was resolved to, and what came out."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Body, Path, Query, Response
from pydantic import TypeAdapter

from app.api.answers import REVALIDATED, documented, json_answer
from app.api.auth import Planner, Viewer
from app.api.deps import CatalogDep, HubDep, ServiceDep, Tx
from app.api.hub_models import HubModel, HubModels
from app.api.idempotency import REPLAYED_HEADER, OnceDep
from app.api.paging import Page, decode, encode
from app.api.plan_views import (
    PLAN_EXAMPLE,
    REQUEST_EXAMPLES,
    REVISION_EXAMPLE,
    SUMMARY_EXAMPLE,
    PlanQuery,
    PlanRequest,
    PlanSummary,
    PlanView,
    RevisionQuery,
    RevisionView,
)
from app.api.preconditions import Kept, Precondition, etag
from app.api.problems import raises
from app.api.requests import MemoryRequest, ModelRequest, find_in_hub, resolve_memory
from app.api.routing import v1_router
from app.catalog import Catalog
from app.errors import ImpossibleLayout, NotFound, TonnageError, UnknownName, UnsupportedModel
from app.planning import memory
from app.planning.memory import MemoryEstimate, MemoryInputs
from app.storage import plans
from app.storage.plans import Plan, PlanContent, PlanKey

router = v1_router("plans")

PlanId = Annotated[UUID, Path(description="The plan's id.", examples=["6f1c1f0e-7f5e-4d55-9a07-3f1a3f0f1f11"])]
Revision = Annotated[int, Path(ge=1, le=2**31 - 1, description="Number of the revision, from 1.", examples=[1])]

_ESTIMATE = TypeAdapter(MemoryEstimate)
_COMPUTED = (UnknownName, UnsupportedModel, ImpossibleLayout)
_TAGGED = {"ETag": "The revision, to be sent back as `If-Match` or `If-None-Match`."}
_PLACED = {"Location": "Path of the new plan.", REPLAYED_HEADER: "`true` when this answer was given before."}


@router.post(
    "/plans",
    operation_id="createPlan",
    summary="Save a plan",
    status_code=201,
    response_model=PlanView,
    responses={
        201: documented(PLAN_EXAMPLE, "The plan, as its first revision.", {**_TAGGED, **_PLACED}),
        **raises(*_COMPUTED),
    },
)
def create_plan(
    body: Annotated[PlanRequest, Body(openapi_examples=REQUEST_EXAMPLES)],
    principal: Planner,
    once: OnceDep,
    tx: Tx,
    catalog: CatalogDep,
    hub: HubDep,
    service: ServiceDep,
) -> Response:
    """Estimate the job and keep request, resolved facts, estimate and the engine's version as revision 1 of a new plan.

    Figures sent by a caller are never believed: the service computes the estimate itself. It stays as it is when the
    engine changes later.
    """

    found = _looked_for(body.model, catalog, hub)

    def create() -> Response:
        plan = plans.create(
            tx,
            name=body.name,
            description=body.description,
            labels=body.labels,
            content=_content(body, catalog, found()),
            created_by=principal.name,
            now=datetime.now(UTC),
        )
        service.metrics.plans.labels("created").inc()
        return _answer(plan, status=201, headers={"Location": f"/v1/plans/{plan.id}"})

    return once.answer(tx, principal, create)


@router.get(
    "/plans",
    operation_id="listPlans",
    summary="List plans",
    responses={200: documented({"items": [SUMMARY_EXAMPLE], "next_cursor": None}, "Plans, newest first.")},
)
def list_plans(query: Annotated[PlanQuery, Query()], _: Viewer, tx: Tx) -> Page[PlanSummary]:
    """Plans with their main figures, newest first."""
    filters = query.filters()
    after = None
    if query.cursor is not None:
        created_at, plan_id = decode(query.cursor, "plans", filters)
        after = PlanKey(datetime.fromisoformat(created_at), UUID(plan_id))
    found = plans.list_plans(
        tx, limit=query.limit, after=after, name_contains=query.name, labels=dict(map(_label, query.label))
    )
    key = found.next_key
    cursor = None if key is None else encode([key.created_at.isoformat(), str(key.id)], "plans", filters)
    return Page(items=[PlanSummary.of(plan) for plan in found.items], next_cursor=cursor)


@router.get(
    "/plans/{plan_id}",
    operation_id="getPlan",
    summary="Read a plan",
    response_model=PlanView,
    responses={
        200: documented(PLAN_EXAMPLE, "The plan as it stands.", _TAGGED),
        304: {"description": "`If-None-Match` names the current revision: nothing new."},
        **raises(NotFound),
    },
)
def get_plan(plan_id: PlanId, kept: Kept, _: Viewer, tx: Tx) -> Response:
    """The plan as it stands, with the `ETag` that a change of it must send back as `If-Match`."""
    plan = plans.get(tx, plan_id)
    if kept.knows(plan.revision):
        return Response(status_code=304, headers=_tags(plan))
    return _answer(plan)


@router.put(
    "/plans/{plan_id}",
    operation_id="replacePlan",
    summary="Replace a plan by a new revision",
    response_model=PlanView,
    responses={
        200: documented({**PLAN_EXAMPLE, "revision": 2}, "The plan as it stands now.", _TAGGED),
        **raises(NotFound, *_COMPUTED),
    },
)
def replace_plan(
    plan_id: PlanId,
    body: Annotated[PlanRequest, Body(openapi_examples=REQUEST_EXAMPLES)],
    if_match: Precondition,
    principal: Planner,
    tx: Tx,
    catalog: CatalogDep,
    hub: HubDep,
    service: ServiceDep,
) -> Response:
    """Estimate the job anew and keep it as the next revision; the earlier ones stay readable."""
    found = _looked_for(body.model, catalog, hub)
    current = plans.get(tx, plan_id)
    if_match.check(current.revision)
    plan = plans.new_revision(
        tx,
        plan_id,
        expected_revision=current.revision,
        name=body.name,
        description=body.description,
        labels=body.labels,
        content=_content(body, catalog, found()),
        created_by=principal.name,
        now=datetime.now(UTC),
    )
    service.metrics.plans.labels("revised").inc()
    return _answer(plan)


@router.delete(
    "/plans/{plan_id}",
    operation_id="deletePlan",
    summary="Delete a plan",
    status_code=204,
    response_class=Response,
    response_description="The plan is gone.",
    responses=raises(NotFound),
)
def delete_plan(plan_id: PlanId, if_match: Precondition, _: Planner, tx: Tx, service: ServiceDep) -> None:
    """Take the plan out of every list. Its id is never given again."""
    current = plans.get(tx, plan_id)
    if_match.check(current.revision)
    plans.delete(tx, plan_id, expected_revision=current.revision, now=datetime.now(UTC))
    service.metrics.plans.labels("deleted").inc()


@router.get(
    "/plans/{plan_id}/revisions",
    operation_id="listPlanRevisions",
    summary="List the revisions of a plan",
    responses={
        200: documented({"items": [REVISION_EXAMPLE], "next_cursor": None}, "Revisions, newest first."),
        **raises(NotFound),
    },
)
def list_plan_revisions(
    plan_id: PlanId, query: Annotated[RevisionQuery, Query()], _: Viewer, tx: Tx
) -> Page[RevisionView]:
    """Every state that the plan ever had, newest first."""
    name = f"revisions of {plan_id}"
    after = None if query.cursor is None else decode(query.cursor, name, {})[0]
    found = plans.list_revisions(tx, plan_id, limit=query.limit, after=after)
    cursor = None if found.next_key is None else encode([found.next_key], name, {})
    return Page(items=[RevisionView.of(revision) for revision in found.items], next_cursor=cursor)


@router.get(
    "/plans/{plan_id}/revisions/{revision}",
    operation_id="getPlanRevision",
    summary="Read a revision of a plan",
    responses={200: documented(REVISION_EXAMPLE, "The revision."), **raises(NotFound)},
)
def get_plan_revision(plan_id: PlanId, revision: Revision, _: Viewer, tx: Tx) -> RevisionView:
    """One state that the plan had, as it was computed then."""
    return RevisionView.of(plans.get_revision(tx, plan_id, revision))


def _looked_for(model: ModelRequest, catalog: Catalog, hub: HubModels | None) -> Callable[[], HubModel | None]:
    """Ask the hub now, before `tx` takes a connection to the database, and tell what came of it when that is due."""
    found: Future[HubModel | None] = Future()
    try:
        found.set_result(find_in_hub(model, catalog, hub))
    except TonnageError as error:
        found.set_exception(error)
    return found.result


def _content(request: PlanRequest, catalog: Catalog, found: HubModel | None) -> PlanContent:
    inputs = resolve_memory(request, catalog, found)
    estimate = memory.estimate(inputs)
    return PlanContent(
        request=request.model_dump(mode="json", include=set(MemoryRequest.model_fields), exclude_unset=True),
        resolved=_resolved(inputs, found),
        estimate=_ESTIMATE.dump_python(estimate, mode="json"),
        engine_version=estimate.engine_version,
    )


def _resolved(inputs: MemoryInputs, found: HubModel | None) -> dict[str, Any]:
    """What the names of the request meant on the day it was computed: a catalogue row or a branch may change later."""
    model = inputs.architecture
    return {
        "model": {
            "name": model.name,
            "model_type": model.family.model_type,
            "parameters": model.parameters,
            "sizes": dict(model.sizes),
            "hub": None if found is None else _pinned(found),
        },
        "training": inputs.training.model_dump(mode="json"),
        "parallelism": inputs.parallelism.model_dump(mode="json"),
        "gpu": None if inputs.gpu is None else inputs.gpu.model_dump(mode="json"),
        "gpus": inputs.gpus,
    }


def _pinned(found: HubModel) -> dict[str, Any]:
    return {
        "id": found.id,
        "revision": found.sha,
        "host": found.host,
        "fetched_at": found.fetched_at.isoformat(),
        "config": found.config,
    }


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _tags(plan: Plan) -> dict[str, str]:
    return {"ETag": etag(plan.revision), "Cache-Control": REVALIDATED}


def _answer(plan: Plan, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return json_answer(PlanView.of(plan), status=status, headers={**_tags(plan), **(headers or {})})
