"""Every way to fail, through real HTTP: what comes back is a problem that a person can act on, and nothing else."""

import json
import re
import socket
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from live_service import PLAN, LiveService

from app.api.auth import Role
from app.api.problems import MEDIA_TYPE, STATUS, problem_types, status_of
from app.errors import InvalidInput, TonnageError
from app.storage import db, tokens

ESTIMATE = "/v1/estimates/memory"
LEAKS = re.compile(r"Traceback|SELECT |INSERT |(?i:psycopg|sqlalchemy|pydantic)|\.py\b|/etc/|/tmp|site-packages")


@dataclass(frozen=True)
class Case:
    status: int
    slug: str
    detail: str
    path: str = ESTIMATE
    method: str = "POST"
    body: Any = None
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    pointer: str | None = None
    parameter: str | None = None


def body(**changes: Any) -> dict[str, Any]:
    return {"model": {"id": "meta-llama/Llama-3.1-8B"}, **changes}


JSON = {"Content-Type": "application/json"}
CASES = {
    "unknown path": Case(404, "not-found", "no such path; nearest: /v1/plans;", "/v1/plan", "GET"),
    "trailing slash": Case(404, "not-found", "nearest: /v1/plans;", "/v1/plans/", "GET"),
    "far away path": Case(404, "not-found", "no such path; all are listed at /docs", "/xyzzy%0A%00", "GET"),
    "wrong method": Case(
        405, "method-not-allowed", "PATCH is not possible here; allowed: GET, HEAD, POST", "/v1/plans", "PATCH"
    ),
    "unknown method": Case(405, "method-not-allowed", "BREW is not possible here", "/v1/plans", "BREW"),
    "no body": Case(422, "invalid-input", "the body is required", raw=b"", pointer=""),
    "broken JSON": Case(
        400, "malformed-body", "expecting value at line 1, column 11", raw=b'{"model": }', headers=JSON
    ),
    "NaN": Case(400, "malformed-body", "NaN is not a JSON number at line 1", raw=b'{"model": NaN}', headers=JSON),
    "duplicate key": Case(
        400, "malformed-body", '"model" is there twice', raw=b'{"model": 1, "model": 2}', headers=JSON
    ),
    "not UTF-8": Case(400, "malformed-body", "the body is not UTF-8", raw=b'{"model": "\xff"}', headers=JSON),
    "deep nesting": Case(400, "malformed-body", "nested more than 64", raw=b"[" * 50_000 + b"]" * 50_000, headers=JSON),
    "huge integer": Case(
        400, "malformed-body", "integer of 5000 digits", raw=b'{"a": ' + b"9" * 5_000 + b"}", headers=JSON
    ),
    "lone surrogate": Case(400, "malformed-body", "half of a surrogate", raw=b'{"a": "\\ud800"}', headers=JSON),
    "not an object": Case(422, "invalid-input", "should be", body=[1], pointer=""),
    "null": Case(422, "invalid-input", "the body", body=None, raw=b"null", headers=JSON, pointer=""),
    "unknown field": Case(
        422,
        "invalid-input",
        "/training/micro_batchsize is unknown; nearest: micro_batch_size",
        body=body(training={"micro_batchsize": 4}),
        pointer="/training/micro_batchsize",
    ),
    "unknown field at the top": Case(
        422, "invalid-input", "nearest: training", body=body(trainign={}), pointer="/trainign"
    ),
    "unknown field in a branch": Case(
        422,
        "invalid-input",
        "/training/precision/gradient is unknown; nearest: gradients",
        body=body(
            training={"precision": {"compute": "bf16", "parameters": "bf16", "gradients": "bf16", "gradient": "x"}}
        ),
        pointer="/training/precision/gradient",
    ),
    "odd field name": Case(422, "invalid-input", "is unknown", body=body(**{"a/b~c": 1}), pointer="/a~1b~0c"),
    "missing field": Case(422, "invalid-input", "/model is required", body={}, pointer="/model"),
    "negative": Case(
        422,
        "invalid-input",
        "/training/micro_batch_size should be greater than or equal to 1, not -4",
        body=body(training={"micro_batch_size": -4}),
        pointer="/training/micro_batch_size",
    ),
    "number in a string": Case(
        422,
        "invalid-input",
        'should be a valid integer, not "4"',
        body=body(training={"micro_batch_size": "4"}),
        pointer="/training/micro_batch_size",
    ),
    "boolean for a number": Case(
        422,
        "invalid-input",
        "not true",
        body=body(training={"micro_batch_size": True}),
        pointer="/training/micro_batch_size",
    ),
    "fraction": Case(
        422,
        "invalid-input",
        "not 1.5",
        body=body(training={"micro_batch_size": 1.5}),
        pointer="/training/micro_batch_size",
    ),
    "wrong word": Case(
        422,
        "invalid-input",
        "'foreach', 'fused' or 'for-loop', not \"fsued\"",
        body=body(training={"optimizer_implementation": "fsued"}),
        pointer="/training/optimizer_implementation",
    ),
    "wrong word where an object may be": Case(
        422, "invalid-input", "bf16-mixed", body=body(training={"precision": "bf17"}), pointer="/training/precision"
    ),
    "large value": Case(
        422,
        "invalid-input",
        "should be 'adamw'",
        body=body(training={"optimizer": "x" * 10_000}),
        pointer="/training/optimizer",
    ),
    "unknown model": Case(
        422,
        "unknown-name",
        "nearest: meta-llama/Llama-3.1-8B",
        body={"model": {"id": "meta-llama/llama-3.1-9b"}},
        pointer="/model/id",
    ),
    "unknown gpu": Case(
        422, "unknown-name", "nearest: h100", body=body(hardware={"gpu": "h1000"}), pointer="/hardware/gpu"
    ),
    "impossible layout": Case(
        422,
        "impossible-layout",
        "needs 16 GPUs",
        pointer="/parallelism",
        body=body(parallelism={"data_parallel_size": 16}, hardware={"gpu": "h100-sxm-80gb", "gpus_per_node": 8}),
    ),
    "unknown parameter": Case(
        422, "invalid-input", "limt is unknown; nearest: limit", "/v1/plans?limt=5", "GET", parameter="limt"
    ),
    "parameter where none is": Case(422, "invalid-input", "known: none", ESTIMATE + "?x=1", body=body(), parameter="x"),
    "parameter twice": Case(
        422, "invalid-input", "given more than once", "/v1/plans?limit=1&limit=2", "GET", parameter="limit"
    ),
    "limit too large": Case(
        422,
        "invalid-input",
        "limit should be less than or equal to 200",
        "/v1/plans?limit=201",
        "GET",
        parameter="limit",
    ),
    "limit no number": Case(
        422, "invalid-input", "limit should be a valid integer", "/v1/plans?limit=1.5", "GET", parameter="limit"
    ),
    "bad cursor": Case(
        422, "invalid-input", "send next_cursor as it came", "/v1/plans?cursor=AAAA", "GET", parameter="cursor"
    ),
    "NUL in a parameter": Case(
        422, "invalid-input", "pool should match", "/v1/nodes?pool=%00", "GET", parameter="pool"
    ),
    "invalid UTF-8 in a parameter": Case(
        422, "unknown-name", "unknown gpu", "/v1/inventory/gpus?gpu=%ff", "GET", parameter="gpu"
    ),
    "bad id": Case(422, "invalid-input", "plan_id should be a valid UUID", "/v1/plans/7", "GET", parameter="plan_id"),
    "huge id": Case(422, "invalid-input", "node_id should be", f"/v1/nodes/{2**63}", "GET", parameter="node_id"),
    "no such node": Case(404, "not-found", "no node", "/v1/nodes/7", "GET"),
    "no such gpu": Case(404, "not-found", "nearest: h100-sxm-80gb", "/v1/gpus/h1000", "GET"),
    "no media type": Case(415, "unsupported-media-type", "Content-Type: application/json", raw=b"{}"),
    "form": Case(
        415,
        "unsupported-media-type",
        "as JSON",
        raw=b"a=1",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ),
    "Latin-1": Case(
        415, "unsupported-media-type", "UTF-8", raw=b"{}", headers={"Content-Type": "application/json; charset=latin-1"}
    ),
    "compressed": Case(
        415,
        "unsupported-media-type",
        "without Content-Encoding",
        raw=b"{}",
        headers={**JSON, "Content-Encoding": "gzip"},
    ),
    "too large": Case(413, "body-too-large", "may have 1,000,000 bytes", raw=b" " * 1_000_001, headers=JSON),
    "bad idempotency key": Case(
        422,
        "invalid-input",
        "Idempotency-Key should",
        "/v1/plans",
        body=PLAN,
        headers={"Idempotency-Key": "a b"},
        parameter="Idempotency-Key",
    ),
    "crash": Case(500, "internal-error", "Report request", "/v1/crash", "GET"),
    "crash at commit": Case(500, "internal-error", "Report request", "/v1/crash-at-commit", "GET"),
    "missing problem page": Case(404, "not-found", "/problems", "/problems/xyzzy", "GET"),
    "missing asset": Case(404, "not-found", "/docs", "/docs/..%2fx", "GET"),
}


