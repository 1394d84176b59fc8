"""Adapters beside what PEFT 0.21 adds to the real classes, for many choices of target modules."""

import json
from pathlib import Path
from typing import Any

import pytest

from app import catalog
from app.errors import InvalidInput, UnknownName
from app.planning.architecture import from_config
from app.planning.lora import adapters
from app.planning.specs import Lora

CASES = [json.loads(line) for line in (Path(__file__).parent / "reference_adapters.jsonl").read_text().splitlines()]
LLAMA_1B = catalog.load().model("meta-llama/Llama-3.2-1B").architecture


def name_of(case: dict[str, Any]) -> str:
    target = case["target_modules"]
    return f"{case['config']['model_type']}-{'+'.join(target) if isinstance(target, list) else target}-{case['rank']}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_trainable_parameters_equal_pefts(case: dict[str, Any]) -> None:
    target = case["target_modules"]
    lora = Lora(rank=case["rank"], target_modules=tuple(target) if isinstance(target, list) else target)
    assert adapters(from_config(case["config"]), lora).parameters == case["trainable"]


def test_a_misspelt_target_names_the_nearest_layer() -> None:
    with pytest.raises(UnknownName, match="unknown linear layer 'q_porj'; nearest: q_proj") as caught:
        adapters(LLAMA_1B, Lora(target_modules=("q_proj", "q_porj")))
    assert caught.value.errors[0].pointer == "/lora/target_modules/1"


def test_a_model_without_default_targets_says_what_can_be_named() -> None:
    olmo = from_config({"model_type": "olmo"})
    with pytest.raises(InvalidInput, match="name some of down_proj, gate_proj"):
        adapters(olmo, Lora())


def test_adapters_grow_with_their_rank() -> None:
    assert adapters(LLAMA_1B, Lora(rank=16)).parameters == 16 * adapters(LLAMA_1B, Lora(rank=1)).parameters
