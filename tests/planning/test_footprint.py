from math import ceil
from typing import Any

import pytest

from app import catalog
from app.errors import InvalidInput, UnknownName
from app.planning.architecture import Architecture, from_config, from_parameters
from app.planning.footprint import ModelConversion, convert_model
from app.planning.memory import MemoryInputs, estimate
from app.planning.specs import Parallelism, Training
from app.precision.formats import NUMBER_FORMATS
from app.precision.scheme import Scheme

CATALOG = catalog.load()


def converted(model: Architecture | str, source: str, to: str, **given: Any) -> ModelConversion:
    architecture = CATALOG.model(model).architecture if isinstance(model, str) else model
    return convert_model(architecture, NUMBER_FORMATS[source], NUMBER_FORMATS[to], CATALOG.gpus.values(), **given)


def odd_llama(**fields: int) -> Architecture:
    """Sizes that no block divides."""
    return from_config(
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 200,
            "intermediate_size": 500,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 3,
            "vocab_size": 1000,
            "tie_word_embeddings": False,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("model", "total_bytes"), [("openai/gpt-oss-20b", 13_761_264_768), ("openai/gpt-oss-120b", 65_248_815_744)]
)
def test_published_checkpoints_in_mxfp4_to_the_byte(model: str, total_bytes: int) -> None:
    """`total_size` of model.safetensors.index.json: experts in MXFP4, everything else in BF16."""
    found = converted(model, "bf16", "mxfp4", keep=["word_embedding", "lm_head", "attention", "norm", "router"])
    assert found.storage.bytes_after == total_bytes


MATRICES = [(200, 200), (100, 200), (100, 200), (200, 200), (500, 200), (500, 200), (200, 500)]
"""Output × input features of a block of the odd model."""


