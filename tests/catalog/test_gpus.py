"""GPUs: every row sourced, every driver's name exactly one card's, and the instances that a card can be split into."""

import re

import pytest

from app import catalog
from app.catalog.gpus import MIG, Card, MigProfile
from app.errors import UnknownName
from app.units import MIB

CATALOG = catalog.load()
CARDS = {card.key: card for card in CATALOG.cards()}
PROFILES = [(card, profile) for card in CARDS.values() for profile in card.mig_profiles]
FORMATS = {"fp64", "fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8"}


@pytest.mark.parametrize("key", CARDS)
def test_a_card_s_figures_agree_with_each_other(key: str) -> None:
    card = CARDS[key]
    assert re.fullmatch(r"[a-z0-9.-]+", key)
    assert card.source.startswith("NVML: ")
    assert card.dense_flops_per_second.keys() <= FORMATS
    assert (
        card.dense_flops_per_second.keys() & {"bf16", "fp16"}
        or "rate" in (card.notes or "")
        or "peaks" in (card.notes or "")
    ), "a card without rates says why"
    if "bf16" in card.dense_flops_per_second and "fp8" in card.dense_flops_per_second:
        assert card.dense_flops_per_second["fp8"] == pytest.approx(2 * card.dense_flops_per_second["bf16"], rel=0.02)
    assert card.memory_bytes not in card.other_memory_bytes
    link = None if card.interconnect is None else CATALOG.interconnects[card.interconnect]
    assert card.nvlink_bytes_per_second_per_direction == (None if link is None else link.bytes_per_second_per_direction)


def test_a_name_and_a_total_mean_one_card_at_most() -> None:
    reported = [(name, total) for card in CARDS.values() for name in card.nvml_names for total in card.totals_mib]
    assert len(set(reported)) == len(reported)
    for card in CARDS.values():
        for name in card.nvml_names:
            for total in card.totals_mib:
                (found,) = CATALOG.cards_reported_as(name, total * MIB)
                assert found.key == card.key


@pytest.mark.parametrize(
    ("name", "total_mib", "key"),
    [
        ("NVIDIA GeForce RTX 3060", 8192, "rtx-3060-8gb"),
        ("NVIDIA GeForce RTX 3060", 12288, "rtx-3060-12gb"),
        ("NVIDIA GeForce RTX 3080", 10240, "rtx-3080-10gb"),
        ("NVIDIA GeForce RTX 3080", 12288, "rtx-3080-12gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "rtx-4060-ti-8gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "rtx-4060-ti-16gb"),
        ("NVIDIA GeForce RTX 5060 Ti", 8151, "rtx-5060-ti-8gb"),
        ("NVIDIA GeForce RTX 5060 Ti", 16311, "rtx-5060-ti-16gb"),
        # the same total on different cards
        ("NVIDIA H100 NVL", 95830, "h100-nvl-94gb"),
        ("NVIDIA H100", 95830, "h100-sxm-96gb"),
        ("NVIDIA H200", 143771, "h200-sxm-141gb"),
        ("NVIDIA H200 NVL", 143771, "h200-nvl-141gb"),
        ("NVIDIA H20-3e", 143771, "h20-141gb"),
        ("NVIDIA H20", 97871, "h20-96gb"),
        ("NVIDIA GH200 480GB", 97871, "gh200-96gb"),
        ("NVIDIA GH200 120GB", 97871, "gh200-96gb"),
        ("NVIDIA A16", 15356, "a16"),
        ("NVIDIA A2", 15356, "a2"),
        # another state of the same card: ECC, an old driver
        ("NVIDIA RTX 6000 Ada Generation", 49140, "rtx-6000-ada"),
        ("NVIDIA RTX 6000 Ada Generation", 46068, "rtx-6000-ada"),
        ("NVIDIA A10", 24564, "a10"),
        ("NVIDIA A100-SXM4-80GB", 81251, "a100-sxm-80gb"),
        ("NVIDIA A100-SXM4-40GB", 40536, "a100-sxm-40gb"),
        ("NVIDIA RTX A6000", 48685, "rtx-a6000"),
        # without a total, a name that is one card's alone
        ("NVIDIA H100 80GB HBM3", None, "h100-sxm-80gb"),
        # an instance, by what CUDA calls it, with either driver
        ("NVIDIA H200 MIG 3g.71gb", 71424, "h200-sxm-141gb:mig-3g.71gb"),
        ("NVIDIA H200 MIG 3g.71gb", 71168, "h200-sxm-141gb:mig-3g.71gb"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 19968, "a100-sxm-40gb:mig-3g.20gb"),
    ],
)
def test_a_reported_name_and_total_mean_this_card(name: str, total_mib: int | None, key: str) -> None:
    (found,) = CATALOG.cards_reported_as(name, None if total_mib is None else total_mib * MIB)
    assert found.key == key


