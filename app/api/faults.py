"""What pydantic found wrong in a request, in words that a person can act on.

A place in the body is an RFC 6901 pointer that really exists in what was sent: pydantic's own location also names the
branches of unions it tried, which no caller can see. A value is echoed only when it is short.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from fastapi.exceptions import RequestValidationError

from app.errors import Fault

_LONGEST_ECHO = 60
_LONGEST_NAME = 100
_MAX_LOOKED_AT = 100  # a body may be wrong in a million places, and nobody reads more than the first few
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
_SUBJECT = re.compile(r"^(Input|String|List|Dictionary|Tuple) (?=should)| after validation")
_JSON_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
}

_Path = tuple[str | int, ...]


def faults_of(error: RequestValidationError, schema: Mapping[str, Any], components: Mapping[str, Any]) -> list[Fault]:
    """Each wrong place once. `schema` documents the body and `components` what it refers to; unknown fields get the
    nearest field that it has.
    """
    found: dict[tuple[str, _Path], list[str]] = {}
    branches: set[tuple[str, _Path]] = set()
    for entry in error.errors()[:_MAX_LOOKED_AT]:
        origin, *location = entry["loc"]
        path, in_branch = _path(location, error.body, entry["type"]) if origin == "body" else (tuple(location), False)
        known = _fields(schema, components, path[:-1]) if origin == "body" else ()
        details = found.setdefault((origin, path), [])
        if (detail := _detail(entry, path, known)) not in details:
            details.append(detail)
        if in_branch:
            branches.add((origin, path))
    return [
        _fault(origin, path, "; or ".join(details))
        for (origin, path), details in found.items()
        if not ((origin, path) in branches and _has_deeper(found, path))
    ]


def pointer(path: Iterable[str | int]) -> str:
    """The RFC 6901 JSON pointer to `path`, with absurdly long names cut; the whole document is the empty string."""
    return "".join(f"/{_short(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def _short(part: str | int) -> str:
    name = str(part)
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"


def _fault(origin: str, path: _Path, detail: str) -> Fault:
    if origin == "body":
        return Fault(detail=detail, pointer=pointer(path))
    return Fault(detail=detail, parameter=".".join(str(part) for part in path) or origin)


def _has_deeper(found: Iterable[tuple[str, _Path]], path: _Path) -> bool:
    """Whether another branch of the same union got further: then it is the one that was meant."""
    return any(len(other) > len(path) and other[: len(path)] == path for _, other in found)


def _path(location: list[str | int], body: object, kind: str) -> tuple[_Path, bool]:
    """The part of pydantic's `location` that exists in `body`, and whether names of union branches were left out."""
    path: list[str | int] = []
    in_branch = False
    for position, part in enumerate(location):
        inside = part in body if isinstance(body, dict) else isinstance(body, list) and part in range(len(body))
        if inside:
            body = body[part]  # type: ignore[index]  # `inside` has seen to it
        elif not (position == len(location) - 1 and kind in _MISSING):
            in_branch = True
            continue
        path.append(part)
    return tuple(path), in_branch


def _detail(entry: Mapping[str, Any], path: _Path, known: Iterable[str]) -> str:
    if entry["type"] in _MISSING:
        return "is required"
    if entry["type"] in _UNKNOWN:
        nearest = get_close_matches(_short(path[-1]), known, n=1)
        hint = f"nearest: {nearest[0]}" if nearest else f"known: {', '.join(known)}"
        return f"is unknown; {hint}"
    if entry["type"] == "value_error":
        return str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "model_type":
        return f"should be an object{_echo(entry['input'], entry['type'])}"
    wanted = _SUBJECT.sub("", str(entry["msg"]))
    return f"{wanted}{_echo(entry['input'], entry['type'])}"


def _echo(value: object, kind: str) -> str:
    """What was sent instead: a short value as it is, something else by its JSON type where that is what is wrong."""
    if value is None:
        return ", not null"
    if isinstance(value, str | int | float) and len(text := json.dumps(value, ensure_ascii=False)) <= _LONGEST_ECHO:
        return f", not {text}"
    return f", not {_JSON_NAMES[type(value)]}" if kind.endswith("_type") and type(value) in _JSON_NAMES else ""


def _fields(schema: Mapping[str, Any], components: Mapping[str, Any], path: _Path) -> tuple[str, ...]:
    """The names of the fields that the documented `schema` has at `path`, over all branches of unions."""
    nodes = list(_branches(schema, components))
    for part in path:
        nodes = [branch for node in nodes for child in _children(node, part) for branch in _branches(child, components)]
    return tuple(dict.fromkeys(name for node in nodes for name in node.get("properties", ())))


def _branches(schema: Mapping[str, Any], components: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if "$ref" in schema:
        yield from _branches(components[schema["$ref"].rsplit("/", 1)[-1]], components)
    elif choices := [choice for word in ("anyOf", "oneOf", "allOf") for choice in schema.get(word, ())]:
        for choice in choices:
            yield from _branches(choice, components)
    else:
        yield schema


def _children(node: Mapping[str, Any], part: str | int) -> Iterator[Mapping[str, Any]]:
    child = node.get("items") if isinstance(part, int) else node.get("properties", {}).get(part)
    if child is None and isinstance(part, str):
        child = node.get("additionalProperties")
    if isinstance(child, dict):
        yield child
