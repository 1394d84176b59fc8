import base64

import pytest

from app.api.paging import decode, encode
from app.errors import InvalidInput

POSITION = ["2026-01-31T12:00:00.123456Z", "b7"]
FILTERS = {"pool": "blue"}


def test_a_cursor_comes_back_as_the_position_it_was_made_of() -> None:
    assert decode(encode(POSITION, "plans", FILTERS), "plans", FILTERS) == POSITION


@pytest.mark.parametrize(("name", "filters"), [("nodes", FILTERS), ("plans", {}), ("plans", {"pool": "green"})])
def test_a_cursor_of_another_list_or_filter_is_refused(name: str, filters: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="is not of this list with these filters"):
        decode(encode(POSITION, "plans", FILTERS), name, filters)


@pytest.mark.parametrize("cursor", ["", "x", "%", "é", "AAAA", base64.urlsafe_b64encode(b"[1,2,3,4,5,6,7,8]").decode()])
def test_a_made_up_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        decode(cursor, "plans", {})
    assert refused.value.errors[0].parameter == "cursor"


def test_an_altered_cursor_is_refused() -> None:
    cursor = encode(POSITION, "plans", FILTERS)
    for place in range(0, len(cursor) - 1, 3):
        altered = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
        with pytest.raises(InvalidInput):
            decode(altered, "plans", FILTERS)
