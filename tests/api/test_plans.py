from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import httpx
import pytest
from live_service import PLAN, LiveService


def saved(client: httpx.Client, **changes: Any) -> Any:
    answer = client.post("/v1/plans", json={**PLAN, **changes})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_plan_is_kept_with_what_was_asked_and_what_came_out(client: httpx.Client) -> None:
    asked = client.post("/v1/estimates/memory", json={"model": PLAN["model"], "hardware": PLAN["hardware"]})
    answer = client.post(
        "/v1/plans", json={**PLAN, "description": "why", "labels": {"team": "a/b", "é": "x"[:0] or "1"} | {}}
    )
    assert answer.status_code == 422, "labels have plain keys"
    answer = client.post("/v1/plans", json={**PLAN, "description": "two\nlines, é", "labels": {"team": "vision"}})
    plan = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/v1/plans/{plan['id']}"
    assert answer.headers["ETag"] == '"1"'
    assert plan["request"] == {"model": PLAN["model"], "hardware": PLAN["hardware"]}
    assert plan["estimate"] == asked.json()
    assert plan["engine_version"] == asked.json()["engine_version"]
    assert plan["resolved"]["model"]["parameters"] == 8_030_261_248
    assert plan["resolved"]["gpu"]["key"] == "h100-sxm-80gb"
    assert (plan["name"], plan["description"], plan["labels"]) == ("first", "two\nlines, é", {"team": "vision"})
    assert plan["created_by"] == "local"
    read = client.get(answer.headers["Location"])
    assert read.json() == plan
    assert read.headers["ETag"] == '"1"'


def test_what_cannot_be_estimated_is_not_kept(client: httpx.Client) -> None:
    answer = client.post("/v1/plans", json={**PLAN, "model": {"id": "meta-llama/Llama-3.1-9B"}})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/model/id"
    assert client.get("/v1/plans").json() == {"items": [], "next_cursor": None}


def test_a_change_is_a_new_revision_and_the_old_ones_stay(client: httpx.Client) -> None:
    plan = saved(client)
    path = f"/v1/plans/{plan['id']}"
    changed = client.put(
        path, json={**PLAN, "name": "second", "training": {"micro_batch_size": 4}}, headers={"If-Match": '"1"'}
    )
    assert changed.status_code == 200
    assert changed.headers["ETag"] == '"2"'
    assert changed.json()["revision"] == 2
    assert changed.json()["created_at"] == plan["created_at"]
    assert client.get(path).json() == changed.json()
    revisions = client.get(f"{path}/revisions").json()["items"]
    assert [revision["revision"] for revision in revisions] == [2, 1]
    first = client.get(f"{path}/revisions/1").json()
    assert first == revisions[1]
    assert first["estimate"] == plan["estimate"]
    assert client.get(f"{path}/revisions/3").status_code == 404


def test_a_change_must_name_what_it_changes(client: httpx.Client) -> None:
    path = f"/v1/plans/{saved(client)['id']}"
    assert client.put(path, json=PLAN).status_code == 428
    assert client.put(path, json=PLAN, headers={"If-Match": '"2"'}).status_code == 412
    assert client.put(path, json=PLAN, headers={"If-Match": 'W/"1"'}).status_code == 412
    assert client.put(path, json=PLAN, headers={"If-Match": "1"}).status_code == 422
    assert client.put(path, json=PLAN, headers={"If-Match": '"1"'}).status_code == 200
    assert client.delete(path).status_code == 428
    assert client.delete(path, headers={"If-Match": '"1"'}).status_code == 412
    assert client.delete(path, headers={"If-Match": "*"}).status_code == 204


def test_of_two_changes_at_once_one_is_stale(client: httpx.Client, live: LiveService) -> None:
    path = f"/v1/plans/{saved(client)['id']}"

    def change(number: int) -> int:
        with live.client() as other:
            return other.put(path, json={**PLAN, "name": f"by {number}"}, headers={"If-Match": '"1"'}).status_code

    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(change, range(6)))
    assert statuses == [200, 412, 412, 412, 412, 412]
    assert client.get(path).json()["revision"] == 2


def test_a_deleted_plan_is_gone(client: httpx.Client) -> None:
    path = f"/v1/plans/{saved(client)['id']}"
    answer = client.delete(path, headers={"If-Match": '"1"'})
    assert (answer.status_code, answer.content) == (204, b"")
    for gone in (path, f"{path}/revisions", f"{path}/revisions/1"):
        assert client.get(gone).status_code == 404
    assert client.put(path, json=PLAN, headers={"If-Match": '"1"'}).status_code == 404
    assert client.get("/v1/plans").json()["items"] == []


