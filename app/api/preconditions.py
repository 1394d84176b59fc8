"""Strong ETags and the conditions callers put on them (RFC 9110, section 13): nobody overwrites what they have not
seen."""

import re
from typing import Annotated

from fastapi import Depends, Header

from app.errors import Fault, InvalidInput, PreconditionRequired, StaleRevision

_ENTITY_TAGS = re.compile(r'\s*(?:W/)?"[\x21\x23-\x7e]*"\s*(?:,\s*(?:W/)?"[\x21\x23-\x7e]*"\s*)*')
_ENTITY_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"')
_ANY = "*"


def etag(revision: int) -> str:
    """The strong ETag of a revision: its number in quotes."""
    return f'"{revision}"'


class IfMatch:
    """What the caller has seen last, from `If-Match`."""

    def __init__(self, header: str) -> None:
        self._tags = _tags("If-Match", header)

    def check(self, revision: int) -> None:
        """Raises StaleRevision unless `revision`, the current one, is among those that the caller named."""
        if _ANY not in self._tags and etag(revision) not in self._tags:
            raise StaleRevision(f"the current revision is {revision}; read it, and send If-Match: {etag(revision)}")


def _required(
    if_match: Annotated[
        str | None,
        Header(alias="If-Match", max_length=1_000, description="`ETag` of the revision to change.", examples=['"1"']),
    ] = None,
) -> IfMatch:
    if if_match is None:
        raise PreconditionRequired("send If-Match with the ETag of the revision you read, so that no change gets lost")
    return IfMatch(if_match)


Precondition = Annotated[IfMatch, Depends(_required, scope="function")]
"""The parameter of an operation that changes something: a missing `If-Match` is refused with 428."""


class IfNoneMatch:
    """What the caller has kept, from `If-None-Match`; None when nothing."""

    def __init__(self, header: str | None) -> None:
        self._tags = frozenset() if header is None else _tags("If-None-Match", header)

    def knows(self, revision: int) -> bool:
        """Whether `revision` is among them, so that a GET is answered 304. Weak tags count here, as RFC 9110 says."""
        return _ANY in self._tags or etag(revision) in {tag.removeprefix("W/") for tag in self._tags}


def _kept(
    if_none_match: Annotated[
        str | None,
        Header(alias="If-None-Match", max_length=1_000, description="`ETag` of what you have.", examples=['"9"']),
    ] = None,
) -> IfNoneMatch:
    return IfNoneMatch(if_none_match)


Kept = Annotated[IfNoneMatch, Depends(_kept)]
"""The parameter of an operation that reads something with an ETag."""


def _tags(name: str, header: str) -> frozenset[str]:
    if header.strip() == _ANY:
        return frozenset({_ANY})
    if _ENTITY_TAGS.fullmatch(header) is None:
        fault = Fault(detail='should be one or more ETags in double quotes, such as "3"', parameter=name)
        raise InvalidInput(f"{name} {fault.detail}", errors=(fault,))
    return frozenset(_ENTITY_TAG.findall(header))
