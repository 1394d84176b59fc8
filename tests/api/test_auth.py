from datetime import UTC, datetime, timedelta

import httpx
import pytest
from live_service import PLAN, LiveService, running

from app.api.auth import Role
from app.main import create_app
from app.settings import Settings
from app.storage import db, tokens

REPORT = {
    "node": {"name": "gpu-01", "agent_version": "1"},
    "boot_id": "b",
    "sequence": 1,
    "sampled_at": "2026-01-31T12:00:00Z",
    "gpus": [],
    "error": "no driver",
}
REPORTS = {"reports": [REPORT]}


def counted(live: LiveService, reason: str) -> float:
    name, labels = "tonnage_authentication_failures_total", f'reason="{reason}"'
    with live.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}{{{labels}"))


@pytest.mark.parametrize(
    ("role", "read", "save", "report"),
    [
        (Role.VIEWER, 200, 403, 403),
        (Role.PLANNER, 200, 201, 403),
        (Role.ADMIN, 200, 201, 403),
        (Role.AGENT, 403, 403, 200),
    ],
)
def test_a_role_may_do_what_it_says(live: LiveService, role: Role, read: int, save: int, report: int) -> None:
    with live.client(live.token(role)) as client:
        assert client.get("/v1/plans").status_code == read
        assert client.post("/v1/plans", json=PLAN).status_code == save
        assert client.post("/v1/agent/reports", json=REPORTS).status_code == report


def test_a_refused_role_is_told_what_is_needed(live: LiveService) -> None:
    with live.client(live.token(Role.VIEWER)) as client:
        answer = client.post("/v1/plans", json=PLAN)
    assert answer.json()["detail"] == "this needs a token with role planner; the one sent has viewer"
    assert "WWW-Authenticate" not in answer.headers


def test_a_plan_carries_the_name_of_the_token(live: LiveService) -> None:
    with live.client(live.token(Role.PLANNER, name="alice")) as client:
        assert client.post("/v1/plans", json=PLAN).json()["created_by"] == "alice"


def test_local_mode_ends_at_once_and_for_good_with_the_first_token(live: LiveService) -> None:
    with live.client() as client:
        assert client.post("/v1/plans", json=PLAN).status_code == 201
        assert client.post("/v1/agent/reports", json=REPORTS).status_code == 200
        secret = live.token(Role.ADMIN, name="first")
        assert client.get("/v1/plans").status_code == 401
        assert client.post("/v1/agent/reports", json=REPORTS).status_code == 401
        with db.transaction(live.service.sessions) as session:
            tokens.revoke(session, "first", datetime.now(UTC))
        assert client.get("/v1/plans", headers={"Authorization": f"Bearer {secret}"}).status_code == 401
        assert client.get("/v1/plans").status_code == 401, "a revoked token does not open the door again"


def test_in_local_mode_a_wrong_token_is_still_wrong(client: httpx.Client) -> None:
    assert client.get("/v1/plans", headers={"Authorization": "Bearer tng_viewer_nonsense"}).status_code == 401


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000", "a.localhost"]
)
def test_local_mode_answers_whoever_names_this_machine(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/plans", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8000"},
        {"Host": "localhost.evil.example"},
        {"Host": "127.0.0.1.nip.io"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-Forwarded-For": "10.0.0.1"},
        {"Forwarded": "for=10.0.0.1"},
        {"Via": "1.1 proxy"},
    ],
    ids=str,
)
def test_local_mode_refuses_what_only_seems_to_be_local(client: httpx.Client, headers: dict[str, str]) -> None:
    for answer in (client.get("/v1/plans", headers=headers), client.post("/v1/plans", json=PLAN, headers=headers)):
        assert answer.status_code == 403
        assert answer.json()["type"] == "/problems/forbidden"


def test_the_docs_page_may_try_requests_in_local_mode(client: httpx.Client) -> None:
    headers = {"Origin": str(client.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert client.post("/v1/plans", json=PLAN, headers=headers).status_code == 201


def test_a_token_works_from_anywhere(live: LiveService) -> None:
    headers = {"Host": "tonnage.example", "Origin": "https://other.example", "X-Forwarded-For": "10.0.0.1"}
    with live.client(live.token(Role.VIEWER)) as client:
        assert client.get("/v1/plans", headers=headers).status_code == 200


def test_beyond_loopback_there_is_no_local_mode(fresh_database: str) -> None:
    settings = Settings.from_environment({}, database_url=fresh_database, host="192.0.2.1")
    with running(create_app(settings), settings) as live, live.client() as client:
        assert client.get("/v1/plans").status_code == 401


def test_a_token_of_one_node_reports_for_no_other(live: LiveService) -> None:
    with live.client(live.token(Role.AGENT, node="gpu-01")) as client:
        assert client.post("/v1/agent/reports", json=REPORTS).status_code == 200
        other = {**REPORT, "node": {"name": "gpu-02", "agent_version": "1"}}
        answer = client.post("/v1/agent/reports", json={"reports": [REPORT, other]})
        assert answer.status_code == 403
        assert "for node gpu-01 only, not for gpu-02" in answer.json()["detail"]


def test_the_use_of_a_token_is_noted(live: LiveService) -> None:
    secret = live.token(Role.VIEWER, name="seen")
    before = datetime.now(UTC)
    with live.client(secret) as client:
        client.get("/v1/plans")
    with db.transaction(live.service.sessions) as session:
        [token] = tokens.list_tokens(session)
    assert token.last_used_at is not None
    assert before <= token.last_used_at <= before + timedelta(minutes=1)


def test_refused_tokens_are_counted(live: LiveService) -> None:
    live.token(Role.VIEWER)
    before = {reason: counted(live, reason) for reason in ("missing", "malformed", "unknown")}
    with live.client() as client:
        client.get("/v1/plans")
        client.get("/v1/plans", headers={"Authorization": "nonsense"})
        client.get("/v1/plans", headers={"Authorization": "Bearer nonsense"})
    assert {reason: counted(live, reason) - count for reason, count in before.items()} == dict.fromkeys(before, 1.0)


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json", "/problems", "/healthz", "/readyz", "/metrics"])
def test_what_is_public_needs_no_token(live: LiveService, path: str) -> None:
    live.token(Role.ADMIN)
    with live.client() as client:
        assert client.get(path).status_code == 200
