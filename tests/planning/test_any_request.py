"""Whatever is asked is answered or refused in words: nothing breaks, and every answer adds up."""

from typing import Any, get_args

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from app import catalog
from app.errors import InvalidInput
from app.planning import memory
from app.planning.memory import MemoryInputs
from app.planning.sizes import evaluate
from app.planning.specs import (
    BaseFormat,
    Framework,
    Offload,
    Optimizer,
    Parallelism,
    PipelineSchedule,
    PrecisionPreset,
    Recompute,
    RecomputeModule,
    Training,
)

MODELS = (
    "meta-llama/Llama-3.1-8B",
    "openai-community/gpt2",
    "mistralai/Mixtral-8x7B-v0.1",
    "deepseek-ai/DeepSeek-V2-Lite",
    "google-t5/t5-base",
    "google-bert/bert-base-uncased",
    "state-spaces/mamba-130m-hf",
    "albert/albert-base-v2",
)
GPUS = ("h100-sxm-80gb", "a100-sxm-80gb", "v100-sxm2-32gb")


def words(literal: Any) -> SearchStrategy[str]:
    return st.sampled_from(get_args(literal))


def mostly(usual: Any, others: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """The usual value nine times in ten: of many rare fields, few are set at once, and many requests can run."""
    return st.integers(0, 9).flatmap(lambda roll: others if roll == 9 else st.just(usual))


TRAINING = st.fixed_dictionaries(
    {
        "framework": words(Framework),
        "method": mostly("full", st.sampled_from(["lora", "qlora"])),
        "precision": mostly(None, words(PrecisionPreset)),
        "optimizer": mostly("adamw", words(Optimizer)),
        "gradient_accumulation_steps": mostly(None, st.just(4)),
        "recompute": words(Recompute),
        "recompute_modules": mostly(None, st.lists(words(RecomputeModule), min_size=1, max_size=2)),
        "recompute_layers": mostly(None, st.just(3)),
        "frozen_layers": mostly(0, st.just(4)),
        "compile": mostly(False, st.just(True)),
        "fused_cross_entropy": mostly(False, st.just(True)),
        "use_liger_kernel": mostly(False, st.just(True)),
        "in_place_cross_entropy": mostly(False, st.just(True)),
        "compile_loss": mostly(None, st.booleans()),
        "transformers_version": mostly(None, st.sampled_from(["4.40", "4.46.3", "5.2"])),
        "optimizer_in_backward": mostly(False, st.just(True)),
        "offload_checkpoints": mostly(False, st.just(True)),
        "packing": mostly(False, st.just(True)),
        "use_reentrant": mostly(False, st.just(True)),
        "expert_load_percent": mostly(100, st.just(150)),
    }
)
ADAPTERS = st.fixed_dictionaries(
    {
        "target_modules": st.just("all-linear"),
        "base_format": mostly(None, words(BaseFormat)),
        "modules_to_save": mostly(None, st.just(["lm_head"])),
        "prepared": st.booleans(),
    }
)
PARALLELISM = st.fixed_dictionaries(
    {
        "data_parallel_size": st.sampled_from([1, 2, 8]),
        "zero_stage": st.integers(0, 3),
        "sharding_group_size": mostly(None, st.just(2)),
        "zero_hpz_partition_size": mostly(None, st.just(2)),
        "stage3_param_persistence_threshold": mostly(None, st.just(10_000)),
        "tensor_parallel_size": st.sampled_from([1, 1, 2, 4]),
        "sequence_parallel": mostly(False, st.just(True)),
        "pipeline_parallel_size": st.sampled_from([1, 1, 2, 4]),
        "pipeline_schedule": mostly(None, words(PipelineSchedule)),
        "virtual_pipeline_size": mostly(1, st.just(2)),
        "layers_per_stage": mostly(None, st.lists(st.integers(0, 16), min_size=2, max_size=4)),
        "context_parallel_size": mostly(1, st.just(2)),
        "expert_parallel_size": mostly(1, st.sampled_from([2, 8])),
        "offload": mostly("none", words(Offload)),
    }
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.sampled_from(MODELS), TRAINING, ADAPTERS, PARALLELISM, st.sampled_from([None, *GPUS]))
def test_any_request_is_answered_or_refused(
    model: str, training: dict[str, Any], adapters: dict[str, Any], parallelism: dict[str, Any], gpu: str | None
) -> None:
    known = catalog.load()
    lora = None if training["method"] == "full" else adapters
    inputs = MemoryInputs(
        architecture=known.model(model).architecture,
        training=Training.model_validate({**training, "lora": lora}),
        parallelism=Parallelism.model_validate(parallelism),
        gpu=None if gpu is None else known.gpu(gpu),
        gpus=None,
        estimator="detailed",
    )
    try:
        answer = memory.estimate(inputs)
    except InvalidInput:
        return
    assert sum(component.bytes for component in answer.components) == answer.per_gpu.total_bytes
    assert answer.per_gpu.total_bytes == max(stage.total_bytes for stage in answer.pipeline_stages)
    assert answer.per_gpu.upper_bound_bytes >= answer.per_gpu.total_bytes
    for component in (*answer.components, *answer.host.components):
        assert component.bytes >= 0
        assert evaluate(component.formula, answer.sizes) == component.bytes
    for stage in answer.pipeline_stages:
        assert stage.total_bytes >= stage.reserved_bytes >= stage.allocated_bytes >= stage.between_steps_bytes >= 0