def send(client: httpx.Client, case: Case) -> httpx.Response:
    if case.raw is not None:
        return client.request(case.method, case.path, content=case.raw, headers=case.headers)
    return client.request(case.method, case.path, json=case.body, headers=case.headers)


def check_problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, MEDIA_TYPE), answer.text
    assert answer.headers["Cache-Control"] == "no-store"
    assert not LEAKS.search(answer.text), answer.text
    assert len(answer.content) < 5_000
    problem: dict[str, Any] = answer.json()
    assert set(problem) - {"errors"} == {"type", "title", "status", "detail", "instance", "request_id"}
    assert problem["type"] == f"/problems/{slug}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["instance"] == answer.request.url.raw_path.decode().partition("?")[0]
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    return problem


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_failure_is_a_problem_that_says_what_to_do(client: httpx.Client, case: Case) -> None:
    problem = check_problem(send(client, case), case.status, case.slug)
    assert case.detail in problem["detail"]
    places = [(error.get("pointer"), error.get("parameter")) for error in problem.get("errors", ())]
    if case.pointer is not None or case.parameter is not None:
        assert places == [(case.pointer, case.parameter)]
        assert all(error["detail"] for error in problem["errors"])
    assert client.get(problem["type"]).status_code == 200


def test_several_wrong_places_are_all_named(client: httpx.Client) -> None:
    training = {"micro_batch_size": 0, "seqence_length": 1, "recompute": "some"}
    problem = check_problem(client.post(ESTIMATE, json={"training": training}), 422, "invalid-input")
    pointers = [error["pointer"] for error in problem["errors"]]
    assert pointers == ["/model", "/training/micro_batch_size", "/training/recompute", "/training/seqence_length"]
    assert "(3 more under errors)" in problem["detail"]


