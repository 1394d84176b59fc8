"""`/v1/gpus`, `/v1/interconnects`, `/v1/node-shapes` and `/v1/instances`: what ships, page by page and filtered."""

from typing import Any

import httpx
import pytest

from app import catalog
from app.units import MIB

CATALOG = catalog.load()
SHIPPED = {
    "/v1/gpus": CATALOG.gpus,
    "/v1/interconnects": CATALOG.interconnects,
    "/v1/node-shapes": CATALOG.node_shapes,
    "/v1/instances": CATALOG.instances,
}


def listed(client: httpx.Client, path: str, **filters: Any) -> list[dict[str, Any]]:
    """Everything that the filters admit, page by page."""
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = client.get(path, params={"limit": 17, **filters, **cursor})
        assert answer.status_code == 200, answer.text
        found += answer.json()["items"]
        if answer.json()["next_cursor"] is None:
            return found
        cursor = {"cursor": answer.json()["next_cursor"]}


def keys(client: httpx.Client, path: str, **filters: Any) -> list[str]:
    return [entry["key"] for entry in listed(client, path, **filters)]


@pytest.mark.parametrize("path", SHIPPED)
def test_the_pages_hold_everything_once_by_key(client: httpx.Client, path: str) -> None:
    assert keys(client, path) == sorted(SHIPPED[path], key=lambda key: f"{key} ")


@pytest.mark.parametrize(
    ("path", "filters", "some", "others"),
    [
        ("/v1/gpus", {"architecture": "hopper"}, "h100-sxm-80gb", "b200"),
        ("/v1/gpus", {"min_memory_bytes": 140_000 * MIB}, "h200-sxm-141gb", "h100-sxm-80gb"),
        ("/v1/gpus", {"total_bytes": 95_830 * MIB}, "h100-nvl-94gb", "h100-sxm-80gb"),
        ("/v1/gpus", {"nvml_name": "NVIDIA GeForce RTX 3060"}, "rtx-3060-8gb", "rtx-3060-ti"),
        ("/v1/gpus", {"origin": "catalogue"}, "b200", "ours"),
        ("/v1/interconnects", {"kind": "efa"}, "efa-4", "nvlink-4"),
        ("/v1/interconnects", {"is_announced": False}, "nvlink-5", "nvlink-6"),
        ("/v1/node-shapes", {"gpu": "h100-sxm5-80gb"}, "dgx-h100", "dgx-h200"),
        ("/v1/node-shapes", {"interconnect": "tcpxo"}, "gcp-a3-mega", "gcp-a3-high"),
        ("/v1/node-shapes", {"instance_type": "p5.48xlarge"}, "aws-p5", "aws-p5e"),
        ("/v1/node-shapes", {"min_gpus": 8}, "dgx-h100", "gb200-nvl72-tray"),
        ("/v1/instances", {"gpu": "H100-SXM-80GB"}, "aws:p5.48xlarge:us-east-1", "aws:p5e.48xlarge:us-east-2"),
        ("/v1/instances", {"provider": "AWS"}, "aws:p5.48xlarge:us-east-1", "oci:vm.gpu.a10.1"),
        ("/v1/instances", {"region": "us-east-1"}, "aws:p5.48xlarge:us-east-1", "oci:vm.gpu.a10.1"),
        ("/v1/instances", {"min_gpus": 8}, "aws:p5.48xlarge:us-east-1", "aws:p5.4xlarge:us-east-1"),
        ("/v1/instances", {"max_price_usd": 55.04}, "aws:p5.48xlarge:us-east-1", "aws:p6-b200.48xlarge:us-east-1"),
        ("/v1/instances", {"max_price_per_gpu_usd": 0.8}, "aws:g4dn.xlarge:us-east-1", "aws:p5.48xlarge:us-east-1"),
        (
            "/v1/instances",
            {"pricing": "reserved", "max_price_usd": 1e6},
            "aws:p5.48xlarge:us-east-1:capacity-block",
            "aws:p5.48xlarge:us-east-1",
        ),
        (
            "/v1/instances",
            {"include_order_of_magnitude": False},
            "aws:p5.48xlarge:us-east-1",
            "vast:1x-h100_sxm:marketplace",
        ),
    ],
    ids=str,
)
def test_a_filter_admits_what_it_says_and_nothing_else(
    client: httpx.Client, path: str, filters: dict[str, Any], some: str, others: str
) -> None:
    found = keys(client, path, **filters)
    assert some in found
    assert others not in found
    assert others in SHIPPED[path] or others == "ours"