def test_an_unchanged_plan_is_not_sent_again(client: httpx.Client) -> None:
    path = f"/v1/plans/{saved(client)['id']}"
    answer = client.get(path, headers={"If-None-Match": '"1"'})
    assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", '"1"')
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert client.get(path, headers={"If-None-Match": '"2"'}).status_code == 200
    assert client.get(path, headers={"If-None-Match": "nonsense"}).status_code == 422


def test_a_list_is_read_page_by_page_newest_first(client: httpx.Client) -> None:
    names = [saved(client, name=f"plan {number}")["name"] for number in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = client.get("/v1/plans", params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        assert len(page["items"]) <= 2
        seen += [plan["name"] for plan in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == names[::-1]


def test_a_list_shows_the_main_figures(client: httpx.Client) -> None:
    plan = saved(client)
    shown = client.get("/v1/plans").json()["items"][0]
    assert shown["total_bytes"] == plan["estimate"]["per_gpu"]["total_bytes"]
    assert shown["fits"] is plan["estimate"]["fits"]
    assert (shown["model"], shown["gpu"]) == (PLAN["model"]["id"], "h100-sxm-80gb")
    assert "estimate" not in shown


def test_a_list_is_narrowed_by_name_and_labels(client: httpx.Client) -> None:
    saved(client, name="Alpha 100%", labels={"team": "a", "stage": "x"})
    saved(client, name="beta", labels={"team": "a"})

    def names(**params: Any) -> list[str]:
        return [plan["name"] for plan in client.get("/v1/plans", params=params).json()["items"]]

    assert names(name="ALPHA") == ["Alpha 100%"]
    assert names(name="%") == ["Alpha 100%"]
    assert names(label="team=a") == ["beta", "Alpha 100%"]
    assert names(label=["team=a", "stage=x"]) == ["Alpha 100%"]
    assert names(label="team=b") == []
    assert client.get("/v1/plans", params={"label": "team"}).status_code == 422
    assert client.get("/v1/plans", params={"label": ["team=a", "team=b"]}).status_code == 422


def test_a_cursor_is_good_for_its_own_list_only(client: httpx.Client) -> None:
    for number in range(2):
        saved(client, name=f"plan {number}")
    cursor = client.get("/v1/plans", params={"limit": 1}).json()["next_cursor"]
    for params in ({"cursor": cursor, "name": "plan"}, {"cursor": cursor[:-3]}, {"cursor": "x"}):
        answer = client.get("/v1/plans", params=params)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["parameter"] == "cursor"
    assert client.get("/v1/nodes", params={"cursor": cursor}).status_code == 422


def test_a_stored_estimate_is_what_was_computed_then(client: httpx.Client, live: LiveService) -> None:
    plan = saved(client)
    with live.service.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE plan_revisions SET estimate = jsonb_set(estimate, '{fits}', 'null'), engine_version = '0.0.1'"
        )
    read = client.get(f"/v1/plans/{plan['id']}").json()
    assert read["engine_version"] == "0.0.1"
    assert read["estimate"]["fits"] is None


def test_a_plan_of_an_engine_that_said_less_is_still_read(client: httpx.Client, live: LiveService) -> None:
    plan = saved(client)
    with live.service.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE plan_revisions SET estimate = jsonb_set(estimate - 'host' - 'moments', '{pipeline_stages}', %s)",
            ('[{"stage": 0, "total_bytes": 1}]',),
        )
    read = client.get(f"/v1/plans/{plan['id']}")
    assert read.json()["estimate"]["pipeline_stages"] == [{"stage": 0, "total_bytes": 1}]
    assert "host" not in read.json()["estimate"]
    (revision,) = client.get(f"/v1/plans/{plan['id']}/revisions").json()["items"]
    assert revision["estimate"] == read.json()["estimate"]
    (shown,) = client.get("/v1/plans").json()["items"]
    assert shown["total_bytes"] == plan["estimate"]["per_gpu"]["total_bytes"]
    changed = client.put(f"/v1/plans/{plan['id']}", json=PLAN, headers={"If-Match": '"1"'})
    assert changed.json()["estimate"] == plan["estimate"]


@pytest.mark.parametrize("path", ["/v1/plans/{}", "/v1/plans/{}/revisions", "/v1/plans/{}/revisions/1"])
def test_a_plan_that_never_was_is_not_found(client: httpx.Client, path: str) -> None:
    assert client.get(path.format(uuid4())).status_code == 404
    assert client.get(path.format("nonsense")).status_code == 422
