"""Every way a hub can fail or mislead: the answer says what to do, comes in time, and nothing was asked elsewhere."""

import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hub.fake_hub import (
    CONFIG,
    FIRST,
    MODEL,
    OPEN_SESAME,
    Behaviour,
    FakeHub,
    config_path,
    endless,
    redirects,
    revision_path,
    running_hub,
    sends,
)

from app.api.problems import MEDIA_TYPE

Use = Callable[..., Any]

BOMB = gzip.compress(bytes(50_000_000))
RIGHT = json.dumps(CONFIG)
DEEP = "[" * 100 + "]" * 100


def inspect(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/models/inspect", json={"model": {"id": MODEL}})


def check(answer: httpx.Response, status: int, slug: str, detail: str, pointer: str | None = None) -> None:
    problem = answer.json()
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, MEDIA_TYPE)
    assert problem["type"] == f"/problems/{slug}", problem
    assert detail in problem["detail"]
    assert pointer == (problem["errors"][0]["pointer"] if pointer else None)


REVISION_ANSWERS: dict[str, tuple[Behaviour, int, str, str, str | None]] = {
    "404": (sends("{}", 404), 422, "unknown-name", f"has no model '{MODEL}'", "/model/id"),
    "no such revision": (
        sends("{}", 404, X_Error_Code="RevisionNotFound"),
        422,
        "unknown-name",
        f"has no revision 'main' of {MODEL}",
        "/model/revision",
    ),
    "401": (sends("{}", 401), 422, "unknown-name", "gated or private; set TONNAGE_HUB_TOKEN", "/model/id"),
    "403": (sends("{}", 403), 422, "unknown-name", "gated or private; set TONNAGE_HUB_TOKEN", "/model/id"),
    "500": (sends("oh", 500), 503, "hub-unavailable", "answered 500; try again", None),
    "204": (sends("", 204), 503, "hub-unavailable", "answered 204", None),
    "not JSON": (sends("<html>Log in</html>"), 503, "hub-unavailable", "does not say which commit", None),
    "a list": (sends("[]"), 503, "hub-unavailable", "does not say which commit", None),
    "no commit": (sends('{"sha": null}'), 503, "hub-unavailable", "does not say which commit", None),
    "a path for a commit": (sends('{"sha": "../../x"}'), 503, "hub-unavailable", "does not say which commit", None),
    "deep": (sends("[" * 200_000), 503, "hub-unavailable", "does not say which commit", None),
    "endless": (endless(bytes(65_536)), 503, "hub-unavailable", "does not say which commit", None),
    "not HTTP": (
        lambda handler: handler.wfile.write(b"hello\r\n\r\n"),
        503,
        "hub-unavailable",
        "cannot be reached",
        None,
    ),  # type: ignore[dict-item]
    "nothing": (lambda handler: setattr(handler, "close_connection", True), 503, "hub-unavailable", "broke off", None),
}


@pytest.mark.parametrize("case", REVISION_ANSWERS)
def test_a_commit_that_cannot_be_had(client: httpx.Client, hub: FakeHub, use: Use, case: str) -> None:
    behaviour, *expected = REVISION_ANSWERS[case]
    hub.publish()
    hub.answers[revision_path()] = behaviour
    use(hub.url)
    check(inspect(client), *expected)  # type: ignore[arg-type]
    assert hub.paths == [revision_path()]