def test_a_driver_s_name_and_total_are_one_card(client: httpx.Client) -> None:
    name = "NVIDIA GeForce RTX 3080"
    assert keys(client, "/v1/gpus", nvml_name=name, total_bytes=12_288 * MIB) == ["rtx-3080-12gb"]
    assert keys(client, "/v1/gpus", nvml_name="NVIDIA H200 MIG 3g.71gb") == ["h200-sxm-141gb:mig-3g.71gb"]
    for params, told in (
        ({"nvml_name": name, "total_bytes": 20_480 * MIB}, "by that name: rtx-3080-10gb (10240 MiB)"),
        ({"nvml_name": "NVIDIA H1000"}, "nearest: NVIDIA H100"),
    ):
        answer = client.get("/v1/gpus", params=params)
        assert (answer.status_code, answer.json()["type"]) == (422, "/problems/unknown-name")
        assert told in answer.json()["detail"]
        assert answer.json()["errors"][0]["parameter"] == "nvml_name"


def test_a_mig_instance_is_a_gpu_to_plan_with(client: httpx.Client) -> None:
    [profile] = [
        profile
        for profile in client.get("/v1/gpus/h100-sxm5-80gb").json()["mig_profiles"]
        if profile["profile"] == "3g.40gb"
    ]
    instance = client.get(f"/v1/gpus/{profile['gpu']}").json()
    assert instance["memory_bytes"] == instance["usable_bytes"] == profile["memory_bytes"]
    body = {"model": {"parameters": 1_000_000_000}, "hardware": {"gpu": profile["gpu"]}}
    assert client.post("/v1/estimates/memory", json=body).json()["gpu"]["key"] == "h100-sxm-80gb:mig-3g.40gb"


def test_a_link_has_the_sweeps_that_went_over_it(client: httpx.Client) -> None:
    link = client.get("/v1/interconnects/NVLINK-4").json()
    assert {(sweep["gpu"], sweep["nodes"], len(sweep["points"])) for sweep in link["sweeps"]} == {
        ("h100-sxm-80gb", 1, 32),
        ("h200-sxm-141gb", 1, 20),
    }
    assert "sweeps" not in client.get("/v1/interconnects").json()["items"][0]
    assert client.get("/v1/interconnects/nvlink-7").json()["detail"].startswith("unknown interconnect 'nvlink-7'; near")


@pytest.mark.parametrize(
    ("sort", "amount"), [("price", "per_hour_usd"), ("price-per-gpu", "per_gpu_hour_usd")], ids=["price", "per gpu"]
)
@pytest.mark.parametrize(("pricing", "kind"), [("on-demand", "on_demand"), ("spot", "spot")], ids=["on demand", "spot"])
def test_sorted_by_price_the_cheapest_comes_first_and_what_has_none_last(
    client: httpx.Client, sort: str, amount: str, pricing: str, kind: str
) -> None:
    found = listed(client, "/v1/instances", sort=sort, pricing=pricing)
    prices = [(entry[kind] or {}).get(amount) for entry in found]
    amounts = [float("inf") if price is None else round(price, 6) for price in prices]
    assert amounts == sorted(amounts)
    assert amounts[0] < 1
    assert amounts[-1] == float("inf")
    assert sorted(entry["key"] for entry in found) == sorted(CATALOG.instances)


@pytest.mark.parametrize(
    ("path", "parameter", "told"),
    [
        ("/v1/instances?gpu=h1000", "gpu", "nearest: h100-sxm-80gb"),
        ("/v1/node-shapes?gpu=h1000", "gpu", "nearest: h100-sxm-80gb"),
        ("/v1/node-shapes?interconnect=nvlink-9", "interconnect", "nearest: nvlink-"),
        ("/v1/instances?sort=prise", "sort", "'price'"),
        ("/v1/instances?max_price_usd=0", "max_price_usd", "greater than 0"),
        ("/v1/instances?max_price=3", "max_price", "nearest: max_price_usd"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(client: httpx.Client, path: str, parameter: str, told: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["parameter"] == parameter
    assert told in answer.json()["detail"]
