"""`/v1/scaling/compute-optimal`: what a caller sees of an answer, and of a request that cannot be meant."""

from typing import Any

import httpx
import pytest

PATH = "/v1/scaling/compute-optimal"
H100_HOURS: dict[str, Any] = {"gpu_hours": 1e6, "gpu": "h100-sxm-80gb", "mfu": 0.4}


def ask(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(PATH, json=body)
    answer.raise_for_status()
    return dict(answer.json())


def test_gophers_budget(client: httpx.Client) -> None:
    answer = ask(client, {"flops": 5.76e23})
    laws = {optimum["law"]: optimum for optimum in answer["laws"]}
    assert laws["chinchilla-1"]["parameters"] == pytest.approx(67e9, rel=0.015)
    assert laws["chinchilla-2"]["parameters"] == pytest.approx(63e9, rel=0.015)
    assert laws["chinchilla-3-unrounded"]["parameters"] == pytest.approx(40e9, rel=0.015)
    assert answer["law"] == "besiroglu-2024"
    for name in ("parameters", "tokens", "tokens_per_parameter", "predicted_loss"):
        assert answer[name] == laws["besiroglu-2024"][name]
    assert answer["raw_text"]["raw_bytes_low"] == pytest.approx(answer["tokens"] * 3.94 / 0.03, rel=1e-9)
    assert answer["raw_text"]["raw_bytes_high"] == pytest.approx(answer["tokens"] * 3.94 / 0.01, rel=1e-9)


def test_integers_are_numbers_and_gpus_have_aliases_and_prices(client: httpx.Client) -> None:
    answer = ask(client, {**H100_HOURS, "gpu_hours": 1_000_000, "price_per_gpu_hour_usd": 2})
    assert answer["budget"]["cost_usd"] == pytest.approx(2_000_000)
    assert answer["budget"]["flops"] == pytest.approx(1e6 * 3600 * 0.4 * 989e12)
    assert "format: bf16" in answer["assumptions"]


def test_a_model_of_the_catalogue_brings_its_tokens(client: httpx.Client) -> None:
    model = ask(client, {"model": {"id": "meta-llama/llama-3.1-8b"}})["model"]
    assert (model["tokens"], model["tokens_source"]) == (15_000_000_000_000, "model card")
    placed = {placement["law"]: placement for placement in model["laws"]}
    assert placed["besiroglu-2024"]["verdict"] == "over-trained"
    assert 0 < placed["besiroglu-2024"]["same_loss"]["saved_flops_share"] < 1


def test_the_budget_says_how_far_a_model_without_tokens_gets(client: httpx.Client) -> None:
    model = ask(client, {"flops": 6e21, "model": {"parameters": 1_000_000_000}})["model"]
    assert model["tokens"] == 10**12
    assert "budget" in model["tokens_source"]


@pytest.mark.parametrize(
    ("body", "pointer", "says"),
    [
        ({}, "", "exactly one of flops"),
        ({"flops": 1e21, "gpu_hours": 1.0}, "/gpu_hours", "send exactly one"),
        ({"flops": "1e21"}, "/flops", "number"),
        ({"flops": True}, "/flops", "number"),
        ({"flops": -1}, "/flops", "greater than 0"),
        ({"flop": 1e21}, "/flop", "flops"),
        ({"flops": 1e3}, "/flops", "1e+12"),
        ({"flops": 1e21, "law": "chinchilla"}, "/law", "chinchilla-1"),
        ({"gpu_hours": 1e6}, "/gpu_hours", "mfu"),
        ({**H100_HOURS, "mfu": 40}, "/mfu", "less than or equal to 1"),
        ({**H100_HOURS, "gpu": "h1000"}, "/gpu", "nearest"),
        ({**H100_HOURS, "gpu": "v100-sxm2-32gb"}, "/gpu", "fp16"),
        ({"flops": 1e21, "tokens": 10}, "/tokens", "model"),
        ({"flops": 1e21, "sequence_length": 2048}, "/sequence_length", "model"),
        ({"model": {"parameters": 10**9}}, "/tokens", "send"),
        ({"model": {"id": "meta-llama/Llama-3.1-8X"}}, "/model/id", "meta-llama/Llama-3.1-8B"),
        (
            {"model": {"id": "openai-community/gpt2"}, "tokens": 10**10, "sequence_length": 2048},
            "/sequence_length",
            "1024",
        ),
        ({"flops": 1e21, "kept_share_low": 0.5}, "/kept_share_low", "kept_share_high"),
        ({"flops": 1e21, "law": "llama-3", "inference_tokens": 10**12}, "/inference_tokens", "besiroglu-2024"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_with_its_place(
    client: httpx.Client, body: dict[str, Any], pointer: str, says: str
) -> None:
    answer = client.post(PATH, json=body)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert pointer in [error["pointer"] for error in problem["errors"]]
    assert says in problem["detail"]
