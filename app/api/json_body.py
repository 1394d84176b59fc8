"""Bytes into JSON values, stricter than the standard library: what two readers could understand differently is refused.

Refused are bytes that are not UTF-8, duplicate keys, NaN and Infinity (also as an overflow such as `1e999`), integers
of absurd length, nesting too deep for anything that follows, NUL, and halves of surrogate pairs, which no database
keeps.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from app.errors import MalformedBody
from app.precision.numerals import WrittenNumber

MAX_DEPTH = 64
MAX_INTEGER_DIGITS = 100

_LONGEST_ECHO = 80

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}:,]|[^\s\[\]{}:,"]+')
_COLON = re.compile(r"\s*:")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class _Refused(ValueError):
    """The text is JSON to the standard library, but not to us; where, is found by reading it again."""


def parse(body: bytes, *, as_written: bool = False) -> Any:
    """The JSON value in `body`. Raises MalformedBody with line and column of the first thing that is wrong.

    With `as_written`, fractions and -0 come as WrittenNumber, and none is too large.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8: byte {body[error.start]:#04x} at offset {error.start}") from None
    try:
        value = (_WRITTEN_DECODER if as_written else _DECODER).decode(text.removeprefix("\ufeff"))
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(value)
        if "\\u" in text or "\0" in text:
            _check_strings(value)
    except json.JSONDecodeError as error:
        problem = error.msg[:1].lower() + error.msg[1:].removesuffix(" at")
        raise MalformedBody(f"{problem} at line {error.lineno}, column {error.colno}") from None
    except (_Refused, RecursionError):
        raise MalformedBody(_first_fault(text, as_written=as_written)) from None
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused
    return members


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise _Refused
    return int(text)


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise _Refused
    return number


def _constant(_: str) -> NoReturn:
    raise _Refused


def _written_integer(text: str) -> int | WrittenNumber:
    return WrittenNumber(text) if text == "-0" else _integer(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer, parse_float=_number, parse_constant=_constant)
_WRITTEN_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_int=_written_integer, parse_float=WrittenNumber, parse_constant=_constant
)


def _levels(value: Any) -> Iterator[list[Any]]:
    """All values of a document, those at the same depth together; keys count as values of their object."""
    level = [value]
    while level:
        yield level
        level = [child for parent in level for child in _children(parent)]


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _check_depth(value: Any) -> None:
    for depth, level in enumerate(_levels(value)):
        if depth >= MAX_DEPTH and any(isinstance(entry, dict | list) for entry in level):
            raise _Refused


def _check_strings(value: Any) -> None:
    for level in _levels(value):
        if any(isinstance(entry, str) and _UNSTORABLE.search(entry) for entry in level):
            raise _Refused


def _first_fault(text: str, *, as_written: bool) -> str:
    """What the first refused token is and where, for text that has one. Slow, hence only for refused bodies."""
    keys: list[set[str] | None] = []
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in "[{":
            keys.append(set() if word == "{" else None)
        elif word in "]}":
            keys.pop()
        is_key = _COLON.match(text, token.end()) is not None
        if reason := _fault(word, keys, is_key=is_key, as_written=as_written):
            line = text.count("\n", 0, token.start()) + 1
            column = token.start() - text.rfind("\n", 0, token.start())
            return f"{reason} at line {line}, column {column}"
    return "the body has a value that cannot be read"


def _fault(word: str, keys: list[set[str] | None], *, is_key: bool, as_written: bool) -> str | None:
    if len(keys) > MAX_DEPTH:
        return f"nested more than {MAX_DEPTH} levels deep"
    if word.startswith('"'):
        return _fault_of_text(word, keys[-1] if is_key and keys else None)
    if word in ("NaN", "Infinity", "-Infinity"):
        return f"{word} is not a JSON number"
    if word.lstrip("-").isdigit() and len(word) > MAX_INTEGER_DIGITS:
        return f"an integer of {len(word)} digits"
    is_too_large = not as_written and word[-1].isdigit() and math.isinf(float(word))
    return "a number too large for a 64-bit float" if is_too_large else None


def _fault_of_text(word: str, seen: set[str] | None) -> str | None:
    """What is wrong with the text `word`; `seen` are the keys before it when it is a key itself."""
    text = json.loads(word)
    if _UNSTORABLE.search(text):
        return "a text with NUL or half of a surrogate pair"
    if seen is None:
        return None
    if text in seen:
        return f"the key {word if len(word) <= _LONGEST_ECHO else 'of an object'} is there twice: a duplicate"
    seen.add(text)
    return None
