"""What a team adds to the catalogue: GPUs, node shapes and instances of its own, by kind and key."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound, StaleRevision
from app.storage import Json
from app.storage.tables import team_entries

Kind = Literal["gpu", "node-shape", "instance"]

_PATHS: dict[Kind, str] = {"gpu": "gpus", "node-shape": "node-shapes", "instance": "instances"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An entry as it stands now."""

    kind: Kind
    key: str
    revision: int
    content: Json
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str


def create(session: Session, *, kind: Kind, key: str, content: Json, author: str, now: datetime) -> Entry:
    """Store a new entry. Raises Conflict when the team has one of this kind and key."""
    first = {"content": content, "created_at": now, "created_by": author, "updated_at": now, "updated_by": author}
    again = {"revision": team_entries.c.revision + 1, "deleted_at": None, **first}
    statement = (
        insert(team_entries)
        .values(kind=kind, key=key, revision=1, **first)
        .on_conflict_do_update(
            index_elements=[team_entries.c.kind, team_entries.c.key],
            set_=again,
            where=team_entries.c.deleted_at.is_not(None),
        )
        .returning(team_entries)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        path = f"/v1/{_PATHS[kind]}/{key}"
        raise Conflict(f"there is an entry {key} of yours; PUT {path} changes it, or choose another key")
    return _entry(row)


def get(session: Session, kind: Kind, key: str) -> Entry:
    """The entry. Raises NotFound when there is none, or it was deleted."""
    row = session.execute(select(team_entries).where(*_this(kind, key))).one_or_none()
    if row is None:
        raise _unknown(kind, key)
    return _entry(row)


def list_entries(session: Session, kind: Kind) -> tuple[Entry, ...]:
    """All entries of a kind, by key."""
    live = (team_entries.c.kind == kind) & team_entries.c.deleted_at.is_(None)
    return tuple(map(_entry, session.execute(select(team_entries).where(live).order_by(team_entries.c.key))))


def naming(session: Session, kind: Kind, field: str, value: str) -> tuple[str, ...]:
    """Keys of the entries of a kind whose `field` has this value."""
    named = (team_entries.c.kind == kind) & (team_entries.c.content[field].astext == value)
    statement = select(team_entries.c.key).where(named, team_entries.c.deleted_at.is_(None))
    return tuple(session.scalars(statement.order_by(team_entries.c.key)))


def replace(
    session: Session, kind: Kind, key: str, *, expected_revision: int, content: Json, author: str, now: datetime
) -> Entry:
    """Store a new state of the entry, provided that `expected_revision` is still its current one.

    Raises StaleRevision when it is not, and NotFound when there is no such entry.
    """
    changed = {"content": content, "updated_at": now, "updated_by": author}
    return _compare_and_set(session, kind, key, expected_revision, {"revision": expected_revision + 1, **changed})


def delete(session: Session, kind: Kind, key: str, *, expected_revision: int, now: datetime) -> None:
    """Take the entry out of every list, provided that `expected_revision` is still its current one.

    Raises StaleRevision when it is not, and NotFound when there is no such entry.
    """
    _compare_and_set(session, kind, key, expected_revision, {"deleted_at": now})


def _this(kind: Kind, key: str) -> tuple[Any, ...]:
    return (team_entries.c.kind == kind, team_entries.c.key == key, team_entries.c.deleted_at.is_(None))


def _compare_and_set(session: Session, kind: Kind, key: str, expected_revision: int, values: dict[str, Any]) -> Entry:
    same = (*_this(kind, key), team_entries.c.revision == expected_revision)
    row = session.execute(update(team_entries).where(*same).values(**values).returning(team_entries)).one_or_none()
    if row is not None:
        return _entry(row)
    get(session, kind, key)
    raise StaleRevision(f"revision {expected_revision} of {key} is not the current one; read it again")


def _unknown(kind: Kind, key: str) -> NotFound:
    path = f"GET /v1/{_PATHS[kind]}?origin=team"
    return NotFound(f"there is no entry {key} of yours; {path} lists those there are. What ships cannot be changed")


def _entry(row: Row[Any]) -> Entry:
    return Entry(
        kind=row.kind,
        key=row.key,
        revision=row.revision,
        content=row.content,
        created_at=row.created_at,
        created_by=row.created_by,
        updated_at=row.updated_at,
        updated_by=row.updated_by,
    )
