from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from live_service import LiveService

GIB = 2**30


def gpu(
    uuid: str, *, index: int = 0, name: str = "NVIDIA H100 80GB HBM3", free: int | None = 60 * GIB
) -> dict[str, Any]:
    memory = None if free is None else {"total_bytes": 80 * GIB, "used_bytes": 80 * GIB - free, "free_bytes": free}
    return {"uuid": uuid, "index": index, "name": name, "memory": memory}


def report(node: str, *gpus: dict[str, Any], sequence: int = 1, **said: Any) -> dict[str, Any]:
    return {
        "node": {"name": node, "agent_version": "0.1.0", **said},
        "boot_id": "boot-1",
        "sequence": sequence,
        "sampled_at": datetime.now(UTC).isoformat(),
        "gpus": list(gpus),
    }


def send(client: httpx.Client, *reports: dict[str, Any]) -> Any:
    answer = client.post("/v1/agent/reports", json={"reports": list(reports)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def uuids(client: httpx.Client, **params: Any) -> list[str]:
    answer = client.get("/v1/inventory/gpus", params=params)
    assert answer.status_code == 200, answer.text
    return [entry["uuid"] for entry in answer.json()["items"]]


def test_a_report_is_stored_once_however_often_it_is_sent(client: httpx.Client) -> None:
    first, second = report("n1", gpu("GPU-1")), report("n1", gpu("GPU-1"), sequence=2)
    assert send(client, first) == {"accepted": 1, "duplicates": 0}
    assert send(client, first, second) == {"accepted": 1, "duplicates": 1}
    assert send(client, first, second) == {"accepted": 0, "duplicates": 2}
    assert uuids(client) == ["GPU-1"]


def test_what_was_reported_is_seen(client: httpx.Client) -> None:
    reading = {
        **gpu("GPU-1"),
        "utilization": {"gpu_percent": 12, "memory_percent": 3},
        "power_watts": 118.5,
        "temperature_celsius": 34,
        "mig_mode": "disabled",
        "processes": [{"pid": 4711, "used_memory_bytes": GIB, "name": "python3"}],
    }
    send(client, report("n1", reading, pool="blue", labels={"rack": "b4"}, driver_version="590.48.01"))
    [shown] = client.get("/v1/inventory/gpus").json()["items"]
    assert {name: shown[name] for name in ("uuid", "index", "name", "utilization", "power_watts", "mig_mode")} == {
        name: reading[name] for name in ("uuid", "index", "name", "utilization", "power_watts", "mig_mode")
    }
    assert shown["memory"] == {**reading["memory"], "reserved_bytes": None}
    assert shown["processes"] == reading["processes"]
    assert (shown["power_limit_watts"], shown["error"]) == (None, None)
    assert (shown["node"], shown["pool"], shown["node_status"], shown["present"]) == ("n1", "blue", "online", True)
    assert shown["gpu"] == ["h100-sxm-80gb"]
    [node] = client.get("/v1/nodes").json()["items"]
    assert (node["name"], node["labels"], node["gpus"]) == ("n1", {"rack": "b4"}, 1)
    assert node["driver_version"] == "590.48.01"
    assert client.get(f"/v1/nodes/{node['id']}").json() == node


def test_sick_gpus_and_nodes_are_seen_too(client: httpx.Client) -> None:
    unknown = {"uuid": None, "index": 1, "name": None, "error": "GPU is lost"}
    send(client, report("n1", gpu("GPU-1"), unknown), {**report("n2"), "error": "driver not loaded"})
    first, second = client.get("/v1/nodes").json()["items"]
    assert first["unidentified_gpus"] == [{"index": 1, "pci_bus_id": None, "error": "GPU is lost"}]
    assert (second["name"], second["error"], second["gpus"]) == ("n2", "driver not loaded", 0)


def test_gpus_are_found_by_what_a_job_needs(client: httpx.Client) -> None:
    send(
        client,
        report("n1", gpu("GPU-1", free=70 * GIB), gpu("GPU-2", index=1, free=10 * GIB), pool="blue"),
        report("n2", gpu("GPU-3", name="NVIDIA H200", free=None), pool="green"),
        report("n3", gpu("GPU-4", name="Acme 9000")),
    )
    assert uuids(client) == ["GPU-1", "GPU-2", "GPU-3", "GPU-4"]
    assert uuids(client, pool="blue") == ["GPU-1", "GPU-2"]
    assert uuids(client, gpu="h100-sxm-80gb") == ["GPU-1", "GPU-2"]
    assert uuids(client, gpu="H200-SXM-141GB") == ["GPU-3"]
    assert uuids(client, name="Acme 9000") == ["GPU-4"]
    assert uuids(client, name="Acme 9000", gpu="h200-sxm-141gb") == []
    assert uuids(client, node="n1", min_free_bytes=20 * GIB) == ["GPU-1"]
    assert uuids(client, min_free_bytes=0) == ["GPU-1", "GPU-2", "GPU-4"]
    assert uuids(client, status="online") == ["GPU-1", "GPU-2", "GPU-3", "GPU-4"]
    assert uuids(client, status=["stale", "offline"]) == []


def test_a_gpu_that_is_gone_is_shown_on_demand(client: httpx.Client) -> None:
    send(client, report("n1", gpu("GPU-1"), gpu("GPU-2", index=1)))
    send(client, report("n1", gpu("GPU-1"), sequence=2))
    assert uuids(client) == ["GPU-1"]
    assert uuids(client, include_absent=True) == ["GPU-1", "GPU-2"]


def test_lists_are_read_page_by_page(client: httpx.Client) -> None:
    for number in range(5):
        send(client, report(f"n{number}", gpu(f"GPU-{number}a"), gpu(f"GPU-{number}b", index=1)))
    for path, key, expected in (
        ("/v1/nodes", "name", [f"n{number}" for number in range(5)]),
        ("/v1/inventory/gpus", "uuid", [f"GPU-{number}{letter}" for number in range(5) for letter in "ab"]),
    ):
        seen, cursor = [], None
        while True:
            page = client.get(path, params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
            seen += [entry[key] for entry in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == expected


def test_a_silent_node_becomes_stale_then_offline(client: httpx.Client, live: LiveService) -> None:
    send(client, report("n1", gpu("GPU-1")))
    for silent_seconds, status in ((30, "online"), (70, "stale"), (400, "offline")):
        then = datetime.now(UTC) - timedelta(seconds=silent_seconds)
        with live.service.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE nodes SET received_at = %s", (then,))
        assert client.get("/v1/nodes").json()["items"][0]["status"] == status
        assert uuids(client, status=status) == ["GPU-1"]
        assert [node["name"] for node in client.get("/v1/nodes", params={"status": status}).json()["items"]] == ["n1"]


@pytest.mark.parametrize("reports", [[], "x", None, [{}]])
def test_a_batch_without_reports_is_refused(client: httpx.Client, reports: object) -> None:
    assert client.post("/v1/agent/reports", json={"reports": reports}).status_code == 422
