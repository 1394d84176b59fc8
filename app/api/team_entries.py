"""What storing an entry of one's own means over HTTP, the same for GPUs, node shapes and instances."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from fastapi import Response
from pydantic import StrictStr, StringConstraints
from sqlalchemy.orm import Session

from app.api.answers import REVALIDATED, json_answer
from app.api.auth import Principal
from app.api.idempotency import REPLAYED_HEADER, Once
from app.api.paging import PageQuery
from app.api.preconditions import IfMatch, IfNoneMatch, etag
from app.api.team_catalog import Viewed, view_of
from app.catalog import Catalog
from app.errors import Conflict, Fault, UnknownName
from app.planning.specs import Spec
from app.storage import entries
from app.storage.entries import Entry, Kind

Origin = Literal["catalogue", "team"]
EntryKey = Annotated[StrictStr, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*(:[a-z0-9._-]+)*$", max_length=100)]

TAGGED = {"ETag": "The revision of an entry of yours, to be sent back as `If-Match` or `If-None-Match`."}
PLACED = {"Location": "Path of the new entry.", REPLAYED_HEADER: "`true` when this answer was given before."}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "`If-None-Match` names the current revision of an entry of yours: nothing new."}
}

View = TypeVar("View", bound=Viewed)


class Keyed(Spec):
    """What a new entry has that a changed one keeps."""

    key: EntryKey
    """Key to name it by, in small letters, digits and `.`, `_`, `-`, `:`; none that the catalogue has."""


class OriginQuery(PageQuery):
    """Whose entries to list."""

    origin: Origin | None = None
    """`catalogue` for what ships with Tonnage, `team` for your own; both when left out."""


class _Author(TypedDict):
    author: str
    now: datetime


@dataclass(frozen=True, slots=True)
class Store:
    """Storing entries of one kind, under `path`, for one request."""

    kind: Kind
    path: str
    session: Session
    principal: Principal

    def create(self, key: str, facts: Spec, once: Once, check: Callable[[], None]) -> Response:
        """Store a new entry that passes `check`. Raises Conflict when the team has one of this key."""

        def create() -> Response:
            check()
            content = facts.model_dump(mode="json", exclude={"key"})
            entry = entries.create(self.session, kind=self.kind, key=key, content=content, **self._by())
            return _answer(entry, status=201, location=f"{self.path}/{key}")

        return once.answer(self.session, self.principal, create)

    def replace(self, key: str, facts: Spec, if_match: IfMatch, check: Callable[[], None]) -> Response:
        """Store the entry's next state, which passes `check`. Raises NotFound and StaleRevision."""
        current = entries.get(self.session, self.kind, key.lower())
        if_match.check(current.revision)
        check()
        entry = entries.replace(
            self.session,
            self.kind,
            current.key,
            expected_revision=current.revision,
            content=facts.model_dump(mode="json"),
            **self._by(),
        )
        return _answer(entry)

    def delete(self, key: str, if_match: IfMatch, check: Callable[[], None] = lambda: None) -> None:
        """Take an entry that passes `check` out of every list. Raises NotFound and StaleRevision."""
        current = entries.get(self.session, self.kind, key.lower())
        if_match.check(current.revision)
        check()
        now = datetime.now(UTC)
        entries.delete(self.session, self.kind, current.key, expected_revision=current.revision, now=now)

    def _by(self) -> _Author:
        return {"author": self.principal.name, "now": datetime.now(UTC)}


def refuse_shipped(key: str, *, ships: bool) -> None:
    """Raises Conflict for a key that the catalogue has: what ships is never replaced without a word."""
    if ships:
        raise Conflict(f"{key} ships with Tonnage and cannot be replaced; choose another key, such as our-{key}")


def gpu_of_query(name: str | None, catalog: Catalog) -> str | None:
    """The key of the GPU that a query names. Raises UnknownName with the nearest keys."""
    return None if name is None else _of_query("gpu", lambda: catalog.gpu(name).key)


def interconnect_of_query(name: str | None, catalog: Catalog) -> str | None:
    """The key of the link that a query names. Raises UnknownName with the nearest keys."""
    return None if name is None else _of_query("interconnect", lambda: catalog.interconnect(name, pointer="").key)


def _of_query(parameter: str, find: Callable[[], str]) -> str:
    try:
        return find()
    except UnknownName as error:
        raise UnknownName(error.detail, errors=(Fault(detail=error.detail, parameter=parameter),)) from None


def shown(entry: Viewed, kept: IfNoneMatch) -> Response:
    """The answer to whoever reads one entry; what ships has no revision and no ETag."""
    if entry.team is None:
        return json_answer(entry)
    headers = {"ETag": etag(entry.team.revision), "Cache-Control": REVALIDATED}
    if kept.knows(entry.team.revision):
        return Response(status_code=304, headers=headers)
    return json_answer(entry, headers=headers)


def by_key(entries: Iterable[View], origin: Origin | None) -> list[tuple[str, View]]:
    """Entries of an origin in the order of a list, each with its place: by key, what ships before the team's of the
    same key.
    """
    placed = ((f"{entry.key} {'catalogue' if entry.team is None else 'team'}", entry) for entry in entries)
    return sorted(
        ((place, entry) for place, entry in placed if origin is None or place.endswith(f" {origin}")),
        key=lambda of: of[0],
    )


def _answer(entry: Entry, *, status: int = 200, location: str | None = None) -> Response:
    headers = {"ETag": etag(entry.revision), "Cache-Control": REVALIDATED}
    if location is not None:
        headers["Location"] = location
    return json_answer(view_of(entry), status=status, headers=headers)
