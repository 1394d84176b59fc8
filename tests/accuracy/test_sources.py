"""Rows of each source as the jobs they describe."""

from dataclasses import fields, replace

import pytest

from app.accuracy import measured, models
from app.accuracy.jobs import Job, Unexpressed
from app.accuracy.rows import MeasuredRow
from app.accuracy.sources import RULES
from app.accuracy.sources.megatron import Flags, default_inner, stages_of
from app.planning.specs import Precision

TEXT = [field.name for field in fields(MeasuredRow) if field.type is str]
BLANK = MeasuredRow(
    **{field.name: "" if field.name in TEXT else None for field in fields(MeasuredRow) if field.name != "value"},
    value=1.0,
)


def row(**changes: object) -> MeasuredRow:
    given = {"measured_metric": "peak_allocated", "unit": "bytes", "seq_len": 1024, "micro_batch_size": 4}
    return replace(BLANK, **{**given, **changes})  # type: ignore[arg-type] # names are those of the row


def job(siblings: dict[str, float] | None = None, **changes: object) -> Job:
    return measured.job_of(row(**changes), siblings or {}, RULES)


def test_megatron_flags_describe_the_model() -> None:
    found = job(
        source_family="megatron_golden",
        framework="Megatron-LM (mcore)",
        model_name="gpt/gpt3_mcore_te_tp2_pp2",
        gpu_model="A100",
        num_gpus=8,
        hidden=512,
        layers=12,
        heads=8,
        kv_heads=8,
        compute_dtype="bf16",
        optimizer="adam",
        tp=2,
        pp=2,
        dp=2,
        cp=1,
        sp="true",
        zero_stage_or_fsdp="distributed optimizer (zero1)",
        attention_impl="unfused",
        recompute="none",
        tied_embeddings="false",
        notes="tokenizer=GPT2BPE (vocab file); divisible-by=128 default; flags: swiglu=True, normalization=RMSNorm, "
        "position-embedding-type=rope, disable-bias-linear=True, hidden-dropout=0.0, deterministic-mode=True",
    )

    model, training, layout = found.inputs.architecture, found.inputs.training, found.inputs.parallelism
    inner = default_inner(512, gated=True)
    layer = 4 * 512 * 512 + 3 * 512 * inner + 2 * 512
    assert inner == 1344
    assert model.sizes["vocab_size"] == 50432  # the next multiple of 128 x 2
    assert model.parameters == 12 * layer + 2 * 50432 * 512 + 512
    assert (training.attention, training.deterministic, training.precision) == ("eager", True, "bf16-mixed")
    assert (layout.zero_stage, layout.sequence_parallel, layout.data_parallel_size) == (1, True, 2)
    assert (found.reading.stage, found.reading.figure) == (-1, "allocated")
    assert found.is_fully_stated


@pytest.mark.parametrize(
    ("notes", "stages"),
    [
        ("flags: max-position-embeddings=1024", None),
        ("flags: account-for-embedding-in-pipeline-split=True, account-for-loss-in-pipeline-split=True", (2, 3, 3, 2)),
        ("flags: num-layers-in-first-pipeline-stage=1", (1, 3, 3, 3)),
        ("flags: decoder-first-pipeline-num-layers=2, decoder-last-pipeline-num-layers=2", (2, 3, 3, 2)),
    ],
)
def test_uneven_pipelines_of_megatron(notes: str, stages: tuple[int, ...] | None) -> None:
    assert stages_of(row(pp=4, layers=10, notes=notes), Flags(notes)) == stages


