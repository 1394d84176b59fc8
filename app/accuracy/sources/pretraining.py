"""Pre-training runs under Megatron's descendants: BLOOM's chronicles, FlagPerf, InternEvo, MLPerf, Galvatron, and the
recipes of Megatron-Bridge.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from app.accuracy import models
from app.accuracy.jobs import Draft, Reading, Unexpressed
from app.accuracy.rows import MeasuredRow
from app.planning.families.decoder import DecoderLayout


def bigscience(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """Megatron-DeepSpeed's GPT in 2021: fused softmax, no flash attention, the vocabulary of GPT-2; memory as the
    driver shows it.
    """
    draft.training.setdefault("attention", "eager")
    if row.measured_metric == "peak_mem_unspecified":
        draft.reading = Reading("unspecified", "driver")
    if row.tp is None and "TP=4 in all Megatron entries" in row.notes and "megatron" in row.framework.lower():
        draft.parallelism["tensor_parallel_size"] = 4


def flagperf(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """FlagPerf's cases: Paddle prints every pipeline stage; Megatron's scripts leave embeddings tied."""
    stage = re.search(r"pipeline stage group (\d+) of", row.notes)
    if stage is not None:
        draft.reading = replace(draft.reading, stage=int(stage[1]))
    if "so tied" in row.notes:
        models.read(row, draft)
        _tie(draft)
        draft.assume("tied embeddings, as the launch script leaves Megatron's default")
    if row.framework == "PaddleNLP" and draft.parallelism.get("zero_stage") == 2:
        draft.parallelism["zero_stage"] = 1
        draft.assume("ZeRO-2 under a Megatron-like framework is counted as ZeRO-1", decisive=True)
    if "launch script at HEAD does not pass it" in row.notes and not row.recompute:
        draft.training["recompute"] = "none"
        draft.assume("recompute: none, as in the launch script", decisive=True)


def internevo(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """InternEvo's and XTuner's tables, where FSDP is PyTorch's own."""
    if "vpp: >1 (degree not stated)" in row.notes:
        raise Unexpressed("the number of virtual pipeline stages is not stated")
    if "FSDP" in row.zero_stage_or_fsdp and (row.tp or 1) == 1 and (row.pp or 1) == 1:
        draft.training["framework"] = "transformers"


def mlperf(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """NeMo's submissions: adapters beside attention's projections; the logged figure is PyTorch's allocated peak."""
    if row.measured_metric == "peak_mem_unspecified":
        draft.reading = Reading("unspecified", "allocated")
    if row.peft.startswith("lora"):
        rank = re.search(r"r=(\d+)", row.peft)
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        draft.training["method"] = "lora"
        draft.training["lora"] = {"rank": int(rank[1]) if rank else 16, "target_modules": names}
        draft.parallelism.setdefault("zero_stage", 1)


def galvatron(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """Galvatron's profiler: a few layers, one micro batch, rank 0; states with sharded data parallelism."""
    draft.parallelism["zero_stage"] = 3 if (row.dp or 1) > 1 else 0
    draft.assume("data parallel type: ZeRO-3, the profiler's default", decisive=True)
    if row.micro_batch_size is None and row.global_batch_size is not None:
        draft.training["micro_batch_size"] = max(1, row.global_batch_size // (row.dp or 1))
    if "embedding/head not tensor parallel" in row.notes and (row.tp or 1) > 1:
        draft.assume("embedding and head are split like the rest", decisive=True)
    if re.search(r"_c_", row.notes):
        draft.training["recompute"] = "full"
    if row.measured_metric == "peak_allocated":
        draft.reading = replace(draft.reading, stage=0)
    if row.measured_metric == "activation_after_forward":
        raise Unexpressed("what a forward pass alone keeps is no figure of an estimate, which has those of the peak")


def recipes(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """Megatron-Bridge's and NeMo's published recipes: the distributed optimizer, wide adapters."""
    if draft.training["framework"] != "megatron":
        return
    draft.parallelism.setdefault("zero_stage", 1)
    if re.search(r"nvfp4", row.compute_dtype.lower()):
        raise Unexpressed("computation in nvfp4 has no word in a request")
    if row.peft.startswith("lora"):
        draft.training["method"] = "lora"
        draft.training["lora"] = {"rank": 32, "target_modules": "all-linear"}
        draft.assume("LoRA rank: 32, Megatron-Bridge's default")


def _tie(draft: Draft) -> None:
    model = draft.architecture
    if model is not None and isinstance(model.shapes.layout, DecoderLayout):
        layout = replace(model.shapes.layout, tied=True)
        draft.architecture = replace(model, shapes=replace(model.shapes, layout=layout))
