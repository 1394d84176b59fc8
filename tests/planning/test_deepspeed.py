"""What DeepSpeed's ZeRO-3 holds beside its shards, by its configuration."""

from typing import Any

import pytest

from app import catalog
from app.errors import InvalidInput
from app.planning.memory import MemoryEstimate, MemoryInputs, estimate
from app.planning.specs import Parallelism, Training

LLAMA_8B = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
NORMS = (2 * 32 + 1) * 4096
"""Elements of Llama-3.1-8B's norms, its only weights of at most 100,000."""

KEYS_AND_VALUES = 2 * 32 * 1024 * 4096


def ask(framework: str = "deepspeed", **layout: Any) -> MemoryEstimate:
    training = Training.model_validate({"framework": framework, "sequence_length": 512, "recompute": "full"})
    parallelism = Parallelism.model_validate({"data_parallel_size": 8, "zero_stage": 3, **layout})
    return estimate(MemoryInputs(LLAMA_8B, training, parallelism, None, None, "detailed"))


def found(answer: MemoryEstimate, name: str) -> int:
    return sum(component.bytes for component in answer.components if component.name == name)


def forward(answer: MemoryEstimate) -> int:
    return next(moment.allocated_bytes for moment in answer.moments if moment.phase == "forward")


@pytest.mark.parametrize(
    ("layout", "elements"),
    [
        ({}, NORMS),
        ({"stage3_param_persistence_threshold": 4096}, NORMS),
        ({"stage3_param_persistence_threshold": 4095}, 0),
        ({"stage3_param_persistence_threshold": 1024 * 4096}, NORMS + KEYS_AND_VALUES),
        ({"stage3_param_persistence_threshold": 1024 * 4096, "stage3_model_persistence_threshold": 10**6}, 10**6),
    ],
)
def test_weights_up_to_the_threshold_stay_whole(layout: dict[str, int], elements: int) -> None:
    answer, none = ask(**layout), ask(stage3_param_persistence_threshold=0)
    assert found(answer, "deepspeed.persistent_weights") == 2 * elements
    between = answer.pipeline_stages[0].between_steps_bytes - none.pipeline_stages[0].between_steps_bytes
    assert between == 2 * elements


def test_gathered_weights_follow_the_live_elements_and_the_reuse_distance() -> None:
    def gathered(**layout: int) -> int:
        return forward(ask(**layout)) - forward(ask(stage3_max_live_parameters=0, stage3_max_reuse_distance=0))

    head = (LLAMA_8B.sizes["vocab_size"] + 1) * 4096  # with the final norm
    assert gathered() == 2 * (10**9 - head)
    assert gathered(stage3_max_live_parameters=3 * 10**9) == 2 * (3 * 10**9 - head)
    assert gathered(stage3_prefetch_bucket_size=0) == 0
    assert gathered(stage3_prefetch_bucket_size=0, stage3_max_reuse_distance=3 * 10**9) == 2 * (10**9 - head)
    assert gathered(stage3_max_live_parameters=10**10) == 2 * (LLAMA_8B.parameters - NORMS - head)


def test_hpz_adds_a_second_copy_and_leaves_the_states_sharded_over_all_ranks() -> None:
    plain, doubled = ask(data_parallel_size=16), ask(data_parallel_size=16, zero_hpz_partition_size=8)
    copy = 2 * -(-LLAMA_8B.parameters // 8)
    assert found(doubled, "deepspeed.secondary_weights") == copy
    assert doubled.per_gpu.optimizer_states_bytes == plain.per_gpu.optimizer_states_bytes
    assert doubled.per_gpu.weights_bytes == plain.per_gpu.weights_bytes
    assert forward(doubled) - forward(plain) == copy
    assert doubled.pipeline_stages[0].between_steps_bytes == plain.pipeline_stages[0].between_steps_bytes
    assert any("hpZ" in line for line in doubled.assumptions)


def test_hpz_over_one_rank_is_off_as_in_deepspeed() -> None:
    assert ask(data_parallel_size=16, zero_hpz_partition_size=1) == ask(data_parallel_size=16)


def test_mics_shards_every_state_within_its_groups() -> None:
    group, few = ask(data_parallel_size=16, sharding_group_size=8), ask(data_parallel_size=8)
    assert group.per_gpu.weights_bytes == few.per_gpu.weights_bytes
    assert group.per_gpu.optimizer_states_bytes == few.per_gpu.optimizer_states_bytes
    assert any("MiCS" in line for line in group.assumptions)
    assert not any("MiCS" in line for line in few.assumptions)


@pytest.mark.parametrize(
    ("framework", "layout", "pointer", "words"),
    [
        ("transformers", {"stage3_max_live_parameters": 1}, "/parallelism/stage3_max_live_parameters", "ZeRO-3 only"),
        (
            "deepspeed",
            {"zero_stage": 2, "zero_hpz_partition_size": 4},
            "/parallelism/zero_hpz_partition_size",
            "ZeRO-3 only",
        ),
        ("deepspeed", {"zero_hpz_partition_size": 3}, "/parallelism/zero_hpz_partition_size", "does not divide"),
        (
            "deepspeed",
            {"zero_stage": 2, "sharding_group_size": 4},
            "/parallelism/sharding_group_size",
            "set zero_stage 3",
        ),
        (
            "deepspeed",
            {"sharding_group_size": 4, "zero_hpz_partition_size": 4},
            "/parallelism/sharding_group_size",
            "leave sharding_group_size or zero_hpz_partition_size out",
        ),
    ],
)
def test_what_deepspeed_cannot_run_is_refused(framework: str, layout: dict[str, Any], pointer: str, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        ask(framework, **layout)
    assert refused.value.errors[0].pointer == pointer
    assert words in refused.value.detail
