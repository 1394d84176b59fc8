"""The data files: complete, sourced, and matched by whole names only."""

import pytest

from app import catalog
from app.errors import NotFound, UnknownName
from app.units import MIB

CATALOG = catalog.load()


@pytest.mark.parametrize("key", CATALOG.gpus)
def test_a_gpu_row_is_plausible_and_sourced(key: str) -> None:
    gpu = CATALOG.gpus[key]
    assert len(gpu.source) > 20
    assert gpu.nvml_names
    assert 0 < gpu.usable_bytes < gpu.memory_bytes
    assert gpu.memory_bytes % MIB == 0
    assert all(1e11 < rate < 3e16 for rate in gpu.dense_flops_per_second.values())


def test_memory_of_an_h100_is_what_the_driver_and_pytorch_report() -> None:
    h100 = CATALOG.gpu("h100-sxm-80gb")
    assert h100.memory_bytes == 81_559 * MIB
    assert h100.usable_bytes / 2**30 == pytest.approx(79.19, abs=0.015), "torch prints total_memory 79.19 GiB"


def test_keys_and_aliases_match_in_any_case_and_nothing_else_does() -> None:
    assert CATALOG.gpu("H100-SXM5-80GB") is CATALOG.gpu("h100-sxm-80gb")
    assert CATALOG.model("meta-llama/llama-3.1-8b").card.id == "meta-llama/Llama-3.1-8B"
    with pytest.raises(UnknownName, match="unknown gpu 'h1000'; nearest: h100-sxm-80gb, h100-"):
        CATALOG.gpu("h1000")
    with pytest.raises(UnknownName, match="see GET /v1/gpus"):
        CATALOG.gpu("zzz")


def test_a_path_that_names_nothing_is_told_what_is_near() -> None:
    with pytest.raises(NotFound, match="unknown gpu 'h1000'; nearest: h100-"):
        CATALOG.card_at_path("h1000")
    with pytest.raises(NotFound, match=r"unknown model 'meta-lama/Llama-3\.1-8B'; nearest: meta-llama/Llama-3\.1-8B,"):
        CATALOG.model_at_path("meta-lama/Llama-3.1-8B")
    with pytest.raises(NotFound, match="see GET /v1/models"):
        CATALOG.model_at_path("0" * 100_000)


def test_one_nvml_name_may_be_several_cards() -> None:
    assert [gpu.key for gpu in CATALOG.cards_reported_as("NVIDIA H100 80GB HBM3")] == ["h100-sxm-80gb"]
    assert len(CATALOG.cards_reported_as("NVIDIA GeForce RTX 4060 Ti")) == 2
    assert CATALOG.cards_reported_as("H100") == ()