def test_a_thousand_wrong_places_are_cut_short(client: httpx.Client) -> None:
    answer = client.post(ESTIMATE, json=body(**{f"field{number}": 1 for number in range(1_000)}))
    assert len(check_problem(answer, 422, "invalid-input")["errors"]) == 20


def test_a_wrong_place_with_an_absurd_name_is_cut_short(client: httpx.Client) -> None:
    answer = client.post(ESTIMATE, json=body(**{"x" * 500_000: 1}))
    problem = check_problem(answer, 422, "invalid-input")
    assert problem["errors"][0]["pointer"] == f"/{'x' * 100}…"


def test_wrong_places_in_reports_are_found(client: httpx.Client) -> None:
    report = {
        "node": {"name": "a b", "agent_version": "1"},
        "boot_id": "b",
        "sequence": 1,
        "sampled_at": "yesterday",
        "gpus": [],
    }
    problem = check_problem(client.post("/v1/agent/reports", json={"reports": [report]}), 422, "invalid-input")
    assert [error["pointer"] for error in problem["errors"]] == ["/reports/0/node", "/reports/0/sampled_at"]
    report = {**report, "node": {"name": "a", "agent_version": "1", "pol": "x"}, "sampled_at": "2026-01-31T12:00:00Z"}
    problem = check_problem(client.post("/v1/agent/reports", json={"reports": [report]}), 422, "invalid-input")
    assert problem["detail"] == "/reports/0/node/pol is unknown; nearest: pool"


