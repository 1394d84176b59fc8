"""Sequences packed with several documents; traced_steps.json has steps of them under sdpa."""

from typing import Any

import pytest

from app import catalog
from app.errors import InvalidInput
from app.planning.memory import MemoryEstimate, MemoryInputs, estimate
from app.planning.specs import Parallelism, Training

KNOWN = catalog.load()


def ask(model: str, layout: dict[str, Any] | None = None, **training: Any) -> MemoryEstimate:
    inputs = MemoryInputs(
        KNOWN.model(model).architecture,
        Training.model_validate({"micro_batch_size": 2, "sequence_length": 1024, **training}),
        Parallelism.model_validate(layout or {}),
        None,
        None,
        "detailed",
    )
    return estimate(inputs)


@pytest.mark.parametrize("attention", ["flash", "eager"])
def test_boundaries_and_the_mask_of_eager_attention_take_nothing_more(attention: str) -> None:
    packed, plain = (ask("Qwen/Qwen2.5-0.5B", attention=attention, packing=packing) for packing in (True, False))
    assert packed.per_gpu == plain.per_gpu


def test_sdpa_keeps_a_mask_and_copies_grouped_heads_for_it() -> None:
    def forward(**training: Any) -> int:
        answer = ask("Qwen/Qwen2.5-0.5B", attention="sdpa", precision="bf16", **training)
        return next(moment.allocated_bytes for moment in answer.moments if moment.phase == "forward")

    layers, query_heads, key_heads, head = 24, 14, 2, 64
    mask = 2 * 1024 * 1024
    copies = 2 * (2 * 2 * 1024 * (query_heads - key_heads) * head)  # keys and values, 16 bit
    assert forward(packing=True) - forward() == pytest.approx(layers * (2 * mask + copies) + mask, rel=0.05)


@pytest.mark.parametrize(
    ("model", "training", "pointer", "words"),
    [
        ("google-bert/bert-large-uncased", {}, "/training/packing", "another kind of model"),
        ("google-t5/t5-base", {}, "/training/packing", "another kind of model"),
        (
            "meta-llama/Llama-3.1-8B",
            {"framework": "megatron", "attention": "sdpa"},
            "/training/attention",
            "use flash",
        ),
    ],
)
def test_what_packing_cannot_mean_is_refused(model: str, training: dict[str, Any], pointer: str, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        ask(model, **{"sequence_length": 128, "packing": True, **training})
    assert refused.value.errors[0].pointer == pointer
    assert words in refused.value.detail
