"""Models of a hub, through the service: where they are looked for, what the answer says, what is kept."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from itertools import islice
from typing import Any

import httpx
import pytest
from hub.fake_hub import (
    CONFIG,
    DEEPER,
    FIRST,
    MODEL,
    SECOND,
    FakeHub,
    config_path,
    revision_path,
    running_hub,
    sends,
)
from live_service import LiveService, running
from sqlalchemy import update

from app.main import _drop_unused_models, create_app
from app.settings import Settings
from app.storage.tables import hub_configs, hub_revisions

Use = Callable[..., Any]

CATALOGUED = "meta-llama/Llama-3.1-8B"
BOTH = [revision_path(), config_path()]


def inspect(client: httpx.Client, model: str = MODEL, **more: str) -> httpx.Response:
    return client.post("/v1/models/inspect", json={"model": {"id": model, **more}})


def make_older(live: LiveService, seconds: float) -> None:
    """As if everything in the cache had been asked for so much earlier."""
    with live.service.engine.begin() as connection:
        ago = timedelta(seconds=seconds)
        connection.execute(update(hub_revisions).values(checked_at=hub_revisions.c.checked_at - ago))
        connection.execute(
            update(hub_configs).values(fetched_at=hub_configs.c.fetched_at - ago, used_at=hub_configs.c.used_at - ago)
        )


def metric(client: httpx.Client, line: str) -> float:
    found = re.search(rf"(?m)^{re.escape(line)} (\S+)$", client.get("/metrics").text)
    return 0 if found is None else float(found[1])


def test_a_model_of_the_hub_is_counted_at_its_commit_and_the_answer_says_so(
    client: httpx.Client, hub: FakeHub, use: Use
) -> None:
    hub.publish()
    use(hub.url)
    facts = inspect(client).json()
    by_config = client.post("/v1/models/inspect", json={"model": {"config": CONFIG}}).json()
    assert facts["parameters"] == by_config["parameters"] > 0
    assert facts["name"] == MODEL
    said = rf"config\.json of {MODEL} at revision {FIRST}, fetched (\S+) from {re.escape(hub.host)}"
    (fetched,) = re.fullmatch(said, facts["assumptions"][0]).groups()  # type: ignore[union-attr]
    assert datetime.now(UTC) - datetime.fromisoformat(fetched) < timedelta(minutes=1)
    assert facts["warnings"] == []
    assert hub.paths == BOTH


@pytest.mark.parametrize("estimator", ["detailed", "rule_of_thumb"])
def test_an_estimate_says_where_its_model_is_from(client: httpx.Client, hub: FakeHub, use: Use, estimator: str) -> None:
    hub.publish()
    use(hub.url)
    answer = client.post("/v1/estimates/memory", json={"model": {"id": MODEL}, "estimator": estimator}).json()
    assert answer["model"]["name"] == MODEL
    assert any(f"at revision {FIRST}, fetched " in line for line in answer["assumptions"])


def test_the_catalogue_is_asked_first_and_the_cache_second(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish()
    use(hub.url)
    assert inspect(client, CATALOGUED).status_code == 200
    assert hub.paths == []
    first, second = inspect(client), inspect(client)
    assert first.json() == second.json()
    assert hub.paths == BOTH


@pytest.mark.parametrize(
    ("revision", "path"), [("v1.0", "v1.0"), ("refs/pr/1", "refs%2Fpr%2F1"), (FIRST, FIRST), ("a+b_c", "a%2Bb_c")]
)
def test_a_revision_is_asked_for_as_it_is_written(
    client: httpx.Client, hub: FakeHub, use: Use, revision: str, path: str
) -> None:
    hub.publish(revision=path)
    use(hub.url)
    assert FIRST in inspect(client, revision=revision).json()["assumptions"][0]
    assert hub.paths == [revision_path(revision=path), config_path()]


def test_a_revision_of_a_catalogued_model_means_the_hub_s(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish(model=CATALOGUED, revision="old")
    use(hub.url)
    facts = inspect(client, CATALOGUED, revision="old").json()
    assert facts["parameters"] != inspect(client, CATALOGUED).json()["parameters"]
    assert FIRST in facts["assumptions"][0]


def test_a_hub_may_lie_under_a_path(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish()
    hub.answers = {f"/proxy/hf{path}": answer for path, answer in hub.answers.items()}
    use(f"{hub.url}/proxy/hf")
    assert inspect(client).status_code == 200


def test_without_a_hub_an_unknown_id_is_the_catalogue_s_to_refuse(client: httpx.Client) -> None:
    answer = inspect(client, "meta-llama/Llama-3.1-9B")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/model/id"
    assert "nearest: meta-llama/Llama-3.1-8B" in answer.json()["detail"]
    assert "with TONNAGE_HUB_URL set" in answer.json()["detail"]


def test_without_a_hub_a_revision_is_refused_and_not_passed_over(client: httpx.Client) -> None:
    answer = inspect(client, CATALOGUED, revision="main")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/model/revision")
    assert "needs a model hub" in answer.json()["detail"]
    answer = client.post("/v1/models/inspect", json={"model": {"config": CONFIG, "revision": "main"}})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/model")
    assert "revision needs id" in answer.json()["detail"]


@pytest.mark.parametrize(
    "id",
    [
        *("../etc/passwd", "a/b/c", "a/..", "a..b/c", "a%2Fb", "a%2e%2e/b", "a b", "a?x=1", "a#b", "a\\b", "a/b@main"),
        *("/a", "a/", "-a", ".a/b", "a:b", "\uff41/b", "a" * 97, "http://169.254.169.254/x", "a/b;c", "a/b\u2028"),
    ],
)
def test_what_is_no_id_of_a_hub_is_not_asked_for(client: httpx.Client, hub: FakeHub, use: Use, id: str) -> None:
    use(hub.url)
    answer = inspect(client, id)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unknown-name")
    assert "nor is it an id of a model hub" in answer.json()["detail"]
    assert hub.paths == []


@pytest.mark.parametrize(
    "revision", ["", "..", "a/../b", "-x", "a b", "%2e%2e", "main?x", "a//b", "a/", "/a", "a" * 201]
)
def test_what_is_no_revision_is_not_asked_for(client: httpx.Client, hub: FakeHub, use: Use, revision: str) -> None:
    use(hub.url)
    answer = inspect(client, revision=revision)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/model/revision")
    assert hub.paths == []


def test_a_config_that_cannot_be_counted_is_refused_at_the_id(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish({**CONFIG, "model_type": "lama"})
    use(hub.url)
    answer = inspect(client)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/model/id")
    assert f"at revision {FIRST}" in answer.json()["detail"]
    assert "nearest: llama" in answer.json()["detail"]


def test_a_branch_is_asked_for_again_once_it_is_stale(
    client: httpx.Client, hub: FakeHub, use: Use, live: LiveService
) -> None:
    hub.publish()
    use(hub.url, fresh_seconds=60)
    before = inspect(client).json()
    make_older(live, 59)
    assert inspect(client).json()["parameters"] == before["parameters"]
    assert hub.paths == BOTH
    make_older(live, 61)
    inspect(client)
    assert hub.paths == [*BOTH, revision_path()], "the commit is the same: its file is known"
    make_older(live, 61)
    hub.publish(DEEPER, sha=SECOND)
    after = inspect(client).json()
    assert after["parameters"] > before["parameters"]
    assert SECOND in after["assumptions"][0]
    assert hub.paths[3:] == [revision_path(), config_path(sha=SECOND)]


def test_a_commit_is_never_asked_for_again(client: httpx.Client, hub: FakeHub, use: Use, live: LiveService) -> None:
    hub.publish()
    use(hub.url, fresh_seconds=0)
    inspect(client)
    hub.answers.clear()
    make_older(live, 1_000_000)
    facts = inspect(client, revision=FIRST).json()
    assert (facts["warnings"], hub.paths) == ([], BOTH)


def test_while_the_hub_is_away_what_it_said_last_is_the_answer(
    client: httpx.Client, live: LiveService, use: Use
) -> None:
    with running_hub() as hub:
        hub.publish()
        use(hub.url, fresh_seconds=60)
        fetched = inspect(client).json()
    make_older(live, 3 * 3_600 + 60)
    counted = metric(client, 'tonnage_hub_lookups_total{origin="stale cache"}')
    kept = inspect(client).json()
    assert kept["parameters"] == fetched["parameters"]
    (warning,) = kept["warnings"]
    assert f"the model hub at {hub.host} cannot be reached" in warning
    assert f"'main' was at revision {FIRST} 3 hours ago and may have moved since" in warning
    assert metric(client, 'tonnage_hub_lookups_total{origin="stale cache"}') == counted + 1
    assert inspect(client, "acme/other").status_code == 503


@pytest.mark.parametrize(
    ("status", "is_kept"), [(500, True), (503, True), (429, True), (404, False), (401, False), (403, False)]
)
def test_a_copy_stands_in_for_a_hub_that_fails_but_not_for_one_that_refuses(
    client: httpx.Client, hub: FakeHub, use: Use, status: int, is_kept: bool
) -> None:
    hub.publish()
    use(hub.url, fresh_seconds=0)
    inspect(client)
    hub.answers[revision_path()] = sends("{}", status)
    answer = inspect(client)
    assert answer.status_code == (200 if is_kept else 422)
    assert not is_kept or f"answered {status}" in answer.json()["warnings"][0]


def test_who_has_a_copy_does_not_wait_long_for_a_hub_that_hangs(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish()
    use(hub.url, fresh_seconds=0, timeout_seconds=0.4)
    inspect(client)
    hub.answers[revision_path()] = hub.hang
    started = time.monotonic()
    answers = [inspect(client) for _ in range(5)]
    assert time.monotonic() - started < 1.5, "the hub was waited for once"
    assert all("did not answer within 0.4 s" in answer.json()["warnings"][0] for answer in answers)
    hub.publish(DEEPER, sha=SECOND)
    time.sleep(0.4)
    assert SECOND in inspect(client).json()["assumptions"][0]


def test_the_cache_outlives_the_service(fresh_database: str) -> None:
    with running_hub() as hub:
        hub.publish()
        environ = {"TONNAGE_HUB_URL": hub.url, "TONNAGE_HUB_TIMEOUT_SECONDS": "2"}
        settings = Settings.from_environment(environ, database_url=fresh_database)
        with running(create_app(settings), settings) as live, live.client() as client:
            before = inspect(client).json()
    with running(create_app(settings), settings) as live, live.client() as client:
        assert inspect(client).json() == before
    later = settings.model_copy(update={"hub_fresh_seconds": 0})
    with running(create_app(later), later) as live, live.client() as client:
        assert "may have moved" in inspect(client).json()["warnings"][0]


def test_another_hub_s_branches_are_not_taken_for_this_one_s(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish()
    use(hub.url)
    inspect(client)
    with running_hub() as other:
        other.publish(DEEPER, sha=SECOND)
        use(other.url)
        assert SECOND in inspect(client).json()["assumptions"][0]


def test_all_who_want_the_same_model_ask_for_it_once(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish()
    hub.answers[revision_path()] = hub.slowly(0.3, hub.answers[revision_path()])
    use(hub.url)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: inspect(client), range(12)))
    assert {answer.status_code for answer in answers} == {200}
    assert hub.paths == BOTH


def test_all_who_want_the_same_model_learn_that_it_is_not_there(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.answers[revision_path()] = hub.slowly(0.3, sends("{}", 404))
    use(hub.url)
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: inspect(client), range(6)))
    assert {answer.status_code for answer in answers} == {422}
    assert hub.paths == [revision_path()]


def test_what_another_replica_has_fetched_meanwhile_is_not_asked_for_again(hub: FakeHub, use: Use) -> None:
    hub.publish()
    mine, other = use(hub.url), use(hub.url)
    for number in range(8):
        hub.answers[revision_path(f"acme/{number}")] = hub.hang
    with ThreadPoolExecutor(9) as threads:
        hanging = [threads.submit(mine.look_up, f"acme/{number}") for number in range(8)]
        assert wait_for(hub, *(revision_path(f"acme/{number}") for number in range(8)))
        queued = threads.submit(mine.look_up, MODEL)
        time.sleep(0.2)  # it finds nothing in the cache, and has to queue
        fetched = other.look_up(MODEL)
        hub.closing.set()
        assert queued.result() == fetched
        assert all(future.exception() for future in hanging)
    assert hub.paths.count(revision_path()) == 1


def test_a_hub_that_hangs_does_not_stop_other_work(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    use(hub.url, timeout_seconds=10)
    for number in range(50):
        hub.answers[revision_path(f"acme/{number}")] = hub.hang
    with ThreadPoolExecutor(50) as threads:
        waiting = [threads.submit(inspect, client, f"acme/{number}") for number in range(50)]
        refused = list(islice(as_completed(waiting), 30))
        assert inspect(client, CATALOGUED).status_code == 200
        assert sum(future.done() for future in waiting) == 30, "the others are waiting still"
        hub.closing.set()
        answers = [future.result() for future in waiting]
    assert {answer.status_code for answer in answers} == {503}
    assert all("20 requests are waiting" in future.result().json()["detail"] for future in refused)


def test_nobody_holds_a_connection_to_the_database_while_the_hub_is_asked(fresh_database: str, hub: FakeHub) -> None:
    hub.publish()
    hub.publish(DEEPER, sha=SECOND, revision="v2")
    settings = Settings.from_environment(
        {"TONNAGE_HUB_URL": hub.url}, database_url=fresh_database, database_pool_size=1, database_wait_seconds=1
    )
    plan, newer = ({"name": "p", "model": {"id": MODEL, "revision": revision}} for revision in ("main", "v2"))
    with running(create_app(settings), settings) as live, live.client() as client, ThreadPoolExecutor(1) as thread:
        with held(hub, revision_path()):
            created = thread.submit(client.post, "/v1/plans", json=plan, headers={"Idempotency-Key": "k"})
            assert wait_for(hub, revision_path())
            assert client.get("/v1/plans").status_code == 200
        path = created.result().headers["Location"]
        with held(hub, config_path(sha=SECOND)):
            replaced = thread.submit(client.put, path, json=newer, headers={"If-Match": '"1"'})
            assert wait_for(hub, config_path(sha=SECOND))
            assert client.get(path).status_code == 200
        assert replaced.result().json()["resolved"]["model"]["hub"]["revision"] == SECOND


@contextmanager
def held(hub: FakeHub, path: str) -> Iterator[None]:
    """The answer to `path` is held back until the block ends."""
    answer, go = hub.answers[path], threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> None:
        go.wait(5)
        answer(handler)

    hub.answers[path] = wait
    try:
        yield
    finally:
        go.set()


def wait_for(hub: FakeHub, *paths: str) -> bool:
    """Whether all `paths` are asked for within a few seconds."""
    end = time.monotonic() + 5
    while not set(paths) <= set(hub.paths) and time.monotonic() < end:
        time.sleep(0.01)
    return set(paths) <= set(hub.paths)


def test_a_plan_keeps_the_config_it_was_computed_from(client: httpx.Client, hub: FakeHub, use: Use) -> None:
    hub.publish()
    use(hub.url, fresh_seconds=0)
    created = client.post("/v1/plans", json={"name": "p", "model": {"id": MODEL}})
    kept = created.json()["resolved"]["model"]["hub"]
    assert (kept["id"], kept["revision"], kept["host"], kept["config"]) == (MODEL, FIRST, hub.host, CONFIG)
    assert datetime.fromisoformat(kept["fetched_at"]).tzinfo is not None
    hub.publish(DEEPER, sha=SECOND)
    assert client.get(created.headers["Location"]).json() == created.json()
    changed = client.put(
        created.headers["Location"], json={"name": "p", "model": {"id": MODEL}}, headers={"If-Match": '"1"'}
    )
    assert changed.json()["resolved"]["model"]["hub"]["revision"] == SECOND
    assert client.get(f"{created.headers['Location']}/revisions/1").json()["estimate"] == created.json()["estimate"]


def test_a_plan_of_the_catalogue_has_no_hub(client: httpx.Client) -> None:
    created = client.post("/v1/plans", json={"name": "p", "model": {"id": CATALOGUED}}).json()
    assert created["resolved"]["model"]["hub"] is None


def test_a_request_sent_again_gets_its_answer_whatever_the_hub_says_now(
    client: httpx.Client, hub: FakeHub, use: Use
) -> None:
    hub.publish()
    use(hub.url, fresh_seconds=0)
    plan, headers = {"name": "p", "model": {"id": MODEL}}, {"Idempotency-Key": "one"}
    first = client.post("/v1/plans", json=plan, headers=headers)
    hub.answers.clear()
    again = client.post("/v1/plans", json=plan, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    assert client.post("/v1/plans", json=plan).status_code == 422


def test_a_model_that_nobody_asks_for_is_forgotten(
    client: httpx.Client, hub: FakeHub, use: Use, live: LiveService
) -> None:
    hub.publish()
    use(hub.url)
    inspect(client)
    make_older(live, 80 * 86_400)
    inspect(client, revision=FIRST)  # somebody does
    make_older(live, 80 * 86_400)
    _drop_unused_models(live.service)
    inspect(client, revision=FIRST)
    assert hub.paths == BOTH
    make_older(live, 91 * 86_400)
    _drop_unused_models(live.service)
    inspect(client)
    assert hub.paths == [*BOTH, *BOTH]


def test_look_ups_are_counted(client: httpx.Client, hub: FakeHub, use: Use, live: LiveService) -> None:
    lines = [
        f'tonnage_hub_requests_total{{outcome="{word}"}}' for word in ("found", "unchanged", "unknown", "unavailable")
    ]
    lines += [f'tonnage_hub_lookups_total{{origin="{word}"}}' for word in ("hub", "cache")]
    before = [metric(client, line) for line in lines]
    hub.publish()
    use(hub.url, fresh_seconds=60)
    inspect(client)
    inspect(client)
    make_older(live, 61)
    inspect(client)
    inspect(client, "acme/none")
    hub.answers[revision_path("acme/none")] = sends("{}", 500)
    inspect(client, "acme/none")
    assert [metric(client, line) - old for line, old in zip(lines, before, strict=True)] == [1, 1, 1, 1, 2, 1]
