"""Plans and their revisions. A plan is never rewritten: every change is a new revision beside the old ones."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import Row, Select, insert, select, tuple_, update
from sqlalchemy.orm import Session

from app.errors import NotFound, StaleRevision
from app.storage import Json, Page
from app.storage.tables import plan_revisions, plans


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanContent:
    """What was asked, the facts it was resolved to, what came out, and the version of the engine that said so."""

    request: Json
    resolved: Json
    estimate: Json
    engine_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRevision:
    """One state of a plan's content. Revisions count from 1."""

    plan_id: UUID
    revision: int
    content: PlanContent
    created_at: datetime
    created_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A plan as it stands now. `updated_at` is the time of its current revision."""

    id: UUID
    name: str
    description: str | None
    labels: dict[str, str]
    revision: int
    content: PlanContent
    created_at: datetime
    created_by: str
    updated_at: datetime


class PlanKey(NamedTuple):
    """Place of a plan in the list, newest first."""

    created_at: datetime
    id: UUID


def create(
    session: Session,
    *,
    name: str,
    description: str | None,
    labels: dict[str, str],
    content: PlanContent,
    created_by: str,
    now: datetime,
) -> Plan:
    """Store a plan as its first revision."""
    plan = Plan(
        id=uuid4(),
        name=name,
        description=description,
        labels=labels,
        revision=1,
        content=content,
        created_at=now,
        created_by=created_by,
        updated_at=now,
    )
    session.execute(
        insert(plans).values(
            id=plan.id,
            name=name,
            description=description,
            labels=labels,
            revision=1,
            created_at=now,
            created_by=created_by,
            updated_at=now,
        )
    )
    first = PlanRevision(plan_id=plan.id, revision=1, content=content, created_at=now, created_by=created_by)
    _add_revision(session, first)
    return plan


def get(session: Session, plan_id: UUID) -> Plan:
    """The plan as it stands. Raises NotFound when there is none, or it was deleted."""
    row = session.execute(_current().where(plans.c.id == plan_id)).one_or_none()
    if row is None:
        raise _unknown(plan_id)
    return _plan(row)


def list_plans(
    session: Session,
    *,
    limit: int,
    after: PlanKey | None = None,
    name_contains: str | None = None,
    labels: dict[str, str] | None = None,
) -> Page[Plan, PlanKey]:
    """Plans from the newest to the oldest, at most `limit`, behind `after`.

    `name_contains` is matched as it is written, in upper or lower case; a plan must carry every one of `labels`.
    """
    statement = _current().order_by(plans.c.created_at.desc(), plans.c.id.desc()).limit(limit + 1)
    if after is not None:
        statement = statement.where(tuple_(plans.c.created_at, plans.c.id) < tuple_(after.created_at, after.id))
    if name_contains is not None:
        statement = statement.where(plans.c.name.icontains(name_contains, autoescape=True))
    if labels:
        statement = statement.where(plans.c.labels.contains(labels))
    rows = session.execute(statement).all()
    found = tuple(_plan(row) for row in rows[:limit])
    more = len(rows) > limit
    return Page(items=found, next_key=PlanKey(found[-1].created_at, found[-1].id) if more else None)


def new_revision(
    session: Session,
    plan_id: UUID,
    *,
    expected_revision: int,
    name: str,
    description: str | None,
    labels: dict[str, str],
    content: PlanContent,
    created_by: str,
    now: datetime,
) -> Plan:
    """Replace the plan by a new revision, provided that `expected_revision` is still its current one.

    Raises StaleRevision when it is not, and NotFound when there is no such plan.
    """
    changes = {"name": name, "description": description, "labels": labels, "updated_at": now}
    row = _compare_and_set(session, plan_id, expected_revision, {"revision": expected_revision + 1, **changes})
    _add_revision(
        session,
        PlanRevision(plan_id=plan_id, revision=row.revision, content=content, created_at=now, created_by=created_by),
    )
    return _plan(row, content)


def delete(session: Session, plan_id: UUID, *, expected_revision: int, now: datetime) -> None:
    """Take the plan out of every list, provided that `expected_revision` is still its current one.

    Raises StaleRevision when it is not, and NotFound when there is no such plan.
    """
    _compare_and_set(session, plan_id, expected_revision, {"deleted_at": now})


def get_revision(session: Session, plan_id: UUID, revision: int) -> PlanRevision:
    """One revision of a plan. Raises NotFound when the plan or the revision does not exist."""
    row = session.execute(_revisions(plan_id).where(plan_revisions.c.revision == revision)).one_or_none()
    if row is None:
        raise NotFound(
            f"plan {plan_id} has no revision {revision}; GET /v1/plans/{plan_id}/revisions lists those it has"
        )
    return _revision(row)


def list_revisions(session: Session, plan_id: UUID, *, limit: int, after: int | None = None) -> Page[PlanRevision, int]:
    """Revisions of a plan from the newest to the oldest, at most `limit`, older than revision `after`.

    Raises NotFound when there is no such plan.
    """
    statement = _revisions(plan_id).order_by(plan_revisions.c.revision.desc()).limit(limit + 1)
    if after is not None:
        statement = statement.where(plan_revisions.c.revision < after)
    rows = session.execute(statement).all()
    if not rows and not _exists(session, plan_id):
        raise _unknown(plan_id)
    found = tuple(_revision(row) for row in rows[:limit])
    return Page(items=found, next_key=found[-1].revision if len(rows) > limit else None)


def _current() -> Select[Any]:
    contents = [getattr(plan_revisions.c, field) for field in PlanContent.__dataclass_fields__]
    same = (plan_revisions.c.plan_id == plans.c.id) & (plan_revisions.c.revision == plans.c.revision)
    return select(plans, *contents).join(plan_revisions, same).where(plans.c.deleted_at.is_(None))


def _revisions(plan_id: UUID) -> Select[Any]:
    joined = select(plan_revisions).join(plans, plans.c.id == plan_revisions.c.plan_id)
    return joined.where(plans.c.id == plan_id, plans.c.deleted_at.is_(None))


def _exists(session: Session, plan_id: UUID) -> bool:
    found = select(plans.c.id).where(plans.c.id == plan_id, plans.c.deleted_at.is_(None))
    return session.scalar(found) is not None


def _compare_and_set(session: Session, plan_id: UUID, expected_revision: int, values: dict[str, Any]) -> Row[Any]:
    same = (plans.c.id == plan_id) & (plans.c.revision == expected_revision) & plans.c.deleted_at.is_(None)
    row = session.execute(update(plans).where(same).values(**values).returning(plans)).one_or_none()
    if row is not None:
        return row
    if _exists(session, plan_id):
        raise StaleRevision(f"revision {expected_revision} of plan {plan_id} is not the current one; read it again")
    raise _unknown(plan_id)


def _add_revision(session: Session, added: PlanRevision) -> None:
    session.execute(
        insert(plan_revisions).values(
            plan_id=added.plan_id,
            revision=added.revision,
            request=added.content.request,
            resolved=added.content.resolved,
            estimate=added.content.estimate,
            engine_version=added.content.engine_version,
            created_at=added.created_at,
            created_by=added.created_by,
        )
    )


def _unknown(plan_id: UUID) -> NotFound:
    return NotFound(f"there is no plan {plan_id}; GET /v1/plans lists those there are")


def _content(row: Row[Any]) -> PlanContent:
    return PlanContent(
        request=row.request, resolved=row.resolved, estimate=row.estimate, engine_version=row.engine_version
    )


def _revision(row: Row[Any]) -> PlanRevision:
    return PlanRevision(
        plan_id=row.plan_id,
        revision=row.revision,
        content=_content(row),
        created_at=row.created_at,
        created_by=row.created_by,
    )


def _plan(row: Row[Any], content: PlanContent | None = None) -> Plan:
    return Plan(
        id=row.id,
        name=row.name,
        description=row.description,
        labels=row.labels,
        revision=row.revision,
        content=content or _content(row),
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
    )
