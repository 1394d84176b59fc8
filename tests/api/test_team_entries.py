"""A team's own GPUs, node shapes and prices: stored with source and day, used like what ships, never in its place."""

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from live_service import ENTRIES, GPU, INSTANCE, PLAN, SHAPE, LiveService, running

from app.api.auth import Role
from app.main import create_app
from app.settings import Settings
from app.storage import db, entries
from app.units import GIB, MIB

paths = pytest.mark.parametrize("path", ENTRIES)
ASKED = {"model": {"parameters": 1_000_000_000}, "hardware": {"gpu": "ours"}}


def store(client: httpx.Client, path: str, key: str = "ours", **changes: Any) -> httpx.Response:
    answer = client.post(path, json={"key": key, **ENTRIES[path], **changes})
    assert answer.status_code == 201, answer.text
    return answer


@paths
def test_an_entry_is_stored_read_changed_and_deleted(client: httpx.Client, path: str) -> None:
    stored = store(client, path)
    assert stored.headers["Location"] == f"{path}/ours"
    assert stored.headers["ETag"] == '"1"'
    assert stored.json()["team"]["created_by"] == "local"
    read = client.get(f"{path}/ours")
    assert read.json() == stored.json()
    assert client.get(f"{path}/ours", headers={"If-None-Match": read.headers["ETag"]}).status_code == 304
    [listed] = client.get(path, params={"origin": "team"}).json()["items"]
    assert listed == read.json()
    changed = client.put(f"{path}/ours", json={**ENTRIES[path], "notes": "new"}, headers={"If-Match": '"1"'})
    assert (changed.status_code, changed.headers["ETag"]) == (200, '"2"')
    assert (changed.json()["notes"], changed.json()["team"]["revision"]) == ("new", 2)
    assert client.get(f"{path}/OURS").json() == changed.json()
    assert client.delete(f"{path}/Ours", headers={"If-Match": '"2"'}).status_code == 204
    assert client.get(f"{path}/ours").status_code == 404
    assert client.get(path, params={"origin": "team"}).json()["items"] == []
    assert store(client, path).headers["ETag"] == '"3"', "an ETag never means two states"


@paths
def test_a_change_must_name_what_it_changes(client: httpx.Client, path: str) -> None:
    store(client, path)
    body = ENTRIES[path]
    assert client.put(f"{path}/ours", json=body).status_code == 428
    assert client.put(f"{path}/ours", json=body, headers={"If-Match": '"2"'}).status_code == 412
    assert client.delete(f"{path}/ours", headers={"If-Match": '"2"'}).status_code == 412
    assert client.put(f"{path}/others", json=body, headers={"If-Match": '"1"'}).status_code == 404


@paths
def test_the_same_request_again_stores_nothing_new(client: httpx.Client, path: str) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"key": "ours", **ENTRIES[path]}
    first, again = (client.post(path, json=body, headers=headers) for _ in range(2))
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["Idempotency-Replayed"] == "true"
    refused = client.post(path, json=body)
    assert (refused.status_code, refused.json()["type"]) == (409, "/problems/conflict")
    assert f"PUT {path}/ours changes it" in refused.json()["detail"]


@paths
@pytest.mark.parametrize("missing", ["source", "as_of", "key"])
def test_source_day_and_key_are_required(client: httpx.Client, path: str, missing: str) -> None:
    body = {name: value for name, value in {"key": "ours", **ENTRIES[path]}.items() if name != missing}
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"/{missing}")


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/v1/gpus", "h100-sxm-80gb"),
        ("/v1/gpus", "h100-sxm5-80gb"),
        ("/v1/gpus", "h100-sxm-80gb:mig-3g.40gb"),
        ("/v1/node-shapes", "dgx-h100"),
        ("/v1/instances", "aws:p5.48xlarge:us-east-1"),
    ],
)
def test_a_key_that_ships_is_not_taken(client: httpx.Client, path: str, key: str) -> None:
    before = client.get(f"{path}/{key}").json()
    answer = client.post(path, json={"key": key, **ENTRIES[path]})
    assert answer.status_code == 409
    assert f"{key} ships with Tonnage and cannot be replaced; choose another key" in answer.json()["detail"]
    assert client.get(f"{path}/{key}").json() == before
    assert client.delete(f"{path}/{key}", headers={"If-Match": "*"}).status_code == 404


def test_what_a_later_version_ships_comes_before_a_gpu_of_the_same_key_and_both_are_listed(
    client: httpx.Client, live: LiveService
) -> None:
    with db.transaction(live.service.sessions) as session:
        entries.create(session, kind="gpu", key="b200", content=GPU, author="alice", now=datetime.now(UTC))
    assert client.get("/v1/gpus/b200").json()["team"] is None
    estimate = client.post("/v1/estimates/memory", json={**ASKED, "hardware": {"gpu": "b200"}}).json()
    assert estimate["gpu"]["name"] == "NVIDIA B200"
    listed = [gpu for gpu in client.get("/v1/gpus", params={"limit": 200}).json()["items"] if gpu["key"] == "b200"]
    assert [gpu["team"] is None for gpu in listed] == [True, False]
    assert client.delete("/v1/gpus/b200", headers={"If-Match": '"1"'}).status_code == 204