@pytest.mark.parametrize(
    ("to", "bits", "scales"),
    [
        ("mxfp4", 4, lambda rows, columns: rows * ceil(columns / 32)),
        ("mxfp8", 8, lambda rows, columns: rows * ceil(columns / 32)),
        ("mxfp6", 6, lambda rows, columns: rows * ceil(columns / 32)),
        ("nvfp4", 4, lambda rows, columns: rows * ceil(columns / 16) + 4),
        ("nf4", 4, lambda rows, columns: ceil(rows * columns / 64) * 4),
        ("nf4-double", 4, lambda r, c: ceil(r * c / 64) + ceil(r * c / 64 / 256) * 4 + 4),
        ("fp8_e4m3_128x128", 8, lambda rows, columns: ceil(rows / 128) * ceil(columns / 128) * 4),
        ("fp8_e4m3", 8, lambda _rows, _columns: 4),
        ("fp8_e5m2fnuz", 8, lambda _rows, _columns: 4),
        ("fp4_e2m1", 4, lambda _rows, _columns: 0),
        ("int8", 8, lambda rows, _columns: rows * 4),
        ("int4", 4, lambda rows, columns: rows * ceil(columns / 128) * 4),
    ],
)
def test_scales_are_counted_where_blocks_are_cut_short(to: str, bits: int, scales: Any) -> None:
    found = converted(odd_llama(), "bf16", to)
    wide = 2 * (2 * 1000 * 200 + 7 * 200)
    of_blocks = 3 * sum(rows * columns * bits // 8 + scales(rows, columns) for rows, columns in MATRICES)
    assert found.storage.bytes_after == wide + of_blocks
    assert found.storage.scale_bytes == 3 * sum(scales(rows, columns) for rows, columns in MATRICES)
    assert found.storage.bytes_before == 2 * found.parameters


def test_components_sum_to_the_model_whatever_it_is() -> None:
    for id in (
        "openai-community/gpt2",
        "google-t5/t5-base",
        "mistralai/Mixtral-8x7B-v0.1",
        "google-bert/bert-base-uncased",
    ):
        found = converted(id, "fp32", "nvfp4")
        assert sum(component.parameters for component in found.components) == found.parameters
        assert sum(component.bytes_after for component in found.components) == found.storage.bytes_after
        assert found.storage.bytes_before == 4 * found.parameters
    of_count = converted(from_parameters(10**9), "bf16", "mxfp4")
    assert of_count.parameters == 10**9


def test_what_stays_and_what_is_asked_to() -> None:
    model = odd_llama()
    kept = {part.name: part.kept for part in converted(model, "bf16", "mxfp4").components}
    assert {name for name, why in kept.items() if why} == {"word_embedding", "norm", "lm_head"}
    everything = {part.name: part for part in converted(model, "bf16", "mxfp4", keep=[]).components}
    assert everything["lm_head"].converted_parameters == 200_000
    assert everything["norm"].converted_parameters == 0
    attention = {part.name: part for part in converted(model, "bf16", "mxfp4", keep=["attention"]).components}
    assert attention["attention"].converted_parameters == 0
    assert attention["mlp"].converted_parameters == 3 * 300_000
    assert all(part.kept is None for part in converted(model, "fp32", "bf16").components)


def test_what_is_asked_to_stay_stays_between_wide_formats_too() -> None:
    found = converted(odd_llama(), "fp32", "bf16", keep=["norm", "lm_head"])
    parts = {part.name: part for part in found.components}
    assert (parts["norm"].bytes_after, parts["lm_head"].bytes_after) == (4 * 7 * 200, 4 * 200_000)
    assert parts["lm_head"].converted_parameters == 0
    assert parts["lm_head"].kept is not None
    assert parts["mlp"].bytes_after * 2 == parts["mlp"].bytes_before
    assert "norm, lm_head stay in fp32" in found.assumptions


def test_what_was_wide_already_is_not_converted() -> None:
    parts = {part.name: part for part in converted(odd_llama(), "mxfp4", "bf16").components}
    assert parts["mlp"].converted_parameters == parts["mlp"].parameters
    assert (parts["norm"].converted_parameters, parts["lm_head"].converted_parameters) == (0, 0)


def test_experts_are_matrices_of_their_own() -> None:
    model = CATALOG.model("mistralai/Mixtral-8x7B-v0.1").architecture
    parts = {part.name: part for part in converted(model, "bf16", "nvfp4").components}
    matrices = 32 * 8 * 2
    blocks = 32 * 8 * (28_672 * 4096 // 16 + 4096 * 14_336 // 16)
    assert parts["routed_experts"].scale_bytes == blocks + 4 * matrices
    assert parts["router"].converted_parameters == 0


def test_a_narrow_model_made_wide_again() -> None:
    there, back = converted(odd_llama(), "bf16", "mxfp4"), converted(odd_llama(), "mxfp4", "bf16")
    assert back.storage.bytes_before == there.storage.bytes_after
    assert back.storage.bytes_after == there.storage.bytes_before


def test_inference_needs_one_matrix_wide_where_nothing_computes_in_the_format() -> None:
    found = converted(odd_llama(), "bf16", "nf4").inference
    assert found.widened_matrix_bytes == 500 * 200 * 2
    assert found.bytes_after == converted(odd_llama(), "bf16", "nf4").storage.bytes_after + 200_000
    assert converted(odd_llama(), "bf16", "mxfp4").inference.widened_matrix_bytes == 0


@pytest.mark.parametrize(
    ("format", "training"),
    [
        ("fp32", {"precision": "fp32"}),
        ("bf16", {"precision": "bf16-mixed"}),
        ("nf4", {"method": "qlora", "lora": {"target_modules": "all-linear"}}),
    ],
)
def test_training_states_are_those_of_an_estimate(format: str, training: dict[str, Any]) -> None:
    model = "meta-llama/Llama-3.1-8B"
    found = converted(model, "fp16", format).training.after
    assert found is not None
    estimated = estimate(
        MemoryInputs(
            CATALOG.model(model).architecture, Training.model_validate(training), Parallelism(), None, None, "detailed"
        )
    )
    assert found.weights_bytes == estimated.per_gpu.weights_bytes
    assert found.optimizer_states_bytes == estimated.per_gpu.optimizer_states_bytes
    assert found.gradients_bytes == 4 * estimated.model.trainable_parameters


def test_formats_that_nothing_trains_in_say_so() -> None:
    training = converted("meta-llama/Llama-3.1-8B", "bf16", "nvfp4").training
    assert training.before is not None
    assert training.after is None
    assert "nvfp4" in training.notes[0]


def test_gpus_that_compute_in_it() -> None:
    assert "h100-sxm-80gb" in converted("openai-community/gpt2", "bf16", "fp8_e4m3").native.gpus
    assert "a100-sxm-80gb" not in converted("openai-community/gpt2", "bf16", "fp8_e4m3").native.gpus
    found = converted("openai-community/gpt2", "bf16", "nvfp4").native.gpus
    assert {CATALOG.gpus[key].architecture.split()[0] for key in found} == {"Blackwell"}
    assert converted("openai-community/gpt2", "bf16", "nf4").native.gpus == ()


@pytest.mark.parametrize(
    ("source", "to", "kinds"),
    [
        ("bf16", "fp32", []),
        ("fp32", "bf16", ["resolution"]),
        ("bf16", "fp16", ["range", "underflow"]),
        ("fp32", "fp16", ["range", "underflow", "resolution"]),
        ("bf16", "fp8_e4m3", ["range", "underflow", "resolution"]),
        ("bf16", "mxfp4", ["underflow", "resolution", "outliers"]),
        ("bf16", "int8", ["resolution", "outliers", "no_gradients"]),
        ("bf16", "nf4", ["resolution", "outliers", "no_gradients", "not_native"]),
        ("fp8_e4m3", "fp8_e4m3fnuz", ["not_native", "other_encoding"]),
    ],
)
def test_what_is_at_risk(source: str, to: str, kinds: list[str]) -> None:
    found = converted("openai-community/gpt2", source, to).risks
    assert [risk.kind for risk in found] == kinds
    assert all(risk.because and risk.remedy and risk.source.url for risk in found)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UnknownName, match="nearest: attention") as unknown:
        converted(odd_llama(), "bf16", "mxfp4", keep=["norm", "atention"])
    assert unknown.value.errors[0].pointer == "/keep/1"
    with pytest.raises(InvalidInput, match="already"):
        converted(odd_llama(), "bf16", "bf16")
    with pytest.raises(InvalidInput, match="send kind symmetric"):
        converted(odd_llama(), "bf16", "int8", scheme=Scheme())
    with pytest.raises(InvalidInput, match="integer format"):
        converted(odd_llama(), "bf16", "mxfp4", scheme=Scheme(kind="symmetric"))


def test_a_scheme_of_its_own_for_integers() -> None:
    scheme = Scheme(kind="affine", granularity="block", block_size=64)
    found = converted(odd_llama(), "bf16", "uint4", scheme=scheme)
    blocks = 3 * sum(rows * ceil(columns / 64) for rows, columns in MATRICES)
    assert found.storage.scale_bytes == blocks * 4 + blocks // 2