@pytest.mark.parametrize(
    ("name", "total_mib", "told"),
    [
        (
            "NVIDIA GeForce RTX 3060",
            None,
            r"tell the total memory too: rtx-3060-8gb \(8192 MiB\), rtx-3060-12gb",
        ),
        # modified cards and slices keep the name of the whole card
        (
            "NVIDIA GeForce RTX 3080",
            20480,
            r"of 20480 MiB; by that name: rtx-3080-10gb \(10240 MiB\), rtx-3080-12gb",
        ),
        ("NVIDIA GeForce RTX 2080 Ti", 22528, r"by that name: rtx-2080-ti \(11264 MiB\)"),
        ("NVIDIA GeForce RTX 4090", 49140, r"by that name: rtx-4090 \(24564 MiB\)"),
        ("NVIDIA A100-SXM4-40GB", 10240, "slices of a card"),
        # what the EC2 API prints is no total of the driver
        ("NVIDIA H100 80GB HBM3", 81920, r"by that name: h100-sxm-80gb \(81559 MiB\)"),
        # cut by a table, invented by a mock, in other letters, in part
        ("NVIDIA A100-SXM...", None, "unknown NVML name 'NVIDIA A100-SXM...'; nearest: NVIDIA A100-SXM4-"),
        ("NVIDIA H200 141GB HBM3e", 143771, "nearest: NVIDIA GH200 144G HBM3e"),
        ("NVIDIA B200 MIG 1g.22gb", None, "nearest: NVIDIA B200 MIG 1g.23gb"),
        ("nvidia h100 80gb hbm3", None, "nearest: NVIDIA H100 80GB HBM3"),
        ("H100", None, "POST /v1/gpus stores a card of your own"),
    ],
)
def test_anything_else_is_no_card_and_says_which_are_near(name: str, total_mib: int | None, told: str) -> None:
    total_bytes = None if total_mib is None else total_mib * MIB
    assert len(CATALOG.cards_reported_as(name, total_bytes)) != 1
    with pytest.raises(UnknownName, match=told):
        raise CATALOG.not_reported(name, total_bytes)


def test_a_total_that_is_no_whole_mib_counts_as_nvidia_smi_prints_it() -> None:
    (found,) = CATALOG.cards_reported_as("NVIDIA GeForce RTX 3060", 8192 * MIB + 4096)
    assert found.key == "rtx-3060-8gb"


@pytest.mark.parametrize(
    ("card", "profile"), PROFILES, ids=lambda one: getattr(one, "profile", getattr(one, "key", ""))
)
def test_a_profile_is_a_part_of_its_card(card: Card, profile: MigProfile) -> None:
    assert int(profile.profile[0]) == profile.compute_slices
    assert len(profile.source) > 20
    assert (profile.memory_bytes is None) == (profile.gpu is None)
    if profile.streaming_multiprocessors is not None and card.streaming_multiprocessors is not None:
        assert profile.streaming_multiprocessors <= card.streaming_multiprocessors
    if profile.memory_bytes is not None and profile.memory_slices is not None:
        whole = max(other.memory_slices or 0 for other in card.mig_profiles)
        assert profile.memory_bytes == pytest.approx(card.memory_bytes * profile.memory_slices / whole, rel=0.14)
    if profile.most_instances is not None:
        assert profile.most_instances * profile.compute_slices <= 7


def test_an_instance_is_a_gpu_whose_memory_is_all_usable() -> None:
    whole, part = CATALOG.gpu("h200-sxm-141gb"), CATALOG.gpu("H200-sxm-141gb:MIG-3g.71gb")
    assert part.memory_bytes == part.usable_bytes == 71424 * MIB
    assert part.dense_flops_per_second["bf16"] == pytest.approx(whole.dense_flops_per_second["bf16"] * 60 / 132)
    assert part.memory_bandwidth_bytes_per_second == pytest.approx(whole.memory_bandwidth_bytes_per_second / 2)  # type: ignore[operator]
    assert part.nvlink_bytes_per_second_per_direction is None
    assert CATALOG.gpu("h200-sxm-141gb:mig-3g.71gb") == part


def test_instances_are_found_by_an_alias_of_their_card_and_listed_when_near() -> None:
    assert CATALOG.gpu(f"h100-sxm5-80gb{MIG}3g.40gb").key == "h100-sxm-80gb:mig-3g.40gb"
    with pytest.raises(UnknownName, match="nearest: b200:mig-"):
        CATALOG.gpu("b200:mig-7g.181gb")
    with pytest.raises(UnknownName, match=r"nobody has published the memory .* POST /v1/gpus"):
        CATALOG.gpu("b200:mig-7g.180gb")
    assert MIG not in "".join(CARDS)
