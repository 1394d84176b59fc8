"""What the free text of sources means."""

from typing import Any

import pytest

from app.accuracy import models, words
from app.accuracy.cards import gpu_of


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("zero1", 1),
        ("ZeRO-3", 3),
        ("zero3_offload", 3),
        ("distributed optimizer (ZeRO-1)", 1),
        ("no FSDP (distributed optimizer presumed)", 1),
        ("FSDP2 full shard", 3),
        ("Megatron FSDP", 3),
        ("none (single GPU)", 0),
        ("DDP", 0),
        ("ZeRO-1 (sharding degree 1)", 0),
        ("ZeRO-2 / ZeRO-3", None),
        ("DeepSpeed (stage not stated in table)", None),
        ("", None),
    ],
)
def test_sharding(text: str, stage: int | None) -> None:
    assert words.zero_stage(text) == stage


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("none (LLM)", {"recompute": "none"}),
        ("full (uniform 1)", {"recompute": "full"}),
        (
            "selective (moe_act, layernorm)",
            {"recompute": "selective", "recompute_modules": ("moe_act", "layernorm")},
        ),
        ("selective (op)", {"recompute": "selective"}),
        ("", {}),
    ],
)
def test_recomputation(text: str, fields: dict[str, Any]) -> None:
    assert words.recompute(text) == fields


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("AdamW (HF default)", "adamw"),
        ("adam", "adam"),
        ("adamw_torch_8bit", "adamw-8bit-torchao"),
        ("adamw_bnb_8bit", "adamw-8bit"),
        ("paged_adamw_8bit", "paged-adamw-8bit"),
        ("Muon (2D weights) + AdamW", "muon"),
        ("lora-fa", None),
    ],
)
def test_optimizers(text: str, name: str | None) -> None:
    assert words.optimizer(text) == name


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("none", {}),
        (
            "qlora (bnb nf4) r=16 targets=q_proj+v_proj",
            {"method": "qlora", "lora": {"rank": 16, "target_modules": ("q_proj", "v_proj")}},
        ),
        ("lora r=8 target all-linear", {"method": "lora", "lora": {"rank": 8, "target_modules": "all-linear"}}),
        (
            "lora r=128 incl. embed_tokens, lm_head",
            {"method": "lora", "lora": {"rank": 128, "modules_to_save": ("embed_tokens", "lm_head")}},
        ),
        ("vera r=256 targets q_proj", {"method": "lora", "lora": {"rank": 256, "target_modules": ("q_proj",)}}),
        ("osf targets q_proj", None),
    ],
)
def test_adapters(text: str, fields: dict[str, Any] | None) -> None:
    assert words.lora(text) == fields


@pytest.mark.parametrize(
    ("notes", "is_fused"),
    [
        ("liger yes; tiled MLP yes", True),
        ("liger no; tiled MLP no", False),
        ("cut cross-entropy plugin", True),
        ("cross_entropy_loss_fusion=true", True),
        ('"peak memory", without Liger', False),
        ("chunked cross entropy loss (config not printed)", True),
        ("baseline cross-entropy", False),
        ("fused ops and kernels (fast RoPE, RMSNorm, cross-entropy, LoRA fused ops)", False),
    ],
)
def test_fused_losses(notes: str, is_fused: bool) -> None:
    assert words.fused_cross_entropy(notes) is is_fused


@pytest.mark.parametrize(
    ("notes", "are_used"),
    [
        ("use_liger_kernel=true; packing", True),
        ("Liger kernels (fused CE); one dense sequence", True),
        ("liger yes; tiled MLP no", True),
        ('"peak memory", without Liger', False),
        ("use_liger_kernel=false", False),
        ("liger fused linear cross-entropy", False),
        ("cut cross-entropy plugin", False),
    ],
)
def test_all_of_ligers_kernels(notes: str, are_used: bool) -> None:
    assert words.liger_kernels(notes) is are_used


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("TheBloke/Mistral-7B-v0.1-GPTQ", "mistralai/Mistral-7B-v0.1"),
        ("unsloth/Qwen2.5-Coder-7B-Instruct-bnb-4bit", "Qwen/Qwen2.5-Coder-7B"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B"),
        ("LLaMA2-7B", "meta-llama/Llama-2-7b-hf"),
        ("7B (llama2-7B-hf named for PPO)", "meta-llama/Llama-2-7b-hf"),
        ("llama3-70b truncated to 12 layers", "meta-llama/Meta-Llama-3-70B"),
        ("DeepSeek-V3 671B", "deepseek-ai/DeepSeek-V3"),
        ("DeepSeek-V3 16B (torchtitan flavor)", "deepseek-ai/DeepSeek-V2-Lite"),
        ("bert-large-uncased (sequence classification)", "google-bert/bert-large-uncased"),
        ("mistralai/Devstral-Small-2507", "mistralai/Mistral-Small-24B-Base-2501"),
    ],
)
def test_models_are_found_whatever_stands_around_their_name(name: str, id: str) -> None:
    found = models.known(name)

    assert found is not None
    assert found.name == id


def test_an_unknown_model_is_not_taken_for_a_known_one() -> None:
    assert models.known("Qwen 7B") is None
    assert models.known("modded GPT-2 small record") is None


@pytest.mark.parametrize(
    ("model", "memory_gib", "key"),
    [
        ("H100 80GB HBM3", 80, "h100-sxm-80gb"),
        ("H100 (96GB HBM2e, 500W)", 95, "h100-sxm-96gb"),
        ("A100-SXM4-40GB", 39.557, "a100-sxm-40gb"),
        ("Tesla T4", 14.741, "t4"),
        ("RTX 4070Ti SUPER", 16, "rtx-4070-ti-super"),
        ("GeForce RTX 4090", 24, "rtx-4090"),
        ("A10G (g5.48xlarge)", 24, "a10g"),
        ("80GB GPU (model not stated)", 80, None),
        ("", None, None),
    ],
)
def test_cards(model: str, memory_gib: float | None, key: str | None) -> None:
    found = gpu_of(model, memory_gib)

    assert (None if found is None else found.key) == key


@pytest.mark.parametrize(
    ("notes", "is_compiled"),
    [("torch.compile; 100 steps", True), ("no compile", False), ("compile of the loss only", False), ("", False)],
)
def test_compilation_of_the_model(notes: str, is_compiled: bool) -> None:
    assert words.compiled(notes) == is_compiled


@pytest.mark.parametrize(
    ("text", "kept", "moved"),
    [
        ("optimizer + activation checkpoints", "optimizer", True),
        ("params + optimizer + activation checkpoints", "optimizer+parameters", True),
        ("activations (all)", "none", True),
        ("activations of 20 layers", None, False),
        ("activations (24 layers)", None, False),
        ("optimizer", "optimizer", False),
    ],
)
def test_offload_of_states_and_of_activations(text: str, kept: str | None, moved: bool) -> None:
    assert (words.offload(text), words.offloads_checkpoints(text)) == (kept, moved)


def test_megatrons_joint_layers_are_targets() -> None:
    assert words.lora("lora r=32 target linear_qkv") == {
        "method": "lora",
        "lora": {"rank": 32, "target_modules": ("q_proj", "k_proj", "v_proj")},
    }
