"""`Idempotency-Key` on operations that create: sent again, the same request gets the same answer, and nothing is
created twice.

The answer is stored in the transaction that creates, so that there is never one without the other. Failures are not
stored: they created nothing, and the next attempt may succeed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import Depends, Header, Request, Response
from sqlalchemy.orm import Session

from app.api.auth import Principal
from app.storage import idempotency
from app.storage.idempotency import StoredAnswer

KEPT_FOR = timedelta(days=7)
REPLAYED_HEADER = "Idempotency-Replayed"

_KEPT_HEADERS = ("content-type", "etag", "location", "cache-control")


@dataclass(frozen=True, slots=True)
class Once:
    """What the caller sent to have its request done once. `key` is None when it does not care."""

    key: str | None
    operation: str
    request_sha256: bytes

    def answer(self, session: Session, principal: Principal, create: Callable[[], Response]) -> Response:
        """The answer of `create`, or the one it gave to this key before. Raises IdempotencyMismatch for another
        request."""
        if self.key is None:
            return create()
        scope = f"{principal.token_id or principal.name} {self.operation}"
        stored = idempotency.claim(session, scope=scope, key=self.key, request_sha256=self.request_sha256)
        if stored is not None:
            return Response(stored.body, stored.status, {**stored.headers, REPLAYED_HEADER: "true"})
        response = create()
        headers = {name: value for name, value in response.headers.items() if name in _KEPT_HEADERS}
        answer = StoredAnswer(status=response.status_code, headers=headers, body=bytes(response.body))
        idempotency.store(
            session,
            scope=scope,
            key=self.key,
            request_sha256=self.request_sha256,
            answer=answer,
            now=datetime.now(UTC),
        )
        return response


def _once(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            pattern=r"^[\x21-\x7e]+$",
            description="A name for this request, such as a UUID, unique among yours. Sent again within seven days, "
            "the same request gets the same answer and creates nothing new.",
        ),
    ] = None,
) -> Once:
    return Once(idempotency_key, f"{request.method} {request.url.path}", getattr(request.state, "body_sha256", b""))


OnceDep = Annotated[Once, Depends(_once)]
