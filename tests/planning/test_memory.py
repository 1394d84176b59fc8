"""What must hold for every estimate, whatever the numbers are."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from app import catalog
from app.errors import InvalidInput
from app.planning.architecture import Architecture, from_config
from app.planning.memory import MemoryEstimate, MemoryInputs, estimate
from app.planning.sizes import evaluate
from app.planning.specs import Parallelism, Training

LLAMA_8B = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
GPT2 = catalog.load().model("openai-community/gpt2").architecture
QWEN = catalog.load().model("Qwen/Qwen2.5-0.5B").architecture
H100 = catalog.load().gpu("h100-sxm-80gb")

trainings = st.builds(
    Training,
    precision=st.sampled_from(["bf16-mixed", "fp16-mixed", "fp32", "bf16"]),
    optimizer=st.sampled_from(["adamw", "sgd", "sgd-momentum", "lion"]),
    micro_batch_size=st.integers(1, 8),
    sequence_length=st.integers(1, 1024),
    gradient_accumulation_steps=st.sampled_from([1, 4]),
    recompute=st.sampled_from(["none", "selective", "full"]),
    framework=st.sampled_from(["transformers", "deepspeed", "megatron", "torchtitan"]),
    fused_cross_entropy=st.booleans(),
)
layouts = st.builds(Parallelism, data_parallel_size=st.integers(1, 64), zero_stage=st.sampled_from([0, 2, 3]))


def small_llama(layers: int, **changes: Any) -> Architecture:
    return from_config(
        {
            "model_type": "llama",
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "vocab_size": 1000,
            **changes,
        }
    )


def ask(architecture: Architecture, training: Training, parallelism: Parallelism | None = None) -> MemoryEstimate:
    return estimate(MemoryInputs(architecture, training, parallelism or Parallelism(), H100, None, "detailed"))


@given(trainings, layouts)
@settings(max_examples=60, deadline=None)
def test_components_sum_to_the_total_and_every_formula_gives_its_bytes(training: Training, layout: Parallelism) -> None:
    assume(training.framework != "megatron" or layout.zero_stage < 2)
    for architecture in (LLAMA_8B, GPT2):
        answer = ask(architecture, training, layout)
        assert sum(component.bytes for component in answer.components) == answer.per_gpu.total_bytes
        for component in answer.components:
            assert evaluate(component.formula, answer.sizes) == component.bytes
            assert component.source.title
            assert type(component.bytes) is int
        assert answer.per_gpu.upper_bound_bytes >= answer.per_gpu.total_bytes
        peak = max(moment.allocated_bytes for moment in answer.moments)
        assert peak == answer.per_gpu.total_bytes - answer.per_gpu.framework_bytes


@given(trainings, st.integers(2, 64))
@settings(max_examples=40, deadline=None)
def test_states_of_all_shards_hold_the_whole_and_less_than_one_element_more_each(
    training: Training, ranks: int
) -> None:
    assume(training.framework != "megatron")
    whole = ask(LLAMA_8B, training, Parallelism(data_parallel_size=1, zero_stage=3))
    shard = ask(LLAMA_8B, training, Parallelism(data_parallel_size=ranks, zero_stage=3))
    for group in ("weights_bytes", "optimizer_states_bytes"):
        together = getattr(shard.per_gpu, group) * ranks
        assert getattr(whole.per_gpu, group) <= together < getattr(whole.per_gpu, group) + 16 * ranks


@given(trainings, st.integers(2, 64))
@settings(max_examples=40, deadline=None)
def test_a_higher_zero_stage_never_needs_more(training: Training, ranks: int) -> None:
    stages = {"megatron": (0, 1), "torchtitan": (0, 2, 3), "transformers": (0, 1, 2, 3), "deepspeed": (1, 2, 3)}
    needed = []
    for stage in stages[training.framework]:
        answer = ask(LLAMA_8B, training, Parallelism(data_parallel_size=ranks, zero_stage=stage))
        padding = sum(part.bytes for part in answer.components if part.name.endswith(".padding"))
        assert padding < 8 * 128 * ranks  # the end of Megatron's buffers, which only sharding needs
        needed.append(answer.per_gpu.total_bytes - 2 * padding)
    assert needed == sorted(needed, reverse=True)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("framework", ["transformers", "megatron", "torchtitan", "deepspeed"])
def test_twice_the_layers_hold_twice_the_layers_activations(framework: str, recompute: str) -> None:
    training = Training.model_validate(
        {"framework": framework, "recompute": recompute, "sequence_length": 4096, "micro_batch_size": 8}
    )
    held = [ask(small_llama(layers), training) for layers in (2, 4, 6)]
    activations = [answer.per_gpu.activations_bytes for answer in held]
    assert activations[2] - activations[1] == activations[1] - activations[0] > 0


def test_recomputation_and_fused_kernels_hold_less() -> None:
    sized = Training(precision="bf16", sequence_length=8192, micro_batch_size=4)
    eager = ask(LLAMA_8B, sized.model_copy(update={"attention": "eager"})).per_gpu.activations_bytes
    selective = ask(LLAMA_8B, sized.model_copy(update={"attention": "eager", "recompute": "selective"}))
    flash = ask(LLAMA_8B, sized.model_copy(update={"attention": "flash"})).per_gpu.activations_bytes
    assert eager > 2 * selective.per_gpu.activations_bytes
    assert flash < selective.per_gpu.activations_bytes * 1.05
    megatron = ask(LLAMA_8B, sized.model_copy(update={"framework": "megatron"})).per_gpu.activations_bytes
    assert megatron < flash * 0.75


def test_accumulation_keeps_gradients_through_the_next_forward() -> None:
    sized = {"micro_batch_size": 4, "sequence_length": 8192}
    once = ask(LLAMA_8B, Training.model_validate(sized))
    summed = ask(LLAMA_8B, Training.model_validate({**sized, "gradient_accumulation_steps": 2}))
    assert (once.per_gpu.gradients_bytes, summed.per_gpu.gradients_bytes) == (0, 4 * LLAMA_8B.parameters)


@pytest.mark.parametrize("framework", ["transformers", "megatron", "nanotron", "torchtitan"])
def test_one_formula_prices_one_layout_and_a_grid_of_them_alike(framework: str) -> None:
    """Sizes are numbers for one layout and arrays for a grid; the formulas are the same."""
    layout = Parallelism(data_parallel_size=2, tensor_parallel_size=2, pipeline_parallel_size=2)
    training = Training.model_validate({"framework": framework, "sequence_length": 512})
    inputs = MemoryInputs(LLAMA_8B, training, layout, H100, None, "detailed")
    answer = estimate(inputs)
    grid = [(batch, length, ranks) for batch in (1, 3) for length in (128, 8192) for ranks in (2, 7, 1024)]
    names = ("micro_batch_size", "sequence_length", "sharding_group_size")
    columns = dict(zip(names, (np.array(column, dtype=np.int64) for column in zip(*grid, strict=True)), strict=True))
    for component in answer.components:
        together = evaluate(component.formula, {**answer.sizes, **columns})
        one_by_one = [
            evaluate(component.formula, {**answer.sizes, **dict(zip(names, point, strict=True))}) for point in grid
        ]
        assert np.broadcast_to(together, len(grid)).tolist() == one_by_one


@pytest.mark.parametrize(
    ("training", "parallelism", "pointer", "says"),
    [
        ({}, {"tensor_parallel_size": 3}, "/parallelism/tensor_parallel_size", "does not divide the model's 32"),
        ({}, {"virtual_pipeline_size": 2}, "/parallelism/virtual_pipeline_size", "pipeline_parallel_size above 1"),
        ({}, {"pipeline_parallel_size": 64}, "/parallelism/pipeline_parallel_size", "at most 32"),
        (
            {},
            {"pipeline_parallel_size": 2, "pipeline_schedule": "interleaved-1f1b"},
            "/parallelism/pipeline_schedule",
            "go together",
        ),
        (
            {},
            {"pipeline_parallel_size": 2, "layers_per_stage": (32,)},
            "/parallelism/layers_per_stage",
            "layers_per_stage counts 1 stages, and pipeline_parallel_size is 2",
        ),
        ({}, {"data_parallel_size": 8, "sharding_group_size": 3}, "/parallelism/sharding_group_size", "divide"),
        ({"framework": "nanotron"}, {"zero_stage": 3}, "/parallelism/zero_stage", "ZeRO-1 only"),
        ({}, {"pipeline_parallel_size": 5}, "/parallelism/pipeline_parallel_size", "32 layers"),
        ({}, {"expert_parallel_size": 2}, "/parallelism/expert_parallel_size", "no experts"),
        ({}, {"sequence_parallel": True}, "/parallelism/sequence_parallel", "tensor_parallel_size"),
        ({"framework": "torchtitan"}, {"zero_stage": 1}, "/parallelism/zero_stage", "FSDP"),
        ({"global_batch_size": 7}, {"data_parallel_size": 2}, "/training/global_batch_size", "multiple"),
        (
            {"global_batch_size": 8, "gradient_accumulation_steps": 3},
            {},
            "/training/gradient_accumulation_steps",
            "takes 8",
        ),
        ({"precision": "fp32", "attention": "flash"}, {}, "/training/attention", "16 bit"),
        ({"precision": "int8"}, {}, "/training/precision", "rule of thumb"),
        ({"framework": "megatron"}, {"zero_stage": 2}, "/parallelism/zero_stage", "ZeRO-1"),
        ({"target_sequence_length": 8}, {}, "/training/target_sequence_length", "no decoder beside an encoder"),
        (
            {"precision": {"compute": "bf16", "parameters": "fp32", "gradients": "bf16"}},
            {},
            "/training/precision/gradients",
            "gradients of fp32 weights in fp32",
        ),
        (
            {"precision": {"compute": "bf16", "parameters": "bf16", "gradients": "bf16", "master_weights": "fp32"}},
            {},
            "/training/precision/master_weights",
            "no master weights",
        ),
        (
            {
                "framework": "megatron",
                "precision": {"compute": "bf16", "parameters": "fp32", "gradients": "fp32"},
            },
            {},
            "/training/precision/parameters",
            "keep them in bf16",
        ),
        (
            {"framework": "megatron", "optimizer_implementation": "foreach"},
            {},
            "/training/optimizer_implementation",
            "fused",
        ),
        (
            {"precision": {"compute": "fp16", "parameters": "bf16", "gradients": "bf16"}},
            {},
            "/training/precision/parameters",
            "fp16",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_run_is_refused_with_what_to_do(
    training: dict[str, Any], parallelism: dict[str, Any], pointer: str, says: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        ask(LLAMA_8B, Training.model_validate(training), Parallelism.model_validate(parallelism))
    assert caught.value.errors[0].pointer == pointer
    assert says in caught.value.detail


@pytest.mark.parametrize(
    ("size", "says"), [(3, "does not divide the model's 8 experts"), (4, "data × context × tensor parallel ranks")]
)
def test_experts_are_split_evenly_or_not_at_all(size: int, says: str) -> None:
    mixtral = catalog.load().model("mistralai/Mixtral-8x7B-v0.1").architecture
    with pytest.raises(InvalidInput, match=says):
        ask(mixtral, Training(), Parallelism(expert_parallel_size=size))


def test_a_gpu_without_bf16_units_is_planned_for_in_fp16_without_flash_attention() -> None:
    t4 = catalog.load().gpu("t4")
    answer = estimate(MemoryInputs(GPT2, Training(), Parallelism(), t4, None, "detailed"))
    assert {"precision: fp16-mixed", "attention: sdpa"} <= set(answer.assumptions)
    emulated = estimate(MemoryInputs(GPT2, Training(precision="bf16"), Parallelism(), t4, None, "detailed"))
    assert any("no BF16 units" in warning for warning in emulated.warnings)
    with pytest.raises(InvalidInput, match=r"compute capability 8\.0"):
        estimate(MemoryInputs(GPT2, Training(attention="flash"), Parallelism(), t4, None, "detailed"))


def test_a_class_without_flash_attention_is_not_planned_with_it() -> None:
    bloom = catalog.load().model("bigscience/bloom-560m").architecture
    t5 = catalog.load().model("google-t5/t5-base").architecture
    assert "attention: eager" in ask(bloom, Training()).assumptions
    assert "attention: sdpa" in ask(t5, Training()).assumptions
    with pytest.raises(InvalidInput, match="eager attention only"):
        ask(bloom, Training(attention="sdpa"))
    with pytest.raises(InvalidInput, match="sdpa and eager"):
        ask(t5, Training(attention="flash"))


def test_nanotron_gathers_no_more_than_it_trains() -> None:
    """Frozen weights are never updated, so no rank gathers slices of them."""
    model = catalog.load().model("meta-llama/Llama-3.1-8B").architecture
    training = Training.model_validate({"framework": "nanotron", "method": "lora", "recompute": "full"})
    answer = ask(model, training, Parallelism(data_parallel_size=2, zero_stage=1))
    trained_bytes = 2 * answer.model.trainable_parameters
    (gathered,) = [one.bytes for one in answer.components if one.name == "nanotron.gathered_slices"]
    assert gathered == trained_bytes


def test_everything_left_out_is_said() -> None:
    said = {line.partition(":")[0] for line in ask(LLAMA_8B, Training()).assumptions}
    fields = {"framework", "precision", "optimizer", "optimizer_implementation", "attention", "recompute"}
    assert fields | {"micro_batch_size", "sequence_length"} <= said


@pytest.mark.parametrize(
    ("framework", "says"), [("transformers", "leaves the weights for vision without"), ("megatron", "have gradients")]
)
def test_what_a_tower_keeps_without_images_is_said_as_it_is(framework: str, says: str) -> None:
    model = catalog.load().model("google/gemma-3-4b-pt").architecture
    answer = ask(model, Training.model_validate({"framework": framework, "optimizer": "sgd-momentum"}))
    (line,) = [line for line in answer.assumptions if "gradients" in line and "vision" in line]
    assert says in line
    states = answer.per_gpu.optimizer_states_bytes
    momentum = 4 * model.parameters
    assert states < momentum if framework == "transformers" else states >= momentum


def test_fixed_positions_get_no_gradient_and_no_state() -> None:
    marian = catalog.load().model("Helsinki-NLP/opus-mt-en-de").architecture
    training = Training(micro_batch_size=1, sequence_length=1, optimizer_implementation="fused")
    answer = ask(marian, training)
    assert marian.trainable_parameters < marian.parameters
    assert answer.per_gpu.optimizer_states_bytes == 8 * marian.trainable_parameters


def test_unsynchronized_accumulation_keeps_whole_gradients_under_fsdp() -> None:
    layout = Parallelism(data_parallel_size=8, zero_stage=3)
    answer = ask(LLAMA_8B, Training(gradient_accumulation_steps=4, micro_batch_size=4), layout)
    (whole,) = [component for component in answer.components if component.name == "gradients.unsynchronized"]
    assert whole.bytes == 2 * LLAMA_8B.parameters


def test_learned_positions_end_the_sequence_and_rotary_ones_only_warn() -> None:
    with pytest.raises(InvalidInput, match="1024 learned positions"):
        ask(GPT2, Training(sequence_length=1025))
    assert "beyond" in ask(LLAMA_8B, Training(sequence_length=200_000)).warnings[0]


def test_more_ranks_than_gpus_is_refused_and_fewer_is_said() -> None:
    inputs = MemoryInputs(LLAMA_8B, Training(), Parallelism(data_parallel_size=16), H100, 8, "detailed")
    with pytest.raises(InvalidInput, match="needs 16 GPUs and the hardware has 8"):
        estimate(inputs)
    one = MemoryInputs(LLAMA_8B, Training(), Parallelism(), H100, 8, "detailed")
    assert "uses 1 of 8 GPUs" in estimate(one).warnings[0]


def test_fits_is_judged_by_the_upper_bound_and_unknown_without_a_gpu() -> None:
    answer = ask(LLAMA_8B, Training(recompute="full"), Parallelism(data_parallel_size=8, zero_stage=3))
    assert answer.fits is True
    assert answer.headroom_bytes == H100.usable_bytes - answer.per_gpu.upper_bound_bytes
    alone = ask(LLAMA_8B, Training())
    assert (alone.fits, alone.headroom_bytes is not None and alone.headroom_bytes < 0) == (False, True)
    unknown = estimate(MemoryInputs(LLAMA_8B, Training(), Parallelism(), None, None, "detailed"))
    assert (unknown.fits, unknown.headroom_bytes) == (None, None)


def test_reentrant_checkpoints_beside_frozen_fsdp_units_keep_the_gradients_of_their_inputs() -> None:
    """Measured with torch 2.13 on two ranks (Gloo, live storages counted by a dispatch mode): LoRA on 24 layers of
    width 64, each checkpointed around its FSDP unit. With `use_reentrant=True` backward's peak grows by 2,944 bytes a
    token more than without: 2 bytes x 64 x the 23 blocks whose backward is over.
    """
    model = small_llama(24, hidden_size=64, intermediate_size=224, num_key_value_heads=2, vocab_size=64)
    layout = Parallelism(data_parallel_size=2, zero_stage=3)

    def peak(tokens: int, *, reentrant: bool) -> int:
        training = Training(
            method="lora", recompute="full", sequence_length=tokens, micro_batch_size=1, use_reentrant=reentrant
        )
        moments = ask(model, training, layout).moments
        return max(moment.allocated_bytes for moment in moments if moment.phase == "backward of the layers")

    growth = {way: (peak(1024, reentrant=way) - peak(512, reentrant=way)) / 512 for way in (True, False)}
    assert growth[True] - growth[False] == pytest.approx(2944, rel=0.001)


def test_trainable_parameters_are_those_of_no_frozen_layer_and_of_what_is_trained_beside_adapters() -> None:
    half = ask(LLAMA_8B, Training(frozen_layers=16))
    assert half.model.trainable_parameters == half.sizes["trainable_parameters_on_rank"] < LLAMA_8B.parameters
    lora = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    beside = ask(LLAMA_8B, Training.model_validate({"method": "lora", "lora": lora}))
    alone = ask(LLAMA_8B, Training.model_validate({"method": "lora", "lora": {"target_modules": ["q_proj"]}}))
    head = LLAMA_8B.sizes["vocab_size"] * LLAMA_8B.sizes["hidden_size"]
    assert beside.model.trainable_parameters - alone.model.trainable_parameters == head


DEEPSEEK = {
    "model_type": "deepseek_v3",
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 8,
    "first_k_dense_replace": 3,
    "num_attention_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "vocab_size": 1000,
}


def test_frozen_and_recomputed_layers_are_counted_over_all_kinds_of_layers() -> None:
    model = from_config(DEEPSEEK)
    trained = [ask(model, Training(frozen_layers=count)).model.trainable_parameters for count in (2, 3, 4)]
    last_dense, first_with_experts = trained[0] - trained[1], trained[1] - trained[2]
    assert first_with_experts > last_dense > 0

    def kept(layers: int | None) -> int:
        answer = ask(model, Training(recompute="full", recompute_layers=layers, sequence_length=4096))
        return sum(part.bytes for part in answer.components if part.group == "activations")

    assert kept(8) == kept(None) < kept(6) < kept(4) < kept(3)


def test_frozen_layers_freeze_a_head_that_is_tied_to_the_embedding() -> None:
    answer = ask(GPT2, Training(frozen_layers=6, sequence_length=16))
    (peak,) = [moment for moment in answer.moments if moment.phase == "optimizer step"]
    before = max(moment.allocated_bytes for moment in answer.moments if moment.phase != "optimizer step")
    assert before - peak.allocated_bytes < 4 * GPT2.sizes["vocab_size"] * GPT2.sizes["hidden_size"]


def test_offloaded_weights_of_every_format_are_on_the_host() -> None:
    layout = Parallelism(data_parallel_size=8, zero_stage=3, offload="optimizer+parameters")
    answer = ask(LLAMA_8B, Training(method="qlora", recompute="full"), layout)
    assert {"weights", "weights.in_fp32", "weights.in_nf4"} <= {part.name for part in answer.host.components}
    assert answer.per_gpu.weights_bytes == 0


def test_formulas_read_alike_in_every_process() -> None:
    """Python orders the names of a set anew in each process; an answer does not show it."""
    asked = (
        "from app import catalog\n"
        "from app.planning.memory import MemoryInputs, estimate\n"
        "from app.planning.specs import Parallelism, Training\n"
        "model = catalog.load().model('meta-llama/Llama-3.1-8B').architecture\n"
        "layout = Parallelism(tensor_parallel_size=2, sequence_parallel=True)\n"
        "for micro_batch_size in (1, 64):\n"
        "    training = Training(framework='nanotron', micro_batch_size=micro_batch_size)\n"
        "    answer = estimate(MemoryInputs(model, training, layout, None, None, 'detailed'))\n"
        "    print(*(component.formula for component in answer.components), sep='\\n')\n"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", asked],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(answers) == 1
    assert "hidden_size" in answers.pop()


@pytest.mark.parametrize(
    ("architecture", "training", "traced_bytes"),
    [
        (GPT2, {"precision": "bf16", "optimizer_implementation": "fused", "micro_batch_size": 8}, 9_606_163_968),
        (
            GPT2,
            {"precision": "fp32", "optimizer": "sgd-momentum", "micro_batch_size": 4, "sequence_length": 512},
            3_900_348_416,
        ),
        (QWEN, {"precision": "bf16", "micro_batch_size": 2}, 7_558_803_456),
    ],
)
def test_the_first_step_has_no_states_before_the_optimizer_makes_them(
    architecture: Architecture, training: dict[str, Any], traced_bytes: int
) -> None:
    """Traced on fake tensors, with torch 2.13 and transformers 5.23: the first of two steps."""
    answer = ask(architecture, Training.model_validate({"sequence_length": 1024, "attention": "sdpa", **training}))
    (first,) = [moment for moment in answer.moments if moment.phase == "first step"]
    peak = max(moment.allocated_bytes for moment in answer.moments)
    assert peak - first.allocated_bytes == answer.per_gpu.optimizer_states_bytes
    assert first.allocated_bytes == pytest.approx(traced_bytes, rel=0.0005)


@pytest.mark.parametrize(
    ("training", "layout"),
    [
        ({"sequence_length": 8}, {}),  # whose peak is the optimizer's step
        ({"framework": "deepspeed"}, {"data_parallel_size": 8, "zero_stage": 2}),
        ({"optimizer": "adagrad"}, {}),
        ({"optimizer": "sgd"}, {}),
        ({}, {"data_parallel_size": 8, "zero_stage": 3, "offload": "optimizer+parameters"}),
    ],
)
def test_the_first_step_is_told_only_where_it_differs(training: dict[str, Any], layout: dict[str, Any]) -> None:
    answer = ask(GPT2, Training.model_validate({"micro_batch_size": 8, **training}), Parallelism.model_validate(layout))
    assert "first step" not in {moment.phase for moment in answer.moments}