def test_who_is_unknown_is_refused_before_the_body_is_read(live: LiveService) -> None:
    live.token(Role.VIEWER)
    with live.client() as client:
        for content in (b"{broken", b"\xff"):
            check_problem(client.post(ESTIMATE, content=content, headers=JSON), 401, "unauthenticated")


@pytest.mark.parametrize("kind", ["missing", "wrong", "expired", "revoked", "not a bearer", "empty", "very long"])
def test_without_a_good_token_nobody_comes_in(live: LiveService, kind: str) -> None:
    now = datetime.now(UTC)
    good = live.token(Role.ADMIN)
    expired = live.token(Role.ADMIN, expires_at=now - timedelta(seconds=1))
    revoked = live.token(Role.ADMIN, name="revoked")
    with db.transaction(live.service.sessions) as session:
        tokens.revoke(session, "revoked", now)
    sent = {
        "missing": {},
        "wrong": {"Authorization": f"Bearer {good[:-1]}"},
        "expired": {"Authorization": f"Bearer {expired}"},
        "revoked": {"Authorization": f"Bearer {revoked}"},
        "not a bearer": {"Authorization": f"Basic {good}"},
        "empty": {"Authorization": "Bearer"},
        "very long": {"Authorization": f"Bearer {good}{'x' * 5_000}"},
    }[kind]
    with live.client() as client:
        answer = client.get("/v1/plans", headers=sent)
        problem = check_problem(answer, 401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="tonnage"')
        assert ("invalid_token" in answer.headers["WWW-Authenticate"]) == bool(sent)
        assert good not in answer.text
        assert "Bearer <token>" in problem["detail"] or "tonnage token create" in problem["detail"]
        assert client.get("/v1/plans", headers={"Authorization": f"bearer {good}"}).status_code == 200


def test_every_exception_has_a_status_and_its_own_slug() -> None:
    kinds = list(problem_types())
    assert {InvalidInput, *STATUS} <= set(kinds)
    for kind in kinds:
        assert 400 <= status_of(kind) < 600
        assert issubclass(kind, InvalidInput) or kind in STATUS, f"{kind.__name__} needs a row in STATUS"
        assert kind.__doc__
    slugs = [kind.slug for kind in kinds]
    assert len(set(slugs)) == len(slugs)
    assert TonnageError.slug not in slugs


def test_an_exception_without_a_row_has_no_status() -> None:
    with pytest.raises(KeyError):
        status_of(TonnageError)


def test_what_is_too_large_is_answered_before_it_is_sent(live: LiveService) -> None:
    """A client that waits for 100 Continue learns that there is no need to send fifty megabytes."""
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(
            f"POST {ESTIMATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Content-Length: 52428800\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == "/problems/body-too-large"


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "streamed"])
def test_fifty_megabytes_get_a_clear_answer(live: LiveService, declared: bool) -> None:
    """The client sends everything before it reads, as most do, and still sees the answer rather than a reset."""
    host, port = live.url.removeprefix("http://").split(":")
    megabyte = b" " * 2**20
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        length = f"Content-Length: {50 * 2**20}" if declared else "Transfer-Encoding: chunked"
        head = f"POST {ESTIMATE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{length}\r\n\r\n"
        connection.sendall(head.encode())
        for _ in range(50):
            connection.sendall(megabyte if declared else b"100000\r\n" + megabyte + b"\r\n")
        if not declared:
            connection.sendall(b"0\r\n\r\n")
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    head_bytes, _, content = answer.partition(b"\r\n\r\n")
    assert head_bytes.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head_bytes.lower()
    assert "may have 1,000,000 bytes" in json.loads(content)["detail"]
