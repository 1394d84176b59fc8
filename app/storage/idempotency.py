"""The first answer to a request with an `Idempotency-Key`, kept so that the same request gets it again.

`claim`, what the request does, and `store` share one transaction. While it runs, a second request with the same key
waits in its `claim`: it then gets the stored answer, or, if the first was rolled back, does the work itself.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from app.errors import IdempotencyMismatch
from app.storage.tables import idempotency_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """An HTTP answer as it was given the first time."""

    status: int
    headers: dict[str, str]
    body: bytes


def claim(session: Session, *, scope: str, key: str, request_sha256: bytes) -> StoredAnswer | None:
    """The answer given before under `key`, or None: this transaction alone may then do the work and `store` its answer.

    `scope` says whose key it is: the caller and the operation. Raises IdempotencyMismatch when the key was used with
    another request, and Unavailable when the first request takes longer than the lock or statement timeout.
    """
    session.execute(select(func.pg_advisory_xact_lock(_lock_number(scope, key))))
    found = select(idempotency_keys).where(idempotency_keys.c.scope == scope, idempotency_keys.c.key == key)
    row = session.execute(found).one_or_none()
    if row is None:
        return None
    if row.request_sha256 != request_sha256:
        raise IdempotencyMismatch(f"Idempotency-Key {key!r} was used with another request; make a new key for this one")
    return StoredAnswer(status=row.status, headers=row.headers, body=row.body)


def store(
    session: Session, *, scope: str, key: str, request_sha256: bytes, answer: StoredAnswer, now: datetime
) -> None:
    """Keep the answer to a request whose `claim` in this transaction returned None."""
    session.execute(
        insert(idempotency_keys).values(
            scope=scope,
            key=key,
            request_sha256=request_sha256,
            status=answer.status,
            headers=answer.headers,
            body=answer.body,
            created_at=now,
        )
    )


def drop_old(session: Session, *, before: datetime) -> int:
    """Forget the answers stored before that time. Returns how many."""
    dropped = session.execute(
        delete(idempotency_keys).where(idempotency_keys.c.created_at < before).returning(idempotency_keys.c.key)
    )
    return len(dropped.all())


def _lock_number(scope: str, key: str) -> int:
    digest = hashlib.sha256(f"{scope}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], signed=True)
