import json

import pytest

from app.api.json_body import MAX_DEPTH, MAX_INTEGER_DIGITS, parse
from app.errors import MalformedBody


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "expecting value at line 1, column 1"),
        (b'{"a":\n 1 "b"}', "expecting ',' delimiter at line 2, column 4"),
        (b'{"a": 1} {}', "extra data at line 1, column 10"),
        (b'{"a": "\xff"}', "not UTF-8: byte 0xff at offset 7"),
        (b'{"a": 1,\n "b": {"a": 2},\n "a": 3}', 'key "a" is there twice: a duplicate at line 3, column 2'),
        (b'{"a": {"b": 1, "\\u0062": 2}}', "twice: a duplicate at line 1, column 16"),
        (b'{"a": [1, NaN]}', "NaN is not a JSON number at line 1, column 11"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number at line 1, column 7"),
        (b'{"a": "NaN", "b": Infinity}', "Infinity is not a JSON number at line 1, column 19"),
        (b"[1e999]", "a number too large for a 64-bit float at line 1, column 2"),
        (b"[" + b"7" * 5_000 + b"]", "an integer of 5000 digits at line 1, column 2"),
        (b"[" * 100_000, f"nested more than {MAX_DEPTH} levels deep at line 1, column {MAX_DEPTH + 1}"),
        (b"[" * 65 + b"]" * 65, f"nested more than {MAX_DEPTH} levels deep"),
        (b'["\\u0000"]', "a text with NUL or half of a surrogate pair at line 1, column 2"),
        (b'{"\\ud800": 1}', "a text with NUL or half of a surrogate pair at line 1, column 2"),
        (b'["\x00"]', "invalid control character at line 1, column 3"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_the_place_named(body: bytes, detail: str) -> None:
    with pytest.raises(MalformedBody) as refused:
        parse(body)
    assert detail in refused.value.detail


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -2.5, 1e308, True, None, "é 😀 \\u0000"], "b": {"a": {}}},
        "text",
        [10 ** (MAX_INTEGER_DIGITS - 1)],
        [[]] * (MAX_DEPTH + 5),
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_ordinary_json_comes_out_as_it_went_in(value: object, *, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


def test_a_byte_order_mark_is_no_part_of_the_value() -> None:
    assert parse(b"\xef\xbb\xbf{}") == {}


def test_the_deepest_nesting_allowed_is_read() -> None:
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
