import re
from typing import Any

import pytest

from app import catalog
from app.errors import InvalidInput
from app.planning.recipe import resolve
from app.planning.specs import Parallelism, Training

LLAMA, MIXTRAL, T5 = "meta-llama/Llama-3.1-8B", "mistralai/Mixtral-8x7B-v0.1", "google-t5/t5-base"


def asked(model: str, training: dict[str, Any], parallelism: dict[str, Any], gpu: str | None = None) -> None:
    known = catalog.load()
    resolve(
        Training.model_validate(training),
        Parallelism.model_validate(parallelism),
        known.model(model).architecture,
        None if gpu is None else known.gpu(gpu),
    )


@pytest.mark.parametrize(
    ("model", "training", "parallelism", "pointer", "words"),
    [
        (LLAMA, {"galore_rank": 64}, {}, "/training/galore_rank", "galore-adamw"),
        (
            LLAMA,
            {"method": "qlora", "lora": {"base_format": "bf16"}},
            {},
            "/training/lora/base_format",
            "send method lora",
        ),
        (
            LLAMA,
            {"method": "lora", "lora": {"modules_to_save": ["embed_tokens", "lmhead"]}},
            {},
            "/training/lora/modules_to_save/1",
            "unknown module 'lmhead'; nearest: lm_head",
        ),
        (LLAMA, {"use_reentrant": True}, {}, "/training/use_reentrant", "set recompute: full"),
        (LLAMA, {"frozen_layers": 32}, {}, "/training/frozen_layers", "has 32 layers"),
        (LLAMA, {"expert_load_percent": 150}, {}, "/training/expert_load_percent", "no experts"),
        (
            LLAMA,
            {"framework": "megatron", "optimizer_in_backward": True},
            {},
            "/training/optimizer_in_backward",
            "megatron steps over whole buffers",
        ),
        (
            LLAMA,
            {"optimizer_in_backward": True, "global_batch_size": 8},
            {},
            "/training/optimizer_in_backward",
            "over 8 micro batches",
        ),
        (
            LLAMA,
            {"optimizer": "lomo", "gradient_accumulation_steps": 2},
            {},
            "/training/optimizer",
            "over 2 micro batches",
        ),
        (LLAMA, {"recompute_layers": 4}, {}, "/training/recompute_layers", "recompute: full"),
        (LLAMA, {"recompute": "full", "recompute_layers": 33}, {}, "/training/recompute_layers", "has 32 layers"),
        (
            LLAMA,
            {"recompute": "full", "recompute_modules": ["mlp"]},
            {},
            "/training/recompute_modules",
            "recompute: selective",
        ),
        (
            LLAMA,
            {"recompute": "selective", "recompute_modules": ["mlp", "moe_act"]},
            {},
            "/training/recompute_modules/1",
            "no experts",
        ),
        (
            LLAMA,
            {},
            {"data_parallel_size": 8, "zero_stage": 3, "reduce_bucket_size": 1000},
            "/parallelism/reduce_bucket_size",
            "DeepSpeed's",
        ),
        (
            LLAMA,
            {},
            {"data_parallel_size": 8, "sharding_group_size": 4},
            "/parallelism/sharding_group_size",
            "shards nothing",
        ),
        (
            MIXTRAL,
            {},
            {"data_parallel_size": 3, "expert_tensor_parallel_size": 3},
            "/parallelism/expert_tensor_parallel_size",
            "does not divide the experts' width 14336",
        ),
        (
            LLAMA,
            {"framework": "megatron"},
            {"pipeline_schedule": "zb-h2"},
            "/parallelism/pipeline_schedule",
            "needs pipeline_parallel_size above 1",
        ),
        (
            LLAMA,
            {"framework": "torchtitan"},
            {"pipeline_parallel_size": 32, "pipeline_schedule": "zb-v"},
            "/parallelism/pipeline_parallel_size",
            "at most 16 stages",
        ),
        (
            LLAMA,
            {"framework": "megatron"},
            {"pipeline_parallel_size": 4, "layers_per_stage": [8, 8, 8, 7]},
            "/parallelism/layers_per_stage",
            "counts 31 layers, and the model has 32",
        ),
        (
            LLAMA,
            {"framework": "torchtitan"},
            {"pipeline_parallel_size": 2, "layers_per_stage": [16, 16], "pipeline_schedule": "v-half"},
            "/parallelism/layers_per_stage",
            "both ends of the model",
        ),
        (
            T5,
            {"framework": "megatron"},
            {"context_parallel_size": 2},
            "/parallelism/context_parallel_size",
            "t5 models",
        ),
        (
            T5,
            {"framework": "nanotron"},
            {"pipeline_parallel_size": 2},
            "/training/framework",
            "t5 is another kind of model",
        ),
        (
            LLAMA,
            {"framework": "nanotron", "fused_cross_entropy": True},
            {},
            "/training/fused_cross_entropy",
            "its own",
        ),
        (
            LLAMA,
            {"framework": "nanotron"},
            {"pipeline_parallel_size": 4, "pipeline_schedule": "zb-v"},
            "/parallelism/pipeline_schedule",
            "1f1b and gpipe",
        ),
        (
            LLAMA,
            {"framework": "nanotron"},
            {"pipeline_parallel_size": 4, "virtual_pipeline_size": 2},
            "/parallelism/virtual_pipeline_size",
            "no virtual stages",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(
    model: str, training: dict[str, Any], parallelism: dict[str, Any], pointer: str, words: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        asked(model, training, parallelism)
    assert refused.value.errors[0].pointer == pointer
    assert words in refused.value.detail


@pytest.mark.parametrize(
    ("framework", "zero_stage", "offload", "words"),
    [
        ("transformers", 0, "optimizer", None),
        ("transformers", 0, "optimizer+parameters", "set zero_stage 2 or 3, or send optimizer"),
        ("transformers", 3, "optimizer+parameters", None),
        ("deepspeed", 0, "optimizer", "set zero_stage 1, 2 or 3"),
        ("deepspeed", 2, "optimizer", None),
        ("deepspeed", 2, "optimizer+parameters", "with ZeRO-3 only"),
        ("deepspeed", 3, "optimizer+parameters", None),
        ("megatron", 1, "optimizer", None),
        ("megatron", 1, "optimizer+parameters", "the optimizer only"),
        ("nanotron", 1, "optimizer", "offloads nothing"),
        ("torchtitan", 3, "optimizer", "send optimizer+parameters"),
        ("torchtitan", 3, "optimizer+parameters", None),
    ],
)
def test_what_a_framework_can_offload(framework: str, zero_stage: int, offload: str, words: str | None) -> None:
    layout = {"data_parallel_size": 8, "zero_stage": zero_stage, "offload": offload}
    if words is None:
        asked(LLAMA, {"framework": framework}, layout)
        return
    with pytest.raises(InvalidInput, match=re.escape(words)) as refused:
        asked(LLAMA, {"framework": framework}, layout)
    assert refused.value.errors[0].pointer == "/parallelism/offload"


def test_fp8_needs_fp8_units() -> None:
    training = {"framework": "megatron", "precision": "fp8-mixed"}
    asked(LLAMA, training, {}, "h100-sxm-80gb")
    asked(LLAMA, training, {}, "rtx-4090")
    with pytest.raises(InvalidInput, match=r"compute capability 8\.9: a100-sxm-80gb has 8\.0; use bf16-mixed"):
        asked(LLAMA, training, {}, "a100-sxm-80gb")
