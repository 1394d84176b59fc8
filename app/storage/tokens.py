"""Bearer tokens. The secret itself is never stored: only its SHA-256, which is enough for 256 random bits."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, cast, get_args
from uuid import UUID, uuid4

from sqlalchemy import Row, insert, or_, select, update
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.storage.tables import tokens

Role = Literal["viewer", "planner", "admin", "agent"]
ROLES: tuple[Role, ...] = get_args(Role)

_SECRET_BYTES = 32
_SHOWN_CHARACTERS = 4  # of 43: tells two tokens apart in a list, and leaves 232 bits unknown
_TOUCH_INTERVAL = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token without its secret. `prefix` is the beginning of the secret, for people to recognise it by."""

    id: UUID
    name: str
    role: Role
    prefix: str
    node: str | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


def create(
    session: Session,
    *,
    name: str,
    role: Role,
    expires_at: datetime | None,
    now: datetime,
    node: str | None = None,
) -> tuple[str, Token]:
    """Make a token and return its secret, which cannot be had again, and its record.

    Raises Conflict when a token of that name is not revoked.
    """
    start = f"tng_{role}_"
    secret = start + secrets.token_urlsafe(_SECRET_BYTES)
    token = Token(
        id=uuid4(),
        name=name,
        role=role,
        prefix=secret[: len(start) + _SHOWN_CHARACTERS],
        node=node,
        created_at=now,
        expires_at=expires_at,
        last_used_at=None,
        revoked_at=None,
    )
    values = {field: getattr(token, field) for field in Token.__dataclass_fields__}
    session.execute(insert(tokens).values(secret_sha256=_digest(secret), **values))
    return secret, token


def find(session: Session, secret: str, *, now: datetime) -> Token | None:
    """The token with this secret; None when there is none, or it is revoked or expired."""
    digest = _digest(secret)
    row = session.execute(select(tokens).where(tokens.c.secret_sha256 == digest, _usable(now))).one_or_none()
    if row is None or not hmac.compare_digest(row.secret_sha256, digest):
        return None
    return _token(row)


def touch(session: Session, token_id: UUID, now: datetime) -> None:
    """Note that the token was used, at most once a minute.

    Never waits: when another transaction is noting the same, this one leaves it to that one.
    """
    due = or_(tokens.c.last_used_at.is_(None), tokens.c.last_used_at <= now - _TOUCH_INTERVAL)
    mine = select(tokens.c.id).where(tokens.c.id == token_id, due).with_for_update(skip_locked=True, key_share=True)
    session.execute(update(tokens).where(tokens.c.id == mine.scalar_subquery()).values(last_used_at=now))


def list_tokens(session: Session) -> tuple[Token, ...]:
    """Every token, the revoked and expired ones too, oldest first."""
    rows = session.execute(select(tokens).order_by(tokens.c.created_at, tokens.c.id))
    return tuple(_token(row) for row in rows)


def revoke(session: Session, id_or_name: str, now: datetime) -> Token:
    """Make a token useless from `now` on, found by its id or else by its name.

    Raises NotFound when there is none, or it is revoked already.
    """
    for column, value in ((tokens.c.id, _uuid(id_or_name)), (tokens.c.name, id_or_name)):
        statement = update(tokens).where(column == value, tokens.c.revoked_at.is_(None)).values(revoked_at=now)
        row = session.execute(statement.returning(tokens)).one_or_none()
        if row is not None:
            return _token(row)
    raise NotFound(f"no token in use is called {id_or_name!r}; `tonnage token list` shows all of them")


def any_usable(session: Session, now: datetime) -> bool:
    """Whether there is a token that is neither revoked nor expired."""
    return bool(session.scalar(select(select(tokens.c.id).where(_usable(now)).exists())))


def _usable(now: datetime) -> Any:
    return tokens.c.revoked_at.is_(None) & or_(tokens.c.expires_at.is_(None), tokens.c.expires_at > now)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _token(row: Row[Any]) -> Token:
    return Token(
        id=row.id,
        name=row.name,
        role=cast("Role", row.role),
        prefix=row.prefix,
        node=row.node,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )
