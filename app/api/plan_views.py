"""What `/v1/plans` takes and gives."""

from datetime import datetime
from typing import Annotated, Any, Self
from uuid import UUID

from fastapi.openapi.models import Example
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr, StringConstraints

from app.api.examples import EIGHT_H100S
from app.api.paging import PageQuery
from app.api.requests import MemoryRequest
from app.planning.specs import Name
from app.storage.plans import Plan, PlanRevision
from app.telemetry import MAX_LABELS

LabelKey = Annotated[StrictStr, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[StrictStr, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f]*$")]
LabelFilter = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}=[^\x00-\x1f]{0,255}$")]


def _distinct(labels: list[str]) -> list[str]:
    if len({label.partition("=")[0] for label in labels}) != len(labels):
        raise ValueError("names a key twice; a plan has one value per key")
    return labels


class PlanRequest(MemoryRequest):
    """A job to keep: the fields of an estimate, with a name."""

    name: Name
    """Name for people. Several plans may have the same."""
    description: Annotated[StrictStr, StringConstraints(max_length=4_000)] | None = None
    """What the plan is for."""
    labels: Annotated[dict[LabelKey, LabelValue], Field(default_factory=dict, max_length=MAX_LABELS)]
    """Free key-value pairs to find plans by."""


class PlanQuery(PageQuery):
    """Which plans to list."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]+$")] | None = None
    """A part of the name, in upper or lower case."""
    label: Annotated[list[LabelFilter], Field(default_factory=list, max_length=MAX_LABELS), AfterValidator(_distinct)]
    """`key=value` that the plan must carry; may be given several times."""


class RevisionQuery(PageQuery):
    """Which revisions to list."""


class View(BaseModel):
    """What every answer shares."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class PlanHead(View):
    """What a plan is called, and which state of it this is."""

    id: UUID
    """Never changes, and is never given again."""
    name: str
    """Name for people."""
    description: str | None
    """What the plan is for."""
    labels: dict[str, str]
    """Free key-value pairs."""
    revision: int
    """Number of the current revision, from 1; the `ETag` is this number in quotes."""
    created_at: datetime
    """When the plan was saved first."""
    created_by: str
    """Name of the token that saved it first."""
    updated_at: datetime
    """When the current revision was saved."""
    engine_version: str
    """Version of the engine that computed the estimate."""


class PlanSummary(PlanHead):
    """A plan in a list: its main figures."""

    model: str
    """The model's name."""
    gpu: str | None
    """Catalogue key of the GPU, if one was named."""
    total_bytes: int
    """Expected memory of the heaviest GPU."""
    upper_bound_bytes: int
    """What `fits` is judged by."""
    fits: bool | None
    """Whether that fits the GPU; null when none was named."""

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """What a list shows of a stored plan."""
        estimate = plan.content.estimate
        return cls(
            **_head(plan),
            model=estimate["model"]["name"],
            gpu=None if estimate["gpu"] is None else estimate["gpu"]["key"],
            total_bytes=estimate["per_gpu"]["total_bytes"],
            upper_bound_bytes=estimate["per_gpu"]["upper_bound_bytes"],
            fits=estimate["fits"],
        )


class PlanView(PlanHead):
    """A plan as it stands."""

    request: dict[str, Any]
    """What was asked: the fields of `POST /v1/estimates/memory`, as they were sent."""
    resolved: dict[str, Any]
    """What the names and defaults of the request meant then: the model's sizes, the training, the layout, the GPU."""
    estimate: dict[str, Any]
    """What came out: the answer of `POST /v1/estimates/memory` at that version. It never changes."""

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """What is shown of a stored plan."""
        content = plan.content
        return cls(**_head(plan), request=content.request, resolved=content.resolved, estimate=content.estimate)


class RevisionView(View):
    """One state that a plan had."""

    plan_id: UUID
    """The plan's id."""
    revision: int
    """Number of the revision, from 1."""
    created_at: datetime
    """When it was saved."""
    created_by: str
    """Name of the token that saved it."""
    engine_version: str
    """Version of the engine that computed the estimate."""
    request: dict[str, Any]
    """What was asked, as it was sent."""
    resolved: dict[str, Any]
    """What the names and defaults of the request meant then."""
    estimate: dict[str, Any]
    """What came out then."""

    @classmethod
    def of(cls, revision: PlanRevision) -> Self:
        """What is shown of a stored revision."""
        return cls(
            plan_id=revision.plan_id,
            revision=revision.revision,
            created_at=revision.created_at,
            created_by=revision.created_by,
            engine_version=revision.content.engine_version,
            request=revision.content.request,
            resolved=revision.content.resolved,
            estimate=revision.content.estimate,
        )


def _head(plan: Plan) -> dict[str, Any]:
    shown = {name: getattr(plan, name) for name in PlanHead.model_fields if name != "engine_version"}
    return {**shown, "engine_version": plan.content.engine_version}


_ID = "6f1c1f0e-7f5e-4d55-9a07-3f1a3f0f1f11"

REQUEST_EXAMPLES: dict[str, Example] = {
    "llama": {
        "summary": "Llama-3.1-8B on one node of eight H100",
        "value": {"name": "Llama 8B, continued pretraining", "labels": {"team": "language"}, **EIGHT_H100S},
    },
    "rule of thumb": {
        "summary": "A billion parameters, by the table of bytes per parameter",
        "value": {"name": "A first idea", "model": {"parameters": 1_000_000_000}, "estimator": "rule_of_thumb"},
    },
}

_CONTENT = {
    "engine_version": "0.1.0",
    "request": EIGHT_H100S,
    "resolved": {"model": {"name": "meta-llama/Llama-3.1-8B", "parameters": 8_030_261_248}, "gpus": 8},
    "estimate": {"per_gpu": {"total_bytes": 34_000_000_000}, "fits": True},
}
_COMMON = {
    "id": _ID,
    "name": "Llama 8B, continued pretraining",
    "description": None,
    "labels": {"team": "language"},
    "revision": 1,
    "created_at": "2026-01-31T12:00:00Z",
    "created_by": "alice",
    "updated_at": "2026-01-31T12:00:00Z",
}

PLAN_EXAMPLE: dict[str, Any] = {**_COMMON, **_CONTENT}
REVISION_EXAMPLE: dict[str, Any] = {
    "plan_id": _ID,
    "revision": 1,
    "created_at": "2026-01-31T12:00:00Z",
    "created_by": "alice",
    **_CONTENT,
}
SUMMARY_EXAMPLE: dict[str, Any] = {
    **_COMMON,
    "engine_version": "0.1.0",
    "model": "meta-llama/Llama-3.1-8B",
    "gpu": "h100-sxm-80gb",
    "total_bytes": 34_000_000_000,
    "upper_bound_bytes": 37_000_000_000,
    "fits": True,
}
