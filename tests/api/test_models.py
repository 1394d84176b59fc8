"""`/v1/models`: the cards with their filters, one model's facts, and ids that nobody should send."""

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from live_service import LiveService

from app import catalog
from app.catalog.cards import FAMILY_USE

MODELS = catalog.load().models


def listed(client: httpx.Client, **filters: Any) -> Iterator[dict[str, Any]]:
    """All cards that the filters admit, page by page."""
    cursor: dict[str, str] = {}
    while True:
        answer = client.get("/v1/models", params={"limit": 200, **filters, **cursor})
        answer.raise_for_status()
        yield from answer.json()["items"]
        if answer.json()["next_cursor"] is None:
            return
        cursor = {"cursor": answer.json()["next_cursor"]}


def test_the_pages_hold_every_model_once_by_id(client: httpx.Client) -> None:
    ids = [card["id"] for card in listed(client, limit=37)]
    assert ids == sorted(MODELS)


@pytest.mark.parametrize(
    ("filters", "some", "others"),
    [
        ({"family": "encoder-only"}, "google-bert/bert-base-uncased", "openai-community/gpt2"),
        ({"family": "encoder-decoder"}, "google-t5/t5-small", "google-bert/bert-base-uncased"),
        ({"family": "decoder-only"}, "openai-community/gpt2", "google-t5/t5-small"),
        ({"organization": "META"}, "facebook/opt-125m", "openai-community/gpt2"),
        ({"task": "code-generation"}, "bigcode/starcoder", "openai-community/gpt2"),
        ({"task": "translation"}, "Helsinki-NLP/opus-mt-en-de", "facebook/bart-base"),
        ({"model_type": "Llama"}, "01-ai/Yi-34B", "mistralai/Mistral-7B-v0.1"),
        ({"search": "LLAMA-3.1"}, "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-1B"),
        ({"search": "mistralai/mix"}, "mistralai/Mixtral-8x7B-v0.1", "mistralai/Mistral-7B-v0.1"),
        ({"min_parameters": 405_853_388_800}, "meta-llama/Llama-3.1-405B", "meta-llama/Llama-3.1-70B"),
        ({"max_parameters": 124_439_808}, "openai-community/gpt2", "openai-community/gpt2-medium"),
    ],
    ids=str,
)
def test_a_filter_admits_what_it_says_and_nothing_else(
    client: httpx.Client, filters: dict[str, Any], some: str, others: str
) -> None:
    ids = {card["id"] for card in listed(client, **filters)}
    assert some in ids
    assert others not in ids


def test_filters_narrow_each_other(client: httpx.Client) -> None:
    found = list(listed(client, family="decoder-only", model_type="qwen2", search="instruct", max_parameters=8 * 10**9))
    assert [card["id"] for card in found] == ["Qwen/Qwen2.5-7B-Instruct"]
    assert list(listed(client, family="encoder-only", model_type="llama")) == []