@paths
@pytest.mark.parametrize("key", ["Ours", "our gpu", "a/b", "-", "", "x" * 101, "ü"])
def test_a_key_is_plain(client: httpx.Client, path: str, key: str) -> None:
    answer = client.post(path, json={"key": key, **ENTRIES[path]})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/key")


def test_a_gpu_of_one_s_own_is_planned_with_like_any_other(client: httpx.Client) -> None:
    assert client.post("/v1/estimates/memory", json=ASKED).status_code == 422
    store(client, "/v1/gpus")
    estimate = client.post("/v1/estimates/memory", json=ASKED).json()
    assert estimate["gpu"]["key"] == "ours"
    assert estimate["gpu"]["memory_bytes"] == GPU["memory_bytes"]
    assert estimate["fits"] is False
    answer = client.post("/v1/estimates/memory", json={**ASKED, "hardware": {"gpu": "our"}})
    assert "nearest: ours" in answer.json()["detail"]


def test_a_saved_plan_keeps_the_gpu_as_it_was(client: httpx.Client) -> None:
    store(client, "/v1/gpus")
    plan = client.post("/v1/plans", json={**PLAN, "hardware": {"gpu": "ours"}}, headers={"Idempotency-Key": "p"})
    assert plan.status_code == 201
    client.put("/v1/gpus/ours", json={**GPU, "memory_bytes": 90 * GIB}, headers={"If-Match": '"1"'})
    client.delete("/v1/gpus/ours", headers={"If-Match": '"2"'}).raise_for_status()
    kept = client.get(plan.headers["Location"]).json()
    assert kept == plan.json()
    assert kept["resolved"]["gpu"]["memory_bytes"] == GPU["memory_bytes"]
    assert kept["resolved"]["gpu"]["source"] == GPU["source"]


def test_saving_a_plan_with_it_takes_one_connection_only(fresh_database: str) -> None:
    """With two, as many requests at once as the pool has connections would wait for each other."""
    settings = Settings.from_environment({}, database_url=fresh_database, database_pool_size=1, database_wait_seconds=1)
    with running(create_app(settings), settings) as service, service.client() as client:
        store(client, "/v1/gpus")
        body = {**PLAN, "hardware": {"gpu": "ours"}}
        assert client.post("/v1/plans", json=body, headers={"Idempotency-Key": "p"}).status_code == 201
        assert client.post("/v1/node-shapes", json={"key": "ours", **SHAPE, "gpu": "ours"}).status_code == 201


def test_a_gpu_in_use_is_not_deleted(client: httpx.Client) -> None:
    store(client, "/v1/gpus")
    store(client, "/v1/node-shapes", gpu="ours")
    store(client, "/v1/instances", key="lab", gpu="ours")
    answer = client.delete("/v1/gpus/ours", headers={"If-Match": '"1"'})
    assert answer.status_code == 409
    assert "ours is the GPU of node-shape ours, instance lab" in answer.json()["detail"]
    assert client.get("/v1/instances", params={"gpu": "ours"}).json()["items"][0]["key"] == "lab"


def test_a_name_that_means_a_card_already_is_refused(client: httpx.Client) -> None:
    taken = {**GPU, "key": "ours", "memory_bytes": 12_288 * MIB}
    answer = client.post("/v1/gpus", json=taken)
    assert answer.status_code == 409
    assert "'NVIDIA GeForce RTX 3080' with 12288 MiB is rtx-3080-12gb" in answer.json()["detail"]
    store(client, "/v1/gpus")
    again = client.post("/v1/gpus", json={**GPU, "key": "others"})
    assert again.status_code == 409
    assert "is ours" in again.json()["detail"]
    changed = client.put("/v1/gpus/ours", json={**GPU, "notes": "same name"}, headers={"If-Match": '"1"'})
    assert changed.status_code == 200


