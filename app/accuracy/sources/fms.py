"""IBM's fms-acceleration benchmarks: Hugging Face's SFTTrainer on A100 with FSDP, adapters and fused kernels."""

from collections.abc import Mapping
from dataclasses import replace

from app.accuracy import words
from app.accuracy.jobs import Draft, Unexpressed
from app.accuracy.rows import MeasuredRow


def rule(row: MeasuredRow, draft: Draft, siblings: Mapping[str, float]) -> None:
    """nvidia-smi is the peak minus the first reading, which has no context in it yet. Unpacked runs print no length:
    the mean follows from their throughput. On one GPU, autocast runs over the 16-bit weights as they are loaded;
    accelerate makes FP32 ones of them only under FSDP. The bitsandbytes plugin quantizes twice; without its own
    preparation, PEFT's makes FP32 of what is not quantized. The fused kernels' loss writes over the logits, Liger's
    never has them. Checkpoints are those of transformers in 2024, re-entrant, and so is the loss, which shifts logits.
    """
    setting = words.notes_value(row.notes, "framework_config") or ""
    draft.training["fused_cross_entropy"] = "liger" in setting
    draft.training["in_place_cross_entropy"] = "foak" in setting and "liger" not in setting
    draft.training["transformers_version"] = "4.46"
    draft.training["use_reentrant"] = row.recompute == "full"
    if "bnb nf4" in row.peft:
        adapters = words.lora(row.peft) or {}
        adapters.setdefault("lora", {})["base_format"] = "nf4-double"
        if setting.startswith("baseline"):
            adapters["lora"]["prepared"] = True
        draft.training.update(adapters)
    if row.peft == "none" and row.zero_stage_or_fsdp == "none" and row.param_dtype in ("bf16", "fp16"):
        draft.training["precision"] = row.param_dtype
    if row.measured_metric == "nvidia_smi":
        draft.reading = replace(draft.reading, figure="driver")
    if row.seq_len is None:
        tokens, samples = siblings.get("tokens_per_s_per_gpu"), siblings.get("samples_per_s")
        if not tokens or not samples:
            raise Unexpressed("the sequence length is not stated, and does not follow from the throughput")
        draft.training["sequence_length"] = max(1, round(tokens * (row.num_gpus or 1) / samples))
        draft.assume("every sample is as long as the mean", decisive=True)
        if row.grad_accum is None and row.global_batch_size is None:
            draft.training["gradient_accumulation_steps"] = 2
            draft.assume("gradient accumulation: 2 steps, as the benchmark's scenarios for unpacked data have it")
