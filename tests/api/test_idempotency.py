from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
from live_service import PLAN, LiveService

from app.api.auth import Role
from app.main import _drop_old_answers

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
REPEATED = ("Location", "ETag", "Content-Type", "Cache-Control")


def plans(client: httpx.Client) -> int:
    return len(client.get("/v1/plans", params={"limit": 200}).json()["items"])


def test_the_same_request_gets_the_same_answer_and_creates_nothing_new(client: httpx.Client) -> None:
    first = client.post("/v1/plans", json=PLAN, headers=KEY)
    again = client.post("/v1/plans", json=dict(reversed(PLAN.items())), headers=KEY)
    assert (again.status_code, again.content) == (first.status_code, first.content) == (201, first.content)
    assert {name: again.headers[name] for name in REPEATED} == {name: first.headers[name] for name in REPEATED}
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["X-Request-ID"] != first.headers["X-Request-ID"]
    assert plans(client) == 1


def test_the_answer_is_the_first_one_even_when_the_plan_has_changed(client: httpx.Client) -> None:
    first = client.post("/v1/plans", json=PLAN, headers=KEY)
    client.delete(first.headers["Location"], headers={"If-Match": '"1"'})
    assert client.post("/v1/plans", json=PLAN, headers=KEY).content == first.content
    assert plans(client) == 0


def test_another_request_under_the_same_key_is_refused(client: httpx.Client) -> None:
    client.post("/v1/plans", json=PLAN, headers=KEY)
    answer = client.post("/v1/plans", json={**PLAN, "name": "second"}, headers=KEY)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/idempotency-mismatch")
    assert plans(client) == 1


def test_without_a_key_every_request_creates(client: httpx.Client) -> None:
    assert client.post("/v1/plans", json=PLAN).json()["id"] != client.post("/v1/plans", json=PLAN).json()["id"]


def test_a_key_is_its_sender_s_own(live: LiveService) -> None:
    with live.client(live.token(Role.PLANNER)) as alice, live.client(live.token(Role.PLANNER)) as bob:
        first = alice.post("/v1/plans", json=PLAN, headers=KEY)
        other = bob.post("/v1/plans", json={**PLAN, "name": "Bob's"}, headers=KEY)
        assert (first.status_code, other.status_code) == (201, 201)
        assert first.json()["id"] != other.json()["id"]


def test_a_failure_leaves_the_key_free(client: httpx.Client) -> None:
    wrong = {**PLAN, "model": {"id": "nobody/nothing"}}
    assert client.post("/v1/plans", json=wrong, headers=KEY).status_code == 422
    assert client.post("/v1/plans", json=PLAN, headers=KEY).status_code == 201


def test_of_many_at_once_one_creates_and_all_get_its_answer(live: LiveService) -> None:
    def send(_: int) -> httpx.Response:
        with live.client() as client:
            return client.post("/v1/plans", json=PLAN, headers=KEY)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(send, range(16)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    with live.client() as client:
        assert plans(client) == 1


def test_old_answers_are_forgotten(live: LiveService) -> None:
    with live.client() as client:
        first = client.post("/v1/plans", json=PLAN, headers=KEY)
        _drop_old_answers(live.service)
        assert client.post("/v1/plans", json=PLAN, headers=KEY).content == first.content
        with live.service.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE idempotency_keys SET created_at = %s", (datetime.now(UTC) - timedelta(days=8),)
            )
        _drop_old_answers(live.service)
        assert client.post("/v1/plans", json=PLAN, headers=KEY).json()["id"] != first.json()["id"]