CONFIG_ANSWERS: dict[str, tuple[Behaviour, int, str, str, str | None]] = {
    "404": (sends("", 404), 422, "unsupported-model", f"{MODEL} has no config.json at revision {FIRST}", "/model/id"),
    "gated": (sends("", 403, X_Error_Code="GatedRepo"), 422, "unknown-name", "set TONNAGE_HUB_TOKEN", "/model/id"),
    "500": (sends("", 500), 503, "hub-unavailable", "answered 500", None),
    "invalid JSON": (sends("{'a': 1}"), 422, "unsupported-model", "is no usable JSON: expecting", "/model/id"),
    "NaN": (sends('{"a": NaN}'), 422, "unsupported-model", "NaN is not a JSON number", "/model/id"),
    "duplicate key": (sends('{"a": 1, "a": 2}'), 422, "unsupported-model", "a duplicate", "/model/id"),
    "not UTF-8": (sends(b'{"a": "\xff"}'), 422, "unsupported-model", "not UTF-8", "/model/id"),
    "deep": (sends(f'{{"a": {DEEP}}}'), 422, "unsupported-model", "more than 64 levels", "/model/id"),
    "an array": (sends("[]"), 422, "unsupported-model", "holds no JSON object", "/model/id"),
    "nothing": (sends(""), 422, "unsupported-model", "is no usable JSON", "/model/id"),
    "cut off": (sends(RIGHT, Content_Length="9999", Connection="close"), 503, "hub-unavailable", "broke off", None),
    "twice a length": (sends(RIGHT, content_length="1"), 503, "hub-unavailable", "broke off", None),
    "declared too large": (sends("", Content_Length="100001"), 422, "unsupported-model", "100,000 bytes", "/model/id"),
    "too large": (sends("a" * 100_001), 422, "unsupported-model", "larger than 100,000 bytes", "/model/id"),
    "endless": (endless(bytes(65_536)), 422, "unsupported-model", "larger than 100,000 bytes", "/model/id"),
    "gzip bomb": (sends(BOMB, Content_Encoding="gzip"), 503, "hub-unavailable", "answers compressed", None),
}


@pytest.mark.parametrize("case", CONFIG_ANSWERS)
def test_a_config_that_cannot_be_had(client: httpx.Client, hub: FakeHub, use: Use, case: str) -> None:
    behaviour, *expected = CONFIG_ANSWERS[case]
    hub.publish()
    hub.answers[config_path()] = behaviour
    use(hub.url, timeout_seconds=0.5)
    check(inspect(client), *expected)  # type: ignore[arg-type]
    hub.publish()
    assert inspect(client).status_code == 200, "a failure is not kept"