def test_a_mean_length_follows_from_throughput() -> None:
    given = {
        "source_family": "fms_acceleration",
        "framework": "HF SFTTrainer (fms-hf-tuning) + accelerate",
        "model_name": "mistralai/Mistral-7B-v0.1",
        "num_gpus": 2,
        "dp": 2,
        "seq_len": None,
        "param_dtype": "fp16",
        "compute_dtype": "fp16",
        "optimizer": "AdamW (HF default)",
        "zero_stage_or_fsdp": "FSDP full shard",
        "recompute": "full",
        "peft": "none",
    }
    found = job({"tokens_per_s_per_gpu": 3000.0, "samples_per_s": 12.0}, **given)

    assert found.inputs.training.sequence_length == 500
    assert not found.is_fully_stated
    with pytest.raises(Unexpressed, match="sequence length is not stated"):
        job(**given)


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({"compute_dtype": "bf16 autocast", "param_dtype": "bf16", "zero_stage_or_fsdp": "none"}, "bf16"),
        ({"compute_dtype": "bf16 autocast", "param_dtype": "bf16", "zero_stage_or_fsdp": "FSDP"}, "bf16-mixed"),
    ],
)
def test_accelerate_widens_weights_only_under_fsdp(changes: dict[str, str], precision: str | Precision) -> None:
    found = job(
        source_family="fms_acceleration",
        framework="HF SFTTrainer",
        model_name="mistralai/Mistral-7B-v0.1",
        num_gpus=1,
        recompute="full",
        optimizer="AdamW",
        peft="none",
        **changes,
    )

    assert found.inputs.training.precision == precision


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"micro_batch_size": None}, "the micro batch size is not stated"),
        ({"seq_len": None}, "the sequence length is not stated"),
        ({"model_name": "secret"}, "unknown model, and its shapes are not given: secret"),
        ({"optimizer": "sm3"}, "optimizer that has no word in a request: sm3"),
        (
            {"cpu_offload": "activations"},
            "offloaded activations that are not inputs of recomputed blocks have no word in a request",
        ),
        (
            {"cpu_offload": "activations of 20 layers"},
            "offload that has no word in a request: activations of 20 layers",
        ),
        ({"framework": "MaxText"}, "JAX programs are not estimated"),
        ({"measured_metric": "mfu"}, "throughput: not estimated yet"),
    ],
)
def test_what_cannot_be_asked_is_said(changes: dict[str, object], reason: str) -> None:
    given = {"model_name": "Llama 3.1 8B", "framework": "PEFT", "num_gpus": 1, "optimizer": "adamw"}
    with pytest.raises(Unexpressed) as refused:
        job(**{**given, **changes})
    assert str(refused.value) == reason


@pytest.mark.parametrize(
    ("metric", "notes", "outcome"),
    [
        ("peak_allocated", "", "finished"),
        ("fits", "", "finished"),
        ("oom", "", "out of memory"),
        ("oom_or_crash", "", "failed"),
        ("oom_or_crash", "nvidia-smi column at that point: 79604.0 MiB", "out of memory"),
        ("oom_or_crash", "nvidia-smi column at that point: 20000.0 MiB", "failed"),
        ("oom_or_crash", "same config also has a successful run in the source", None),
        ("model_states", "", None),
    ],
)
def test_how_a_run_ended(metric: str, notes: str, outcome: str | None) -> None:
    assert measured.outcome_of(row(measured_metric=metric, notes=notes, gpu_mem_gib=80.0)) == outcome


BASE = {
    "model_name": "Llama 3.1 8B",
    "framework": "axolotl",
    "num_gpus": 1,
    "optimizer": "adamw",
    "recompute": "full",
    "compute_dtype": "bf16",
}


def test_targets_that_a_model_lacks_are_passed_over() -> None:
    found = job(**BASE, peft="lora r=8 targets=q_proj+wqkv+v_proj")

    assert found.inputs.training.lora is not None
    assert found.inputs.training.lora.target_modules == ("q_proj", "v_proj")
    assert "targets that the model lacks are passed over, as PEFT does: wqkv" in found.assumptions


def test_offloaded_checkpoints_are_said_by_the_offload_and_by_unsloth() -> None:
    moved = job(**BASE, cpu_offload="optimizer + activation checkpoints", zero_stage_or_fsdp="ZeRO-3", dp=1)
    assert (moved.inputs.training.offload_checkpoints, moved.inputs.parallelism.offload) == (True, "optimizer")

    notebook = {**BASE, "framework": "unsloth + TRL", "source_family": "unsloth_trl_notebooks", "peft": "lora r=16"}
    assert job(**{**notebook, "recompute": "full (unsloth offloaded checkpoints)"}).inputs.training.offload_checkpoints
    default = job(**{**notebook, "recompute": ""})
    assert default.inputs.training.offload_checkpoints
    assert not default.is_fully_stated


@pytest.mark.parametrize(
    ("framework", "elements"), [("ms-swift (HF Trainer)", 4096**2), ("DeepSpeed", None), ("XTuner", None)]
)
def test_auto_buckets_are_those_of_hugging_faces_trainer(framework: str, elements: int | None) -> None:
    found = job(**{**BASE, "framework": framework}, zero_stage_or_fsdp="ZeRO-2", dp=4, peft="none")
    assert found.inputs.parallelism.reduce_bucket_size == elements


@pytest.mark.parametrize(
    ("changes", "prepared"),
    [
        ({"framework": "TRL"}, True),
        ({"framework": "TRL", "zero_stage_or_fsdp": "FSDP", "num_gpus": 2}, False),
        ({"framework": "unsloth + TRL"}, False),
        ({"framework": "axolotl"}, False),
    ],
)
def test_trl_prepares_a_quantized_base_that_is_not_sharded(changes: dict[str, object], prepared: bool) -> None:
    found = job(**{**BASE, **changes}, peft="qlora r=16 all-linear", param_dtype="nf4")
    assert found.inputs.training.lora is not None
    assert found.inputs.training.lora.prepared == prepared


