"""What can go wrong, in the domain's words. Knows no HTTP: `app.api.problems` maps each class to a status.

TonnageError
├── InvalidInput              a request that cannot be meant: `errors` names each place
│   ├── UnknownName           a name that no catalogue has; says the nearest ones
│   ├── UnsupportedModel      a model family or field whose meaning is unknown
│   └── ImpossibleLayout      sizes that do not divide what they split, or more ranks than GPUs
├── MalformedBody             not JSON, not UTF-8, a duplicate key, a NaN
│   └── MalformedTensors      a file of tensors that is cut short, or is not what its header says
├── BodyTooLarge
├── UnsupportedMediaType
├── NotFound
├── NotAllowed                the path exists, the method does not
├── Unauthenticated
├── Forbidden
├── Conflict                  a name that is taken
├── StaleRevision             If-Match names an older revision
├── PreconditionRequired      If-Match is missing
├── IdempotencyMismatch       the key was used with another body
└── Unavailable               the database is away, or the service is shutting down
"""

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import ClassVar, Self

LIKE = 0.6
"""From which likeness on, of 0 to 1, a known name is offered for an unknown one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One place in a request and what is wrong there.

    `pointer` is an RFC 6901 JSON pointer into the body ("" is the whole body); a query, path or header value is named
    by `parameter` instead, since a pointer cannot reach it.
    """

    detail: str
    pointer: str | None = None
    parameter: str | None = None


class TonnageError(Exception):
    """Something a caller can act on. `detail` says what to do next; `slug` names the problem type for good."""

    slug: ClassVar[str] = "error"
    title: ClassVar[str] = "Error"

    def __init__(self, detail: str, *, errors: tuple[Fault, ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = errors


class InvalidInput(TonnageError):
    """The request is well-formed JSON but cannot be meant as it stands. `errors` points at each place."""

    slug = "invalid-input"
    title = "The request has values that cannot be used"

    @classmethod
    def at(cls, pointer: str, detail: str) -> Self:
        """The error for one place in the body, given by its JSON pointer."""
        return cls(detail, errors=(Fault(detail=detail, pointer=pointer),))


class UnknownName(InvalidInput):
    """A name that is not in the catalogue it was looked up in. The detail lists the nearest names that are."""

    slug = "unknown-name"
    title = "No such entry"

    @classmethod
    def among(
        cls, kind: str, name: str, known: list[str], *, pointer: str, see: str, instead: str | None = None
    ) -> Self:
        """The error for `name`, with the names nearest to it out of `known`, or where to `see` all of them.

        `instead` is what else can be sent when none of them is meant.
        """
        likeness = {entry: _likeness(name.lower(), entry.lower()) for entry in known}
        nearest = sorted((entry for entry in known if likeness[entry] >= LIKE), key=lambda entry: -likeness[entry])[:3]
        hint = f"nearest: {', '.join(nearest)}" if nearest else f"see {see}"
        return cls.at(pointer, "; ".join([f"unknown {kind} {name!r}", hint, *([instead] if instead else [])]))


def _likeness(name: str, entry: str) -> float:
    """How alike two names are, from 0 to 1; a name that begins like `entry` counts as much as one that is all of it."""
    matchers = [SequenceMatcher(None, name, part) for part in (entry, entry[: len(name)], entry.rpartition("/")[2])]
    return max(matcher.ratio() if matcher.real_quick_ratio() >= LIKE else 0.0 for matcher in matchers)


class UnsupportedModel(InvalidInput):
    """A model family, or a field of one, whose meaning is unknown. Counting it would be a guess, so it is refused."""

    slug = "unsupported-model"
    title = "This model cannot be counted exactly"


class ImpossibleLayout(InvalidInput):
    """A parallel layout that no framework can run: a size does not divide what it splits, or there are too few GPUs."""

    slug = "impossible-layout"
    title = "This layout cannot run"


class MalformedBody(TonnageError):
    """The body is not one JSON document in UTF-8: broken syntax, a duplicate key, NaN or Infinity, nesting too deep."""

    slug = "malformed-body"
    title = "The body is not valid JSON"


class MalformedTensors(MalformedBody):
    """The file of tensors is cut short, or its header cannot be true: offsets that overlap or leave gaps, sizes that do
    not fit shapes, unknown types.
    """

    slug = "malformed-tensors"
    title = "The file of tensors cannot be read"


class BodyTooLarge(TonnageError):
    """The body is larger than the service accepts."""

    slug = "body-too-large"
    title = "The body is too large"


class UnsupportedMediaType(TonnageError):
    """The body is of a type that this path does not read."""

    slug = "unsupported-media-type"
    title = "The body has the wrong media type"


class NotFound(TonnageError):
    """Nothing is stored under this path."""

    slug = "not-found"
    title = "Not found"


class NotAllowed(TonnageError):
    """The path exists, but not with this method."""

    slug = "method-not-allowed"
    title = "Method not allowed"


class Unauthenticated(TonnageError):
    """No token was sent, or it is unknown, expired or revoked."""

    slug = "unauthenticated"
    title = "A valid token is needed"


class Forbidden(TonnageError):
    """The token is valid, but its role may not do this."""

    slug = "forbidden"
    title = "This token may not do that"


class Conflict(TonnageError):
    """What was asked contradicts what is stored, such as a name that is already taken."""

    slug = "conflict"
    title = "Conflicts with what is stored"


class StaleRevision(TonnageError):
    """`If-Match` names a revision that is no longer the current one: somebody else changed it in between."""

    slug = "stale-revision"
    title = "Changed by somebody else"


class PreconditionRequired(TonnageError):
    """Changing this needs `If-Match` with the ETag that was read, so that nobody's change is overwritten."""

    slug = "precondition-required"
    title = "If-Match is needed"


class IdempotencyMismatch(TonnageError):
    """The `Idempotency-Key` was used before with another request."""

    slug = "idempotency-mismatch"
    title = "Idempotency key used for another request"


class Unavailable(TonnageError):
    """The service cannot answer just now: the database is away. Nothing was stored; send the same request again."""

    slug = "unavailable"
    title = "Temporarily unavailable"