def test_a_commit_asked_for_is_the_commit_answered(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish(sha="a" * 40, revision=FIRST)
    use(hub.url)
    answer = client.post("/v1/models/inspect", json={"model": {"id": MODEL, "revision": FIRST}})
    check(answer, 503, "hub-unavailable", "does not say which commit")


@pytest.mark.parametrize("place", ["revision", "config"])
@pytest.mark.parametrize("manner", ["hangs", "drips a header", "drips a body", "drips status lines", "drips chunks"])
def test_a_slow_hub_is_given_up_in_time(client: httpx.Client, hub: FakeHub, use: Use, place: str, manner: str) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    hub.publish()
    hub.answers[revision_path() if place == "revision" else config_path()] = {
        "hangs": hub.hang,
        "drips a header": hub.drips(b"HTTP/1.1 200 OK\r\nX-Long: ", b"a"),
        "drips a body": hub.drips(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b" "),
        "drips status lines": hub.drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        "drips chunks": hub.drips(chunked, b"1\r\n \r\n"),
    }[manner]
    use(hub.url, timeout_seconds=0.3)
    started = time.monotonic()
    answer = inspect(client)
    assert 0.25 < time.monotonic() - started < 2
    check(answer, 503, "hub-unavailable", "did not answer within 0.3 s; try again")
    assert answer.headers["Retry-After"]


def test_a_slow_redirect_counts_too(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish()
    for number in range(5):
        hub.answers[f"/{number}"] = hub.slowly(0.1, redirects(f"/{number + 1}"))
    hub.answers[revision_path()] = redirects("/0")
    use(hub.url, timeout_seconds=0.3)
    check(inspect(client), 503, "hub-unavailable", "did not answer within 0.3 s")


def test_nobody_listens(client: httpx.Client, use: Use) -> None:
    with running_hub() as gone:
        pass
    use(gone.url)
    check(inspect(client), 503, "hub-unavailable", f"the model hub at {gone.host} cannot be reached")


def test_no_such_host(client: httpx.Client, use: Use) -> None:
    use("https://nowhere.invalid", timeout_seconds=1)
    answer = inspect(client)
    assert answer.json()["type"] == "/problems/hub-unavailable"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_within_the_hub_are_followed(client: httpx.Client, hub: FakeHub, use: Use, status: int) -> None:
    hub.publish()
    hub.answers["/moved?x=1"] = hub.answers[config_path()]
    hub.answers[config_path()] = redirects("/moved?x=1#fragment", status)
    hub.answers["/new"] = hub.answers[revision_path()]
    hub.answers[revision_path()] = redirects(f"{hub.url}/new", status)
    use(hub.url, token=OPEN_SESAME)
    assert inspect(client).status_code == 200
    assert hub.paths == [revision_path(), "/new", config_path(), "/moved?x=1"]
    assert {headers["Authorization"] for _, headers in hub.asked} == {f"Bearer {OPEN_SESAME}"}


def test_the_token_goes_to_the_hub_and_nowhere_else(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    with running_hub() as store:
        hub.publish()
        store.answers["/file"] = sends(RIGHT)
        hub.answers[config_path()] = redirects(f"{store.url}/file")
        use(hub.url, token=OPEN_SESAME, allowed_hosts=[store.host])
        assert inspect(client).status_code == 200
        assert [headers.get("Authorization") for _, headers in hub.asked] == [f"Bearer {OPEN_SESAME}"] * 2
        assert [path for path, _ in store.asked] == ["/file"]
        assert not any(OPEN_SESAME in value for _, headers in store.asked for value in headers.values())


def test_a_token_that_does_not_open_the_model_is_named(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.answers[revision_path()] = sends("{}", 403)
    use(hub.url, token=OPEN_SESAME)
    answer = inspect(client)
    check(answer, 422, "unknown-name", "the token in TONNAGE_HUB_TOKEN may not read it", "/model/id")
    assert OPEN_SESAME not in answer.text


def test_a_redirect_to_a_host_that_is_not_named_is_not_followed(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    with running_hub() as other:
        for answers in (hub, other):
            answers.publish()
        hub.answers[config_path()] = redirects(f"{other.url}{config_path()}")
        use(hub.url)
        check(inspect(client), 503, "hub-unavailable", "which TONNAGE_HUB_ALLOWED_HOSTS does not name")
        assert other.paths == []
        use(hub.url, allowed_hosts=["127.0.0.1"])
        check(inspect(client), 503, "hub-unavailable", "does not name")
        assert other.paths == [], "a host without port is that host's own port only"


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "//169.254.169.254/latest",
        "http://[fe80::1]/",
        "http://10.0.0.1/",
        "http://2852039166/",
        "https://127.0.0.1/",
        "http://localhost/",
        "http://127.0.0.1:22/",
    ],
)
def test_a_redirect_into_a_private_network_is_not_followed(
    client: httpx.Client, hub: FakeHub, use: Use, location: str
) -> None:
    hub.answers[revision_path()] = redirects(location)
    use(hub.url, timeout_seconds=10)
    started = time.monotonic()
    check(inspect(client), 503, "hub-unavailable", "which TONNAGE_HUB_ALLOWED_HOSTS does not name")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.169.254]", "0.0.0.0"])  # noqa: S104  -- asked for
def test_not_even_a_named_host_is_followed_where_no_hub_can_be(
    client: httpx.Client, hub: FakeHub, use: Use, host: str
) -> None:
    hub.answers[revision_path()] = redirects(f"http://{host}:{hub.port}/latest")
    use(hub.url, allowed_hosts=[f"{host}:{hub.port}"], timeout_seconds=10)
    started = time.monotonic()
    check(inspect(client), 503, "hub-unavailable", "which lies in a more private network")
    assert time.monotonic() - started < 3
    assert hub.paths == [revision_path()]


@pytest.mark.parametrize(
    "location",
    [
        "ftp://{host}/x",
        "file:///etc/passwd",
        "http://user:pass@{host}/x",
        "http://{host}@10.0.0.1/",
        "http://{host}:x/",
        "http://[::1/",
        "",
        "/a b",
        "/\u00e9",
        "gopher:x",
    ],
)
def test_a_redirect_to_no_plain_url_is_not_followed(
    client: httpx.Client, hub: FakeHub, use: Use, location: str
) -> None:
    hub.answers[revision_path()] = redirects(location.format(host=hub.host))
    use(hub.url)
    answer = inspect(client)
    assert answer.json()["type"] == "/problems/hub-unavailable"
    assert set(hub.paths) == {revision_path()}


def test_a_redirect_loop_ends(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.answers[revision_path()] = redirects("/b")
    hub.answers["/b"] = redirects(revision_path())
    use(hub.url)
    check(inspect(client), 503, "hub-unavailable", "redirects more than 5 times")
    assert len(hub.paths) == 6