@pytest.mark.parametrize(
    ("setting", "sharding", "peft", "losses"),
    [
        ("foak-fast-kernels", "none", "none", {"in_place_cross_entropy"}),
        ("foak-fast-kernels", "FSDP", "none", {"in_place_cross_entropy"}),
        ("accelerated-peft-bnb-foak-liger", "FSDP", "qlora (bnb nf4) r=16", {"fused_cross_entropy"}),
        ("none", "none", "none", set()),
    ],
)
def test_fused_kernels_of_fms(setting: str, sharding: str, peft: str, losses: set[str]) -> None:
    given = {**BASE, "source_family": "fms_acceleration", "framework": "HF SFTTrainer", "param_dtype": "bf16"}
    given |= {"zero_stage_or_fsdp": sharding, "peft": peft, "notes": f"framework_config={setting}; packed"}
    training = job(**given).inputs.training
    assert {name for name in ("fused_cross_entropy", "in_place_cross_entropy") if getattr(training, name)} == losses
    assert training.transformers_version == "4.46"


def test_checkpoints_of_fms_are_reentrant() -> None:
    given = {**BASE, "source_family": "fms_acceleration", "framework": "HF SFTTrainer", "recompute": "full"}
    assert job(**given, param_dtype="bf16").inputs.training.use_reentrant


def test_unpacked_runs_of_fms_accumulate_two_steps() -> None:
    given = {**BASE, "source_family": "fms_acceleration", "framework": "HF SFTTrainer", "seq_len": None}
    found = job({"tokens_per_s_per_gpu": 3000.0, "samples_per_s": 10.0}, **given, param_dtype="fp16")
    assert found.inputs.training.gradient_accumulation_steps == 2


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"pp": 5}, (7, 7, 6, 6, 6)),
        ({"pp": 2}, None),
        ({"framework": "nanotron", "pp": 5}, None),
        ({"framework": "Megatron-LM", "layers": 10, "pp": 4}, (2, 3, 3, 2)),
    ],
)
def test_layers_that_do_not_divide(changes: dict[str, object], stages: tuple[int, ...] | None) -> None:
    found = job(**{**BASE, **changes}, peft="none")
    assert found.inputs.parallelism.layers_per_stage == stages


def test_experts_are_whole_where_ranks_are_too_few_to_split_them() -> None:
    given = {**BASE, "model_name": "Qwen3-30B-A3B", "framework": "Megatron-SWIFT", "dp": 4, "tp": 2}
    assert job(**given, ep=8).inputs.parallelism.expert_tensor_parallel_size == 1
    assert job(**given, ep=4).inputs.parallelism.expert_tensor_parallel_size is None


def test_models_without_a_head_and_models_with_encoders() -> None:
    vector = job(**{**BASE, "model_name": "Qwen3-Embedding-8B"})
    assert vector.inputs.training.fused_cross_entropy
    seen = job(**{**BASE, "model_name": "Qwen/Qwen3-VL-30B-A3B-Instruct"})
    assert seen.inputs.architecture.sizes["num_experts"] == 128
    assert not seen.is_fully_stated


def test_quantized_experts_and_tiled_mlps_have_no_word() -> None:
    with pytest.raises(Unexpressed, match="quantized experts"):
        job(**{**BASE, "model_name": "Qwen3-30B-A3B"}, peft="qlora r=8", notes="quantized MoE experts")
    with pytest.raises(Unexpressed, match="tiles"):
        job(**BASE, source_family="arctic_alst", notes="tiled MLP yes")


def test_torchtunes_cumulative_table_steps_in_backward() -> None:
    given = {**BASE, "source_family": "torchtune", "framework": "torchtune", "peft": "none"}
    rest = "; cumulative: each row adds to previous"
    assert job(**given, notes=f"+ optimizer step in backward{rest}").inputs.training.optimizer_in_backward
    assert not job(**given, notes=f"+ Compile{rest}").inputs.training.optimizer_in_backward


def test_graph_trainer_compiles_the_whole_step() -> None:
    found = job(**{**BASE, "framework": "torchtitan"}, source_family="torchtitan", notes="GraphTrainer full recompute")
    training = found.inputs.training
    assert (training.compile, training.fused_cross_entropy, found.is_fully_stated) == (True, True, False)


def test_a_model_published_elsewhere_has_its_parameters() -> None:
    found = models.known("ZhipuAI/GLM-4.5-Air")
    assert found is not None
    assert round(found.parameters / 1e9) == 107
