import json
import logging
import threading
import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import httpx
import pytest
from live_service import PLAN, running
from sqlalchemy import text

from app.logs import JsonFormatter
from app.main import create_app
from app.settings import Settings


class Lines(logging.StreamHandler[StringIO]):
    """What the service writes to its log, line by line."""

    def __init__(self) -> None:
        super().__init__(StringIO())
        self.setFormatter(JsonFormatter())

    def with_id(self, request_id: str, *, at_least: int = 1) -> list[dict[str, Any]]:
        """The lines of one request. The last is written just after the answer is out, so it is waited for."""
        deadline = time.monotonic() + 5
        while True:
            lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
            found = [line for line in lines if line.get("request_id") == request_id]
            if len(found) >= at_least or time.monotonic() > deadline:
                return found
            time.sleep(0.01)


@pytest.fixture
def log() -> Iterator[Lines]:
    lines, root = Lines(), logging.getLogger()
    before = root.level
    root.addHandler(lines)
    root.setLevel(logging.INFO)
    yield lines
    root.removeHandler(lines)
    root.setLevel(before)


@pytest.mark.parametrize("sent", ["abc-1.2:3_4", "x" * 128])
def test_a_sane_request_id_is_kept(client: httpx.Client, sent: str) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": sent}).headers["X-Request-ID"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", 'a"b', "é".encode()])
def test_any_other_is_replaced(client: httpx.Client, sent: str | bytes) -> None:
    given = client.get("/healthz", headers={"X-Request-ID": sent}).headers.get_list("X-Request-ID")
    assert len(given) == 1
    assert len(given[0]) == 32


def test_each_request_is_one_line_of_json(client: httpx.Client, log: Lines) -> None:
    plan = client.post("/v1/plans", json=PLAN, headers={"X-Request-ID": "create-1"}).json()
    client.get(f"/v1/plans/{plan['id']}?x=secret", headers={"X-Request-ID": "read-1"})
    [line] = log.with_id("create-1")
    assert {name: line[name] for name in ("level", "logger", "method", "path", "route", "status", "principal")} == {
        "level": "info",
        "logger": "app.access",
        "method": "POST",
        "path": "/v1/plans",
        "route": "/v1/plans",
        "status": 201,
        "principal": "local",
    }
    assert line["time"].endswith("Z")
    assert 0 < line["duration_seconds"] < 10
    [line] = log.with_id("read-1")
    assert (line["route"], line["status"]) == ("/v1/plans/{plan_id}", 422)
    assert "secret" not in json.dumps(line)


def test_a_crash_is_logged_with_its_traceback_under_the_id_of_the_answer(client: httpx.Client, log: Lines) -> None:
    answer = client.get("/v1/crash")
    crash, access = log.with_id(answer.json()["request_id"], at_least=2)
    assert crash["level"] == "error"
    assert "RuntimeError: SELECT secret FROM /etc/passwd" in crash["exception"]
    assert access["status"] == 500


def test_probes_are_not_logged(client: httpx.Client, log: Lines) -> None:
    client.get("/healthz", headers={"X-Request-ID": "probe-1"})
    client.get("/v1/plans", headers={"X-Request-ID": "after-1"})
    assert log.with_id("after-1")
    assert log.with_id("probe-1", at_least=0) == []


def test_metrics_count_requests_by_route_and_not_by_path(client: httpx.Client) -> None:
    for path in ("/v1/gpus/h100-sxm-80gb", "/v1/gpus/nothing", "/v1/random-path-8121"):
        client.get(path)
    client.request("BREW", "/v1/gpus")
    shown = client.get("/metrics")
    assert shown.headers["Content-Type"].startswith("text/plain")
    lines = shown.text.splitlines()

    def value(start: str) -> float:
        [line] = [line for line in lines if line.startswith(start)]
        return float(line.rsplit(" ", 1)[1])

    assert value('tonnage_http_requests_total{method="GET",route="/v1/gpus/{key}",status="200"}') >= 1
    assert value('tonnage_http_requests_total{method="GET",route="/v1/gpus/{key}",status="404"}') >= 1
    assert value('tonnage_http_requests_total{method="GET",route="unmatched",status="404"}') >= 1
    assert value('tonnage_http_requests_total{method="other",route="/v1/gpus",status="405"}') >= 1
    assert value('tonnage_http_request_seconds_count{method="GET",route="/v1/gpus/{key}"}') >= 2
    assert value("tonnage_http_requests_in_flight") == 1
    assert value('tonnage_build_info{version="') == 1
    assert value('tonnage_database_connections{state="limit"}') == 20
    assert "random-path-8121" not in shown.text


def test_metrics_count_what_the_service_was_used_for(client: httpx.Client) -> None:
    def total(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}_total{{"))

    before = total("tonnage_plan_changes")
    path = client.post("/v1/plans", json=PLAN).headers["Location"]
    client.put(path, json=PLAN, headers={"If-Match": '"1"'})
    client.delete(path, headers={"If-Match": '"2"'})
    assert total("tonnage_plan_changes") - before == 3


def test_answers_carry_what_protects_a_browser(client: httpx.Client) -> None:
    for path in ("/healthz", "/v1/plans", "/v1/nothing", "/", "/docs", "/docs/start.js", "/problems"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "unsafe-eval" not in headers["Content-Security-Policy"]
    assert client.get("/v1/plans").headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/healthz", "/v1/gpus", "/docs", "/v1/nothing"])
def test_head_is_get_without_the_body(client: httpx.Client, path: str) -> None:
    got, head = client.get(path), client.head(path)
    volatile = ("date", "x-request-id")
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert [pair for pair in head.headers.items() if pair[0] not in volatile] == [
        pair for pair in got.headers.items() if pair[0] not in volatile
    ]


def test_a_service_that_is_full_says_so_and_stays_healthy(fresh_database: str) -> None:
    """Requests that all wait for a locked table fill the service; the next one is answered at once."""
    limit = 3
    settings = Settings.from_environment({}, database_url=fresh_database, max_requests_in_flight=limit)
    statuses: list[int] = []

    def save() -> None:
        with live.client() as client:
            statuses.append(client.post("/v1/plans", json=PLAN).status_code)

    with running(create_app(settings), settings) as live, live.client() as client:
        waiting = [threading.Thread(target=save) for _ in range(limit)]
        with live.service.engine.connect() as connection, connection.begin():
            connection.execute(text("LOCK TABLE plans IN ACCESS EXCLUSIVE MODE"))
            for thread in waiting:
                thread.start()
            deadline = time.monotonic() + 10
            while f"tonnage_http_requests_in_flight {limit + 1}.0" not in client.get("/metrics").text:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            answer = client.get("/v1/gpus/a10")
            assert answer.status_code == 503
            assert answer.json()["type"] == "/problems/unavailable"
            assert answer.headers["Retry-After"] == "5"
            assert client.get("/healthz").status_code == 200
        for thread in waiting:
            thread.join()
        assert statuses == [201] * limit
        assert client.get("/v1/gpus/a10").status_code == 200
