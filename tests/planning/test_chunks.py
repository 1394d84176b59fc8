"""What each chunk of a pipeline stage keeps."""

from typing import Any

import pytest

from app import catalog
from app.planning.memory import MemoryEstimate, MemoryInputs, PipelineStage, estimate
from app.planning.specs import Parallelism, Training

LLAMA_8B = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
ONE_LAYER = 34 * 4096 * 512
"""Any layer's order of magnitude: bytes of half a thousand tokens."""


def ask(training: dict[str, Any] | None = None, **layout: Any) -> tuple[PipelineStage, ...]:
    wanted = {"framework": "megatron", "sequence_length": 512, "gradient_accumulation_steps": 16, **(training or {})}
    inputs = MemoryInputs(
        LLAMA_8B,
        Training.model_validate(wanted),
        Parallelism.model_validate({"pipeline_parallel_size": 4, **layout}),
        None,
        None,
        "detailed",
    )
    return estimate(inputs).pipeline_stages


def in_flight(stages: tuple[PipelineStage, ...]) -> list[list[int]]:
    return [[chunk.in_flight_micro_batches for chunk in stage.chunks] for stage in stages]


@pytest.mark.parametrize(
    ("layout", "waiting"),
    [
        ({}, [[4], [3], [2], [1]]),
        ({"pipeline_schedule": "gpipe"}, [[16]] * 4),
        ({"pipeline_schedule": "zb-h1"}, [[4]] * 4),
        ({"virtual_pipeline_size": 2}, [[7, 4], [5, 4], [4, 3], [4, 1]]),
        ({"virtual_pipeline_size": 4}, [[7, 4, 4, 4], [5, 4, 4, 4], [4, 4, 4, 3], [4, 4, 4, 1]]),
        ({"pipeline_schedule": "zb-v"}, [[4, 4]] * 4),
    ],
)
def test_micro_batches_in_flight_by_schedule(layout: dict[str, Any], waiting: list[list[int]]) -> None:
    assert in_flight(ask(**layout)) == waiting


@pytest.mark.parametrize("layout", [{}, {"virtual_pipeline_size": 4}, {"pipeline_schedule": "dualpipe-v"}])
def test_chunks_have_all_layers_once_and_stand_where_they_are_in_the_model(layout: dict[str, Any]) -> None:
    chunks = [chunk for stage in ask(**layout) for chunk in stage.chunks]
    assert sum(chunk.layers for chunk in chunks) == 32
    assert sorted(chunk.position for chunk in chunks) == list(range(len(chunks)))


def test_a_chunk_keeps_as_much_as_its_layers_for_each_micro_batch() -> None:
    stages = ask(virtual_pipeline_size=4)
    middle = stages[1].chunks
    (each,) = {chunk.activations_bytes // (chunk.layers * chunk.in_flight_micro_batches) for chunk in middle}
    assert ONE_LAYER / 2 < each < ONE_LAYER * 2
    first, last = stages[0].chunks[0], stages[-1].chunks[-1]
    assert first.activations_bytes >= each * first.layers * 7  # and what the embedding keeps
    assert last.activations_bytes > each * last.layers + 4 * 512 * LLAMA_8B.sizes["vocab_size"]  # and the logits
    assert stages[0].chunks[0].activations_bytes > stages[0].chunks[1].activations_bytes


def test_recomputed_layers_are_shared_out_over_chunks() -> None:
    whole = ask({"recompute": "full"}, virtual_pipeline_size=2)
    some = ask({"recompute": "full", "recompute_layers": 2}, virtual_pipeline_size=2)
    none = ask(virtual_pipeline_size=2)
    for by_whole, by_some, by_none in zip(whole, some, none, strict=True):
        for fewest, between, most in zip(by_whole.chunks, by_some.chunks, by_none.chunks, strict=True):
            assert fewest.activations_bytes < between.activations_bytes < most.activations_bytes


def test_one_stage_has_no_chunks() -> None:
    assert [stage.chunks for stage in ask(pipeline_parallel_size=1)] == [()]


GEMMA_4B = catalog.load().model("google/gemma-3-4b-pt").architecture
"""34 layers of text behind a tower of 27 for images."""


def gemma(training: dict[str, Any], **layout: Any) -> MemoryEstimate:
    wanted = {"framework": "megatron", "sequence_length": 512, "gradient_accumulation_steps": 16, **training}
    model, split = Training.model_validate(wanted), Parallelism.model_validate(layout)
    return estimate(MemoryInputs(GEMMA_4B, model, split, None, None, "detailed"))


@pytest.mark.parametrize(
    ("framework", "layout", "layers"),
    [
        ("megatron", {"pipeline_parallel_size": 2}, [17, 17]),
        ("megatron", {"pipeline_parallel_size": 2, "layers_per_stage": [20, 14]}, [20, 14]),
        ("nanotron", {"pipeline_parallel_size": 2}, [21, 13]),
    ],
)
def test_layers_of_a_tower_are_not_spread_over_stages(
    framework: str, layout: dict[str, Any], layers: list[int]
) -> None:
    stages = gemma({"framework": framework}, **layout).pipeline_stages
    assert [sum(chunk.layers for chunk in stage.chunks) for stage in stages] == layers


def test_layers_of_a_tower_are_neither_recomputed_nor_frozen_in_place_of_text_layers() -> None:
    all_again, counted = gemma({"recompute": "full"}), gemma({"recompute": "full", "recompute_layers": 34})
    assert counted.per_gpu.activations_bytes == all_again.per_gpu.activations_bytes
    frozen = gemma({"frozen_layers": 33}).model.trainable_parameters
    below = GEMMA_4B.parameters - frozen
    assert below > GEMMA_4B.parameters * 9 // 10, "embedding, tower and 33 of 34 layers are frozen"


def test_a_first_stage_without_layers_has_the_embedding() -> None:
    first = ask(layers_per_stage=[0, 10, 11, 11])[0]
    assert first.between_steps_bytes > 128_256 * 4096 * 2
