"""Fine-tuning on Hugging Face's code: Qwen's README, ms-swift, unsloth's notebooks, torchtune, ColossalChat, ALST, and
the documentation of transformers.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from app.accuracy import words
from app.accuracy.jobs import Draft, Reading, Unexpressed
from app.accuracy.rows import MeasuredRow


def qwen(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """Qwen's `finetune/*.sh`: LoRA on one GPU runs without DeepSpeed, Q-LoRA with ZeRO-2, full training with ZeRO-3,
    all with gradient checkpointing; `ds_config_zero2.json` reduces 2e8 elements at once. Adapters stand beside all
    linear layers; the embeddings trained with them are copies in the base's format, as PEFT made them before 0.12.
    Several GPUs print their sum.
    """
    if row.measured_metric == "total_mem_all_gpus":
        draft.reading = replace(draft.reading, gpus=row.num_gpus or 1)
    draft.training["recompute"] = "full"
    method = row.peft.lower()
    stage = 3 if method == "none" or "zero3" in method else 2 if "q-lora" in method or "multinode" in method else 0
    stated = re.search(r"zero-?3", row.zero_stage_or_fsdp.lower()) is not None and "no " not in row.zero_stage_or_fsdp
    if stage == 2:
        draft.parallelism["reduce_bucket_size"] = 200_000_000
    if not stated:
        draft.training["framework"] = "deepspeed" if stage else "transformers"
        draft.parallelism["zero_stage"] = stage
        draft.assume(f"ZeRO stage: {stage}, as the finetune script of this method has it")
    if method != "none":
        _all_linear(row, draft, rank=64)
        if "(emb)" in method:
            draft.training["lora"] |= {"modules_to_save": ("embed_tokens", "lm_head"), "adapter_format": "bf16"}


def swift(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """ms-swift: adapters beside all linear layers by default; preference training holds more than one model."""
    kind = re.search(r"rlhf_type=(\w+)", row.notes)
    if kind is not None and (row.peft == "none" or kind[1] in ("gkd", "ppo", "grpo")):
        raise Unexpressed(f"{kind[1].upper()} holds a reference or teacher model beside the trained one")
    if kind is not None:
        _pairs(row, draft)
    if "device_map" in row.zero_stage_or_fsdp:
        raise Unexpressed("layers spread over GPUs one after the other, without a pipeline, have no word in a request")
    if row.peft.startswith(("lora", "qlora")) and "target" not in row.peft:
        _all_linear(row, draft, rank=8)


def unsloth(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """unsloth's notebooks: adapters beside all linear layers; its loss never holds all logits; GPUs before Ampere
    compute in fp16, over FP32 weights where these are trained; checkpoints wait in host memory by default.
    """
    if "unsloth" not in row.framework.lower():
        return
    draft.training["fused_cross_entropy"] = True
    draft.training["attention"] = "sdpa"
    if not row.recompute:
        draft.training |= {"recompute": "full", "offload_checkpoints": True}
        draft.assume("recompute: full with checkpoints in host memory, unsloth's default", decisive=True)
    if not row.compute_dtype:
        half = "fp16" if "T4" in row.gpu_model else "bf16"
        draft.training["precision"] = half if row.peft == "none" and half == "bf16" else f"{half}-mixed"
    if row.peft.startswith(("lora", "qlora")):
        _all_linear(row, draft, rank=16)
        if "load_in_4bit True" in row.notes:
            draft.training["method"] = "qlora"


def torchtune(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """torchtune's recipes: everything in the format of `dtype`, adapters too; FSDP2; fused AdamW; a chunked loss. Those
    for one GPU checkpoint activations, and train whole models with a paged 8-bit AdamW that steps in backward. NF4 has
    quantized scales. The cumulative table adds one option per row.
    """
    notes = row.notes.lower()
    if "fsdp" in row.zero_stage_or_fsdp.lower():
        draft.training["framework"] = "torchtitan"
    if row.compute_dtype == "bf16":
        draft.training["precision"] = "bf16"
    draft.training["optimizer_implementation"] = "fused"
    if row.peft.startswith(("lora", "qlora")):
        draft.training |= words.lora(row.peft) or {}
        adapters = draft.training["lora"]
        adapters.setdefault("rank", 8)
        adapters["adapter_format"] = "bf16"
        if "target_modules" not in adapters:
            every = "all layers" in row.peft
            adapters["target_modules"] = "all-linear" if every else ("q_proj", "v_proj", "o_proj")
        if row.peft.startswith("qlora"):
            adapters["base_format"] = "nf4-double"
    if "recipe defaults" in notes or "_single_device" in notes:
        draft.training["fused_cross_entropy"] = True
        if not row.recompute:
            draft.training["recompute"] = "full"
            draft.assume("recompute: full, the default of the recipe", decisive=True)
        if not row.optimizer and row.peft == "none" and row.num_gpus == 1:
            draft.training["optimizer"] = "paged-adamw-8bit"
            draft.training["optimizer_in_backward"] = (row.grad_accum or 1) == 1
            draft.assume("paged 8-bit AdamW that steps in backward, the default of the recipe", decisive=True)
    if "cumulative: each row adds" in notes:
        added = notes.partition(";")[0]
        steps = ("baseline", "packed", "compile", "chunked", "checkpointing")
        done = next((number for number, step in enumerate(steps) if step in added), len(steps))
        draft.training["compile"] = done >= steps.index("compile")
        draft.training["fused_cross_entropy"] = done >= steps.index("chunked")
        if re.search(r"optimizer step in backward|activation offloading|8-bit", added) and row.peft == "none":
            draft.training["optimizer_in_backward"] = True
        if done == 0:
            raise Unexpressed("the length of samples before packing is not stated")


def colossalai(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """ColossalChat's tables: SFT as it is, pairs of answers twice as long, no job with more than one model."""
    if re.search(r"^(PPO|GRPO)\b|\(PPO:|reference model", f"{row.notes} {row.model_name}"):
        raise Unexpressed("PPO, GRPO, DPO and KTO hold further models beside the trained one")
    if re.search(r"SimPO|ORPO|DPO", row.notes):
        _pairs(row, draft)
    if row.peft.startswith("lora"):
        _all_linear(row, draft, rank=8)


