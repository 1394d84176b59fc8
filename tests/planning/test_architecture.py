"""Exact parameter counts from config.json, and configs that must be refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import TonnageError, UnknownName, UnsupportedModel
from app.planning.architecture import from_config, from_parameters

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    ("model_type", "parameters"),
    [("llama", 6_738_415_616), ("mistral", 7_241_732_096), ("gpt2", 124_439_808)],
    ids=str,
)
def test_missing_fields_take_the_defaults_of_the_class(model_type: str, parameters: int) -> None:
    """The class defaults are the sizes of Llama-2-7B, Mistral-7B and GPT-2 small."""
    assert from_config({"model_type": model_type}).parameters == parameters


def test_a_head_dimension_of_its_own_is_counted() -> None:
    plain, wide = from_config(LLAMA), from_config({**LLAMA, "head_dim": 32})
    assert wide.parameters - plain.parameters == 2 * 4 * 64 * 16 * 4


def test_biases_are_counted_where_the_config_has_them() -> None:
    biased = from_config({**LLAMA, "attention_bias": True, "mlp_bias": True})
    assert biased.parameters - from_config(LLAMA).parameters == 2 * (4 * 64 + 2 * 128 + 64)


@pytest.mark.parametrize(
    ("changes", "pointer", "says"),
    [
        ({"model_type": "lama"}, "/model/config/model_type", "nearest: llama"),
        ({"model_type": "lama"}, "/model/config/model_type", "send `parameters` instead"),
        (
            {"model_type": "zzzzzz"},
            "/model/config/model_type",
            "see docs/families.md; for another family, send `parameters`",
        ),
        ({"model_type": None}, "/model/config/model_type", "`parameters`"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "/model/config/architectures", "LlamaForCausalLM"),
        ({"hidden_size": -64}, "/model/config/hidden_size", "whole number from 1"),
        ({"hidden_size": 64.5}, "/model/config/hidden_size", "whole number"),
        ({"hidden_size": "64"}, "/model/config/hidden_size", "not '64'"),
        ({"hidden_size": True}, "/model/config/hidden_size", "whole number"),
        ({"hidden_size": float("nan")}, "/model/config/hidden_size", "whole number"),
        ({"num_hidden_layers": 10**18}, "/model/config/num_hidden_layers", "10,000"),
        ({"num_attention_heads": 3}, "/model/config/num_attention_heads", "does not divide hidden_size"),
        ({"num_key_value_heads": 3}, "/model/config/num_key_value_heads", "does not divide num_attention_heads"),
        ({"hidden_act": "sine"}, "/model/config/hidden_act", "known: silu"),
        ({"attention_dropout": 1.5}, "/model/config/attention_dropout", "from 0 to 1"),
        ({"num_experts": 8}, "/model/config/num_experts", "may change the count"),
        ({"quantization_config": {"bits": 4}}, "/model/config/quantization_config", "may change the count"),
        ({"tie_word_embeddings": "yes"}, "/model/config/tie_word_embeddings", "true or false"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_would_be_a_guess_is_refused(changes: dict[str, Any], pointer: str, says: str) -> None:
    with pytest.raises((UnsupportedModel, UnknownName)) as caught:
        from_config({**LLAMA, **changes})
    assert [fault.pointer for fault in caught.value.errors] == [pointer]
    assert says in caught.value.detail or says in caught.value.errors[0].detail


def test_fields_that_change_nothing_are_named() -> None:
    assert from_config({**LLAMA, "comment": "mine"}).warnings == (
        "config fields that change nothing here were not used: comment",
    )


@given(st.integers(min_value=10**5, max_value=10**15))
def test_a_bare_count_is_held_exactly(parameters: int) -> None:
    architecture = from_parameters(parameters)
    assert architecture.parameters == parameters
    assert 0 <= architecture.sizes["unattributed_parameters"] < max(100, parameters / 10)


@given(
    st.dictionaries(
        st.sampled_from([*LLAMA, "head_dim", "num_key_value_heads", "attention_bias", "rope_scaling", "other"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
    )
)
def test_a_hostile_config_is_counted_or_refused_and_never_breaks(changes: dict[str, Any]) -> None:
    try:
        architecture = from_config({**LLAMA, **changes})
    except TonnageError:
        return
    assert architecture.parameters > 0
