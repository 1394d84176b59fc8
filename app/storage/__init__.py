"""The only place with SQL. Functions take a `Session` first, return frozen records, and never commit."""

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Json = dict[str, Any]
"""A JSON object as the database keeps it."""

Item = TypeVar("Item")
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Item, Key]):
    """Part of a list. `next_key` is what to pass as `after` for the following part; None means there is none."""

    items: tuple[Item, ...]
    next_key: Key | None


class UnusableDatabase(Exception):
    """The database cannot be used at all. The text is one sentence that says why and what to do, without a password."""