def arctic(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """ArcticTraining's ALST: Ulysses sequence parallelism over all GPUs, with parts of it in host memory."""
    if "tiled MLP yes" in row.notes:
        raise Unexpressed("an MLP computed in tiles of tokens has no word in a request")
    if row.sp.isdigit() and row.num_gpus:
        draft.parallelism["context_parallel_size"] = int(row.sp)


def hf_docs(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """transformers' performance guides; one row is an idle GPU with kernels loaded."""
    if row.model_name == "(none)" or "no training" in row.notes:
        raise Unexpressed("no training step: an idle GPU, or only weights")
    if "sequence classification" in row.model_name:
        draft.assume("counted with the masked-language head in place of the classification head")
    if "adamw" in row.optimizer.lower() and "8-bit" in row.optimizer_dtype:
        draft.training["optimizer"] = "adamw-8bit"


def deepspeed(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """DeepSpeed's blogs and guides: the model states of one commit message are those after initialization."""
    if row.measured_metric == "model_states" and "deepspeed.initialize" in row.notes:
        draft.reading = Reading("pieces", "weights")


def _all_linear(row: MeasuredRow, draft: Draft, *, rank: int) -> None:
    stated = re.search(r"r=(\d+)", row.peft)
    quantized = bool(re.search(r"q-?lora", row.peft.lower()))
    draft.training["method"] = "qlora" if quantized else "lora"
    draft.training["lora"] = {"rank": int(stated[1]) if stated else rank, "target_modules": "all-linear"}
    saved = tuple(name for name in ("embed_tokens", "lm_head") if name in row.peft)
    if saved:
        draft.training["lora"]["modules_to_save"] = saved


def _pairs(row: MeasuredRow, draft: Draft) -> None:
    if row.micro_batch_size is not None:
        draft.training["micro_batch_size"] = 2 * row.micro_batch_size
        draft.assume("a chosen and a rejected answer for each sample: twice the micro batch")