def test_a_page_of_a_filtered_list_goes_on_with_the_same_filter_only(client: httpx.Client) -> None:
    page = client.get("/v1/models", params={"task": "translation", "limit": 2}).json()
    assert len(page["items"]) == 2
    refused = client.get("/v1/models", params={"task": "summarization", "cursor": page["next_cursor"]})
    assert refused.status_code == 422


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("task=mind-reading", "task"),
        ("family=decoder", "family"),
        ("min_parameters=-1", "min_parameters"),
        ("max_parameters=many", "max_parameters"),
        ("search=", "search"),
        ("modeltype=llama", "modeltype"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(client: httpx.Client, query: str, parameter: str) -> None:
    refused = client.get(f"/v1/models?{query}")
    assert refused.status_code == 422
    assert [error["parameter"] for error in refused.json()["errors"]] == [parameter]


def test_one_model_has_its_card_and_its_facts(client: httpx.Client) -> None:
    model = client.get("/v1/models/mistralai/Mixtral-8x7B-v0.1").json()
    assert {name: model[name] for name in ("organization", "licence", "released", "model_type", "tasks")} == {
        "organization": "Mistral AI",
        "licence": "Apache-2.0",
        "released": "2023-12-11",
        "model_type": "mixtral",
        "tasks": ["text-generation"],
    }
    assert (model["parameters"], model["active_parameters"]) == (46_702_792_704, 12_879_925_248)
    facts = model["facts"]
    assert sum(component["parameters"] for component in facts["components"]) == facts["parameters"]
    assert {name: facts[name] for name in ("parameters", "active_parameters", "family", "family_use")} == {
        name: model[name] for name in ("parameters", "active_parameters", "family", "family_use")
    }


def test_an_unknown_day_or_amount_is_null_and_never_a_guess(client: httpx.Client) -> None:
    model = client.get("/v1/models/distilbert/distilgpt2").json()
    assert (model["released"], model["training_tokens"]) == (None, None)


@pytest.mark.parametrize(
    ("id", "family", "objective"),
    [
        ("openai-community/gpt2", "decoder-only", "causal language modelling"),
        ("FacebookAI/roberta-base", "encoder-only", "masked language modelling"),
        ("google/t5-v1_1-base", "encoder-decoder", "span corruption"),
    ],
)
def test_each_architecture_says_what_it_learns_and_what_it_is_for(
    client: httpx.Client, id: str, family: str, objective: str
) -> None:
    model = client.get(f"/v1/models/{id}").json()
    assert (model["family"], model["pretraining_objective"]) == (family, objective)
    assert model["family_use"] == FAMILY_USE[family]


def test_any_config_is_told_the_same_of_its_architecture(client: httpx.Client) -> None:
    request = {"model": {"config": {"model_type": "bert", "architectures": ["BertForMaskedLM"]}}}
    facts = client.post("/v1/models/inspect", json=request).json()
    assert (facts["family"], facts["family_use"]) == ("encoder-only", FAMILY_USE["encoder-only"])


def test_an_id_in_any_case_is_found(client: httpx.Client) -> None:
    assert client.get("/v1/models/META-LLAMA/llama-3.1-8b").json()["id"] == "meta-llama/Llama-3.1-8B"


def test_a_misspelt_id_is_told_the_nearest(client: httpx.Client) -> None:
    missing = client.get("/v1/models/meta-lama/Llama-3.1-8B")
    assert missing.status_code == 404
    assert missing.json()["type"] == "/problems/not-found"
    assert missing.json()["detail"].startswith(
        "unknown model 'meta-lama/Llama-3.1-8B'; nearest: meta-llama/Llama-3.1-8B"
    )


def test_an_id_like_nothing_is_sent_to_the_list(client: httpx.Client) -> None:
    assert client.get("/v1/models/zzzz").json()["detail"] == "unknown model 'zzzz'; see GET /v1/models"


def raw(live: LiveService, path: str) -> tuple[int, str, dict[str, Any]]:
    """GET a path exactly as written: a client would tidy it first."""
    address = urlsplit(live.url)
    assert address.hostname
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize(
    "id",
    [
        "",
        "/",
        ".",
        "..",
        "../gpus",
        "../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        "cards/meta.toml",
        "gpt2.json",
        "openai-community//gpt2",
        "openai-community/gpt2/",
        "/openai-community/gpt2",
        "openai-community/gpt2/config.json",
        "openai-community%5Cgpt2",
        "openai-community/gpt2%00",
        "%0d%0aSet-Cookie:%20a=b",
        "%ff%fe",
        quote("模型/ＧＰＴ２"),
        quote("gpt2\u202e"),
        quote("<script>alert(1)</script>"),
        "%27%20OR%201=1--",
        "inspect",
        "a/" * 500,
        "x" * 8_000,
    ],
    ids=lambda id: id[:40] or "empty",
)
def test_a_hostile_id_is_simply_not_found(live: LiveService, id: str) -> None:
    status, media_type, problem = raw(live, f"/v1/models/{id}")
    assert (status, media_type) == (404, "application/problem+json")
    assert problem["type"] == "/problems/not-found"
    assert len(problem["detail"]) < 1_000
    assert not any(character in problem["detail"] for character in "\r\n\0\u202e")


def test_a_slash_may_be_escaped(live: LiveService) -> None:
    status, _, model = raw(live, "/v1/models/openai-community%2Fgpt2")
    assert (status, model["id"]) == (200, "openai-community/gpt2")
