"""What the model hub said, kept: each `config.json` by its commit, and the commit that a branch or tag was last at.

A commit never changes, so its file is good for ever; when a branch has to be asked for again is the caller's to say.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, exists, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.storage import Json
from app.storage.tables import hub_configs, hub_revisions

_USE_IS_NOTED_EVERY = timedelta(days=1)  # so that reading is not always writing


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedConfig:
    """The `config.json` of a model at the commit `sha`, and the `host` of the hub it came from."""

    model_id: str
    sha: str
    config: Json
    host: str
    fetched_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedRevision:
    """Where a branch or tag was when the hub was asked last, and the file there."""

    config: CachedConfig
    checked_at: datetime


def at_commit(session: Session, model_id: str, sha: str, *, now: datetime) -> CachedConfig | None:
    """The file of that commit, from whichever hub it came; None when it was never fetched, or is long unused."""
    wanted = select(hub_configs).where(hub_configs.c.model_id == model_id, hub_configs.c.sha == sha)
    row = session.execute(wanted).one_or_none()
    return None if row is None else _used(session, row, now)


def at_revision(session: Session, hub: str, model_id: str, revision: str, *, now: datetime) -> CachedRevision | None:
    """What the hub at the URL `hub` said last of a branch or tag; None when it was not asked yet."""
    is_there = (hub_configs.c.model_id == hub_revisions.c.model_id) & (hub_configs.c.sha == hub_revisions.c.sha)
    wanted = (
        select(hub_configs, hub_revisions.c.checked_at)
        .join(hub_revisions, is_there)
        .where(hub_revisions.c.hub == hub, hub_revisions.c.model_id == model_id, hub_revisions.c.revision == revision)
    )
    row = session.execute(wanted).one_or_none()
    return None if row is None else CachedRevision(config=_used(session, row, now), checked_at=row.checked_at)


def store(session: Session, config: CachedConfig, *, hub: str, revision: str, checked_at: datetime) -> None:
    """Keep the file, unless its commit is known, and that the hub at the URL `hub` said `revision` is there.

    An older word than the one stored changes nothing: look-ups may overtake each other.
    """
    kept = {name: getattr(config, name) for name in CachedConfig.__dataclass_fields__}
    session.execute(insert(hub_configs).values(**kept, used_at=checked_at).on_conflict_do_nothing())
    said = insert(hub_revisions).values(
        hub=hub, model_id=config.model_id, revision=revision, sha=config.sha, checked_at=checked_at
    )
    newer = {"sha": said.excluded.sha, "checked_at": said.excluded.checked_at}
    session.execute(
        said.on_conflict_do_update(
            index_elements=hub_revisions.primary_key,
            set_=newer,
            where=hub_revisions.c.checked_at <= said.excluded.checked_at,
        )
    )


def drop_unused(session: Session, *, before: datetime) -> int:
    """Forget the files that nobody asked for since that time. Returns how many."""
    dropped = session.execute(delete(hub_configs).where(hub_configs.c.used_at < before).returning(hub_configs.c.sha))
    count = len(dropped.all())
    if count:
        is_kept = exists().where(
            hub_configs.c.model_id == hub_revisions.c.model_id, hub_configs.c.sha == hub_revisions.c.sha
        )
        session.execute(delete(hub_revisions).where(~is_kept))
    return count


def _used(session: Session, row: Row[Any], now: datetime) -> CachedConfig:
    if row.used_at < now - _USE_IS_NOTED_EVERY:
        session.execute(
            update(hub_configs)
            .where(hub_configs.c.model_id == row.model_id, hub_configs.c.sha == row.sha)
            .values(used_at=now)
        )
    return CachedConfig(**{name: getattr(row, name) for name in CachedConfig.__dataclass_fields__})
