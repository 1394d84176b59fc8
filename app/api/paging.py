"""Pages of a list: `?limit=&cursor=`, answered with `{"items": […], "next_cursor": "…" | null}`.

A cursor is where the next page begins, with a digest over that, the list and its filters. It is opaque: altered, or
taken to another list or other filters, it is refused rather than answered with something arbitrary.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from app.errors import Fault, InvalidInput

_DIGEST_BYTES = 8

T = TypeVar("T")


class PageQuery(BaseModel):
    """The query parameters that every list takes. Subclasses add filters."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    limit: Annotated[int, Field(ge=1, le=200)] = 50
    """Items per page at most."""

    cursor: Annotated[str, Field(min_length=1, max_length=1_000)] | None = None
    """`next_cursor` of the page before, with the same filters; the first page when left out."""

    def filters(self) -> dict[str, Any]:
        """The filters that are set, without what says which page."""
        return self.model_dump(mode="json", exclude={"limit", "cursor"}, exclude_none=True)


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    items: list[T]
    """The items, in the list's order."""

    next_cursor: str | None
    """Send it as `cursor` for the next page; null on the last."""


def encode(position: list[Any], name: str, filters: Mapping[str, Any]) -> str:
    """The cursor of a `position`, JSON values, in the list `name` under `filters`."""
    payload = json.dumps(position, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(_digest(payload, name, filters) + payload).decode().rstrip("=")


def decode(cursor: str, name: str, filters: Mapping[str, Any]) -> list[Any]:
    """The position in `cursor`. Raises InvalidInput unless `encode` made it for the same list and filters."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    digest, payload = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if digest != _digest(payload, name, filters):
        fault = Fault(detail="is not of this list with these filters; send next_cursor as it came", parameter="cursor")
        raise InvalidInput(f"cursor {fault.detail}", errors=(fault,))
    position: list[Any] = json.loads(payload)
    return position


def page_of(entries: Sequence[tuple[str, T]], query: PageQuery, name: str) -> Page[T]:
    """The page that `query` asks for, out of all `entries` of the list `name`: keys in ascending order, each with its
    item."""
    filters = query.filters()
    after = None if query.cursor is None else decode(query.cursor, name, filters)[0]
    rest = [entry for entry in entries if after is None or entry[0] > after]
    shown = rest[: query.limit]
    cursor = encode([shown[-1][0]], name, filters) if len(rest) > len(shown) else None
    return Page(items=[item for _, item in shown], next_cursor=cursor)


def _digest(payload: bytes, name: str, filters: Mapping[str, Any]) -> bytes:
    told = json.dumps([name, filters], sort_keys=True).encode()
    return hashlib.sha256(told + b"\n" + payload).digest()[:_DIGEST_BYTES]
