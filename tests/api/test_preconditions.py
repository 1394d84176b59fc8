import pytest

from app.api.preconditions import IfMatch, IfNoneMatch
from app.errors import InvalidInput, StaleRevision


@pytest.mark.parametrize("header", ['"3"', '"1", "3"', ' "3" ', "*", '"1","2" , "3"'])
def test_the_current_revision_passes(header: str) -> None:
    IfMatch(header).check(3)


@pytest.mark.parametrize("header", ['"2"', '"33"', 'W/"3"', '"2", "4"', '""'])
def test_any_other_is_stale_and_the_current_one_is_told(header: str) -> None:
    with pytest.raises(StaleRevision, match=r'current revision is 3; .* If-Match: "3"'):
        IfMatch(header).check(3)


@pytest.mark.parametrize("header", ["", "3", '"3', '"3" "4"', '"3",', "**", '*, "3"'])
def test_what_is_no_etag_is_refused(header: str) -> None:
    with pytest.raises(InvalidInput, match="If-Match should be one or more ETags"):
        IfMatch(header)


@pytest.mark.parametrize(
    ("header", "known"),
    [(None, False), ('"3"', True), ('W/"3"', True), ('"2"', False), ("*", True), ('"2", "3"', True)],
)
def test_a_known_revision_is_recognised(header: str | None, known: bool) -> None:
    assert IfNoneMatch(header).knows(3) is known
