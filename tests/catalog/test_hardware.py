"""Links, node shapes and cloud instances: complete, sourced, and naming only what there is."""

import re
from datetime import date
from itertools import pairwise

import pytest

from app import catalog
from app.units import GB, TIB

CATALOG = catalog.load()
LINKS, SHAPES, INSTANCES, SWEEPS = (
    CATALOG.interconnects,
    CATALOG.node_shapes,
    CATALOG.instances,
    CATALOG.sweeps,
)


@pytest.mark.parametrize("key", LINKS)
def test_a_link_is_sourced_and_what_was_measured_over_it_is_possible(key: str) -> None:
    link = LINKS[key]
    assert re.fullmatch(r"[a-z0-9-]+", key)
    assert len(link.source) > 20
    assert 10e9 < link.bytes_per_second_per_direction < 2e12
    for one in link.measurements:
        assert len(one.source) > 20
        assert one.gpu is None or one.gpu in CATALOG.gpus
        assert one.bus_bandwidth_bytes_per_second is not None or one.latency_seconds is not None
        if one.bus_bandwidth_bytes_per_second is not None and link.counts_per == "gpu":
            in_switch = one.collective == "all-reduce"
            assert one.bus_bandwidth_bytes_per_second < link.bytes_per_second_per_direction * (1.1 if in_switch else 1)


def test_links_of_a_generation_have_what_nvidia_says() -> None:
    peaks = {key: link.bytes_per_second_per_direction / 1e9 for key, link in LINKS.items()}
    assert [peaks[f"nvlink-{generation}"] for generation in range(1, 6)] == [80, 150, 300, 450, 900]
    assert (peaks["infiniband-ndr"], peaks["pcie-5-x16"], peaks["efa-2"]) == (50, 63, 12.5)
    assert LINKS["infiniband-hdr"].latency_seconds == pytest.approx(0.6e-6)
    assert LINKS["infiniband-ndr"].latency_seconds is None


def test_a_sweep_goes_up_and_its_bandwidth_is_that_of_its_time() -> None:
    assert [(sweep.gpu, sweep.nodes, len(sweep.points)) for sweep in SWEEPS] == [
        ("a100-sxm-80gb", 1, 20),
        ("b200", 1, 20),
        ("b200", 4, 20),
        ("h100-sxm-80gb", 1, 32),
        ("h200-sxm-141gb", 1, 20),
    ]
    for sweep in SWEEPS:
        assert sweep.interconnect in LINKS
        assert sweep.gpu in CATALOG.gpus
        assert len(sweep.source) > 20
        assert all(less.message_bytes < more.message_bytes for less, more in pairwise(sweep.points))
        share = 2 * (sweep.gpus - 1) / sweep.gpus
        for point in sweep.points:
            moved = point.message_bytes / point.time_seconds * share
            assert point.bus_bandwidth_bytes_per_second == pytest.approx(moved, rel=0.02, abs=0.011e9)


@pytest.mark.parametrize("key", SHAPES)
def test_a_node_shape_names_what_there_is(key: str) -> None:
    shape = SHAPES[key]
    assert re.fullmatch(r"[a-z0-9-]+", key)
    assert len(shape.source) > 20
    assert shape.gpu in CATALOG.gpus
    for link in (shape.intra_node_link, shape.host_link, shape.network):
        assert link is None or link in LINKS
    card = CATALOG.card_at_path(shape.gpu)
    assert shape.intra_node_link == card.interconnect
    if shape.network is not None and shape.network_adapters is not None:
        adapters = shape.network_adapters * LINKS[shape.network].bytes_per_second_per_direction
        assert shape.network_bytes_per_second_per_direction == adapters
    if shape.host_link is not None:
        assert shape.host_link == f"pcie-{card.pcie_generation}-x16"
    assert (shape.nvlink_domain_gpus or 0) % shape.gpus_per_node == 0


def test_instances_of_a_shape_have_its_gpus() -> None:
    rented = {instance.instance_type: instance for instance in INSTANCES.values()}
    matched = 0
    for shape in SHAPES.values():
        for name in shape.instance_types:
            if name in rented:
                matched += 1
                assert (rented[name].gpu, rented[name].gpus) == (shape.gpu, shape.gpus_per_node), name
    assert matched > 15


def test_a_gpu_s_share_of_the_network() -> None:
    assert SHAPES["aws-p5"].network_bytes_per_second_per_direction_per_gpu == 50e9
    assert SHAPES["gcp-a3-high"].network_bytes_per_second_per_direction_per_gpu == 12.5e9


@pytest.mark.parametrize("key", INSTANCES)
def test_an_instance_is_sourced_and_its_prices_plausible(key: str) -> None:
    instance = INSTANCES[key]
    assert re.fullmatch(r"[a-z0-9._-]+(:[a-z0-9._-]+)+", key)
    assert len(instance.source) > 20
    assert instance.gpu in CATALOG.gpus if instance.gpu is not None else instance.gpu_name
    for price in (instance.on_demand, instance.spot, instance.reserved):
        if price is not None:
            assert price.per_gpu_hour_usd is None or 0.03 < price.per_gpu_hour_usd < 32
            assert price.as_of is None or date(2026, 1, 1) < price.as_of < date(2026, 11, 23)
            assert price.lowest_per_hour_usd is None or price.lowest_per_hour_usd <= price.per_hour_usd
    if instance.spot is not None:
        assert instance.spot.is_order_of_magnitude
        if instance.on_demand is not None:
            assert instance.spot.per_hour_usd < instance.on_demand.per_hour_usd
    if instance.provider == "vast":
        assert instance.on_demand is not None
        assert instance.on_demand.is_order_of_magnitude


def test_eight_h100s_at_aws_are_what_aws_says_at_the_current_price() -> None:
    instance = INSTANCES["aws:p5.48xlarge:us-east-1"]
    assert (instance.gpus, instance.cpus) == (8, 192)
    assert instance.host_memory_bytes == 2 * TIB
    assert instance.network_bytes_per_second == 400 * GB
    price = instance.on_demand
    assert price is not None
    assert price.per_hour_usd == 55.04
    assert price.per_gpu_hour_usd == 6.88
    assert price.as_of == date(2026, 7, 20)
    assert not price.is_order_of_magnitude