def test_the_fleet_s_gpus_are_told_by_a_name_of_one_s_own(client: httpx.Client) -> None:
    def card(uuid: str, total_mib: int) -> dict[str, Any]:
        memory = {"total_bytes": total_mib * MIB, "used_bytes": 0, "free_bytes": total_mib * MIB}
        return {"uuid": uuid, "index": total_mib, "name": "NVIDIA GeForce RTX 3080", "memory": memory}

    gpus = [card("GPU-1", 10_240), card("GPU-2", 12_288), card("GPU-3", 19_456), card("GPU-4", 4_096)]
    node = {"name": "lab", "agent_version": "0"}
    report = {"node": node, "boot_id": "b", "sequence": 1, "sampled_at": "2026-01-31T12:00:00Z", "gpus": gpus}
    client.post("/v1/agent/reports", json={"reports": [report]}).raise_for_status()
    store(client, "/v1/gpus")
    shown = {gpu["uuid"]: gpu["gpu"] for gpu in client.get("/v1/inventory/gpus").json()["items"]}
    assert shown == {
        "GPU-1": ["rtx-3080-10gb"],
        "GPU-2": ["rtx-3080-12gb"],
        "GPU-3": ["ours"],
        "GPU-4": ["rtx-3080-10gb", "rtx-3080-12gb"],
    }
    for key, uuids in (("rtx-3080-12gb", ["GPU-4", "GPU-2"]), ("ours", ["GPU-4", "GPU-3"])):
        found = client.get("/v1/inventory/gpus", params={"gpu": key}).json()["items"]
        assert [gpu["uuid"] for gpu in found] == uuids


@pytest.mark.parametrize(
    ("path", "changes", "pointer", "told"),
    [
        ("/v1/gpus", {"compute_capability": "nine"}, "/compute_capability", "pattern"),
        ("/v1/gpus", {"reserved_bytes": GPU["memory_bytes"]}, "", "needs reserved_bytes less than memory_bytes"),
        ("/v1/gpus", {"dense_flops_per_second": {"bf17": 1e12}}, "/dense_flops_per_second/bf17", "'bf16'"),
        ("/v1/gpus", {"dense_flops_per_second": {"bf16": 0}}, "/dense_flops_per_second/bf16", "greater than 0"),
        ("/v1/gpus", {"interconnect": "nvlink-9"}, "/interconnect", "nearest: nvlink-"),
        ("/v1/gpus", {"as_of": "31.01.2026"}, "/as_of", "2026-01-31"),
        ("/v1/gpus", {"as_of": 20260131}, "/as_of", "2026-01-31"),
        ("/v1/gpus", {"as_of": "2026-02-30"}, "/as_of", "2026-01-31"),
        ("/v1/gpus", {"memory": 1}, "/memory", "nearest: memory_bytes"),
        ("/v1/node-shapes", {"gpu": "h1000"}, "/gpu", "nearest: h100-sxm-80gb"),
        ("/v1/node-shapes", {"network": "infiniband-hd"}, "/network", "nearest: infiniband-hdr"),
        ("/v1/instances", {"gpu": "h1000"}, "/gpu", "nearest: h100-sxm-80gb"),
        ("/v1/instances", {"on_demand_per_hour_usd": None}, "", "needs at least one of on_demand_per_hour_usd"),
        ("/v1/instances", {"gpus": 0}, "/gpus", "greater than 0"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_where_it_stands(
    client: httpx.Client, path: str, changes: dict[str, Any], pointer: str, told: str
) -> None:
    body = {**ENTRIES[path], **changes}
    created = client.post(path, json={"key": "ours", **body})
    assert (created.status_code, created.json()["errors"][0]["pointer"]) == (422, pointer), created.text
    assert told in created.json()["errors"][0]["detail"]
    store(client, path)
    changed = client.put(f"{path}/ours", json=body, headers={"If-Match": '"1"'})
    assert (changed.status_code, changed.json()["errors"][0]["pointer"]) == (422, pointer)


def test_prices_of_one_s_own_stand_beside_what_ships(client: httpx.Client) -> None:
    store(client, "/v1/instances", key="aws:p5.48xlarge:us-east-1:agreed")
    found = client.get("/v1/instances", params={"gpu": "h100-sxm-80gb", "provider": "aws", "min_gpus": 8}).json()
    prices = {one["key"]: one["on_demand"] and one["on_demand"]["per_gpu_hour_usd"] for one in found["items"]}
    assert prices["aws:p5.48xlarge:us-east-1"] == 6.88
    assert prices["aws:p5.48xlarge:us-east-1:agreed"] == INSTANCE["on_demand_per_hour_usd"] / 8
    [ours] = client.get("/v1/instances", params={"origin": "team"}).json()["items"]
    assert ours["on_demand"]["as_of"] == INSTANCE["as_of"]
    assert ours["on_demand"]["is_order_of_magnitude"] is False


def test_a_node_shape_says_what_a_gpu_has_of_the_network(client: httpx.Client) -> None:
    shape = store(client, "/v1/node-shapes", network_bytes_per_second_per_direction=200e9).json()
    assert shape["network_bytes_per_second_per_direction_per_gpu"] == 25e9
    assert SHAPE["gpus_per_node"] == 8


@paths
def test_viewers_read_and_planners_store(live: LiveService, path: str) -> None:
    with live.client(live.token(Role.PLANNER)) as planner, live.client(live.token(Role.VIEWER)) as viewer:
        store(planner, path)
        assert viewer.get(f"{path}/ours").status_code == 200
        assert viewer.post(path, json={"key": "x", **ENTRIES[path]}).status_code == 403
        assert viewer.delete(f"{path}/ours", headers={"If-Match": "*"}).status_code == 403
