"""A published measurement as a job, by the columns that every source shares.

Rules that one source needs stand in `app.accuracy.sources`, by the source's family; they change the draft made here.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from app.accuracy import models, words
from app.accuracy.cards import gpu_of
from app.accuracy.jobs import Draft, Job, Reading, Unexpressed
from app.accuracy.rows import MeasuredRow
from app.planning import liger
from app.planning.lora import EXPERT_TARGETS
from app.units import GIB, MIB

Siblings = Mapping[str, float]
"""All metrics of a row's configuration, by name."""

UNITS = {
    "bytes": 1,
    "MiB": MIB,
    "GiB": GIB,
    "MB(unclear)": MIB,
    "GB(unclear)": GIB,
    "GB (1e9)": 10**9,
    "MB": 10**6,
    "GB": 10**9,
}
"""Bytes per unit; frameworks that print "GB" divide by 1024³, so that is how an unclear unit is read."""

READINGS: Mapping[str, Reading] = {
    "peak_allocated": Reading("allocated", "allocated"),
    "peak_active": Reading("allocated", "allocated"),
    "peak_allocated_last_stage": Reading("allocated", "allocated", stage=-1),
    "peak_reserved": Reading("reserved", "reserved"),
    "nvidia_smi": Reading("nvidia-smi", "driver"),
    "peak_mem_unspecified": Reading("unspecified", "reserved"),
    "total_mem_all_gpus": Reading("unspecified", "reserved"),
    "allocated_after_step": Reading("between steps", "between_steps"),
    "allocated_after_train": Reading("between steps", "between_steps"),
    "allocated_after_init": Reading("pieces", "weights"),
    "reserved_after_init": Reading("pieces", "weights"),
    "reserved_after_load": Reading("pieces", "weights"),
    "model_states": Reading("pieces", "states"),
    "activation_after_forward": Reading("pieces", "activations"),
    "oom": Reading("verdict", "none"),
    "oom_or_crash": Reading("verdict", "none"),
    "oom_fragmentation": Reading("verdict", "none"),
    "fits": Reading("verdict", "none"),
    "max_seq_len_fits": Reading("verdict", "none"),
    "max_batch_fits": Reading("verdict", "none"),
}
"""Metrics about memory. A peak whose counter is not named is most likely what PyTorch has reserved, which is what most
frameworks print; a source's own rules say otherwise where its code does.
"""

NO_RUN = frozenset(
    {"allocated_after_init", "reserved_after_init", "reserved_after_load", "model_states", "activation_after_forward"}
)
"""Metrics of less than a whole step: they say nothing about whether the step fits."""

FULL = 0.9
"""From which part of its memory in use on a failed run leaves no doubt about why it failed."""

Outcome = Literal["finished", "out of memory", "failed"] | None

THROUGHPUT = "throughput: not estimated yet"

_FRAMEWORKS = (
    (r"nanotron", "nanotron", ""),
    (r"maxtext|paxml|jax", "", "JAX programs are not estimated"),
    (r"liger-kernel benchmark|micro-benchmark", "", "one operation in isolation, not a training step"),
    (r"torchtitan", "torchtitan", ""),
    (r"megatron.deepspeed|megatron \+ deepspeed", "megatron", "Megatron-DeepSpeed is counted as Megatron"),
    (r"megatron|nemo|simumax|galvatron", "megatron", ""),
    (r"libai|paddlenlp|flagscale|internevo", "megatron", "the framework is counted as Megatron"),
    (r"colossal", "deepspeed", "ColossalAI is counted as DeepSpeed"),
    (r"arctic|deepspeed|xtuner", "deepspeed", ""),
)

_CHECKPOINTING_FRAMEWORKS = r"llama-factory|unsloth|ms-swift|axolotl|xtuner|llama-recipes|^trl$"
"""Fine-tuning frameworks whose default is gradient checkpointing (TRL's `SFTConfig` too)."""

_HF_TRAINERS = r"llama-factory|ms-swift|axolotl|transformers|trainer|\btrl\b|peft|accelerate|^hf\b|easycontext"
"""Frameworks that start DeepSpeed through Hugging Face's Trainer or accelerate."""

_HEADLESS = re.compile(r"embedding|reranker|sentence|\bgte-|\bbge-|minilm")
"""Models that end in a vector or a score."""

_DATA_OF_LENGTH = re.compile(r"seq_len is (the )?max|real samples|variable length|length-bucketed|short sequences")


def job_of(
    row: MeasuredRow, siblings: Siblings, rules: Mapping[str, Callable[[MeasuredRow, Draft, Siblings], None]]
) -> Job:
    """The job of one row. Raises Unexpressed with the reason where there is none."""
    reading = READINGS.get(row.measured_metric)
    if reading is None:
        raise Unexpressed(THROUGHPUT)
    draft = Draft(reading)
    _framework(row, draft)
    draft.gpu = gpu_of(row.gpu_model, row.gpu_mem_gib)
    if row.source_family in rules:
        rules[row.source_family](row, draft, siblings)
    if draft.architecture is None:
        models.read(row, draft)
    _layout(row, draft)
    _sizes(row, draft)
    _training(row, draft)
    _precision(row, draft)
    _offloaded(draft)
    _buckets(row, draft)
    return draft.job()


def measured_bytes(row: MeasuredRow) -> int | None:
    """What was measured in bytes; None for a flag. Raises Unexpressed for an unknown unit."""
    if READINGS[row.measured_metric].kind == "verdict":
        return None
    if row.unit not in UNITS:
        raise Unexpressed(f"unknown unit: {row.unit}")
    return round(row.value * UNITS[row.unit])


def outcome_of(row: MeasuredRow) -> Outcome:
    """Whether the run of a row finished, found no memory, or failed for a reason that is not certain; None where the
    row does not say.

    A failed run whose device was all but full has run out of memory; one of which the source also has a finished
    run, or figures of one, has not failed for what its request says.
    """
    metric = row.measured_metric
    if metric in ("oom", "oom_fragmentation"):
        return "out of memory"
    if metric == "oom_or_crash":
        if re.search(r"also has a successful run|carries metrics", row.notes):
            return None
        held = re.search(r"nvidia-smi column at that point: ([\d.]+) MiB", row.notes)
        full = held is not None and float(held[1]) * MIB >= FULL * (row.gpu_mem_gib or math.inf) * GIB
        return "out of memory" if full else "failed"
    return None if metric in NO_RUN else "finished"


def _framework(row: MeasuredRow, draft: Draft) -> None:
    name = row.framework.lower()
    for pattern, framework, sentence in _FRAMEWORKS:
        if re.search(pattern, name):
            if not framework:
                raise Unexpressed(sentence)
            if sentence:
                draft.assume(sentence)
            draft.training["framework"] = framework
            break
    else:
        draft.training["framework"] = "transformers"
    sharding = row.zero_stage_or_fsdp or words.assumed(row.notes).get("zero_stage_or_fsdp", "")
    if sharding != row.zero_stage_or_fsdp:
        draft.assume(f"sharding: {sharding}")
    stage = words.zero_stage(sharding)
    if draft.training["framework"] == "transformers" and re.search(r"zero.?[123]", row.zero_stage_or_fsdp.lower()):
        draft.training["framework"] = "deepspeed"
    if draft.training["framework"] == "deepspeed" and not stage:
        if stage == 0 and not row.zero_stage_or_fsdp.lower().startswith("zero"):
            draft.training["framework"] = "transformers"
        elif stage is None:
            draft.assume("ZeRO stage: 3", decisive=True)
            draft.parallelism["zero_stage"] = 3
    if stage is not None:
        draft.parallelism.setdefault("zero_stage", stage)


def _layout(row: MeasuredRow, draft: Draft) -> None:
    layout = draft.parallelism
    for name, value in (
        ("tensor_parallel_size", row.tp),
        ("pipeline_parallel_size", row.pp),
        ("context_parallel_size", row.cp),
        ("expert_parallel_size", row.ep),
        ("virtual_pipeline_size", row.vpp),
    ):
        if value is not None:
            layout.setdefault(name, value)
    if row.sp.isdigit():
        layout.setdefault("context_parallel_size", int(row.sp))
    split = 1
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "context_parallel_size"):
        split *= layout.get(name, 1)
    if "data_parallel_size" not in layout:
        if row.dp is not None:
            layout["data_parallel_size"] = row.dp
        elif row.num_gpus is not None:
            layout["data_parallel_size"] = max(1, row.num_gpus // split)
        else:
            layout["data_parallel_size"] = 1
            draft.assume("GPUs: as few as the layout needs", decisive=layout.get("zero_stage", 0) > 0)
    _spread_layers(row, draft)
    _split_experts(draft)
    if row.sp == "true" and layout.get("tensor_parallel_size", 1) > 1:
        layout.setdefault("sequence_parallel", True)
    degree = words.shards(row.zero_stage_or_fsdp)
    if degree is not None and 1 < degree < layout["data_parallel_size"]:
        layout.setdefault("sharding_group_size", degree)
    offload = words.offload(row.cpu_offload)
    if offload is None:
        raise Unexpressed(f"offload that has no word in a request: {row.cpu_offload}")
    layout.setdefault("offload", offload)
    if words.offloads_checkpoints(row.cpu_offload) or re.search(r"(?:^|; )activation offloading(?:;|$)", row.notes):
        draft.training.setdefault("offload_checkpoints", True)


def _spread_layers(row: MeasuredRow, draft: Draft) -> None:
    """Where layers do not divide: Megatron's `account_for_embedding_in_pipeline_split` and its like for the loss where
    they divide so, else one layer more on each of the first stages.
    """
    model = draft.architecture
    layers = row.layers or (0 if model is None else model.sizes.get("num_hidden_layers", 0))
    stages, chunks = draft.parallelism.get("pipeline_parallel_size", 1), row.vpp or 1
    whole, layout = stages * chunks, draft.parallelism
    if layers % whole == 0 or "layers_per_stage" in layout or draft.training["framework"] == "nanotron":
        return
    if draft.training["framework"] == "megatron" and (layers + 2) % whole == 0:
        each = (layers + 2) // stages
        layout["layers_per_stage"] = (each - 1, *[each] * (stages - 2), each - 1)
        draft.assume("embedding and loss count as a layer each in the pipeline split", decisive=True)
    elif chunks == 1 and layers > stages:
        more = layers % stages
        layout["layers_per_stage"] = tuple(layers // stages + (stage < more) for stage in range(stages))
        draft.assume("layers that do not divide: one more on each of the first stages", decisive=True)


def _split_experts(draft: Draft) -> None:
    """Megatron splits experts by tensor parallelism too, unless told otherwise; a layout that ran and has too few
    ranks for that was told.
    """
    layout = draft.parallelism
    experts, tensor = layout.get("expert_parallel_size", 1), layout.get("tensor_parallel_size", 1)
    ranks = layout["data_parallel_size"] * layout.get("context_parallel_size", 1) * tensor
    if experts > 1 and ranks % (experts * tensor) and "expert_tensor_parallel_size" not in layout:
        layout["expert_tensor_parallel_size"] = 1
        draft.assume("experts are not split by tensor parallelism: there are too few ranks")


def _sizes(row: MeasuredRow, draft: Draft) -> None:
    training = draft.training
    needed = draft.reading.figure in ("allocated", "reserved", "driver", "driver_increase", "activations", "none")
    for name, value, metric, word in (
        ("micro_batch_size", row.micro_batch_size, "max_batch_fits", "micro batch size"),
        ("sequence_length", row.seq_len, "max_seq_len_fits", "sequence length"),
    ):
        if name in training:
            continue
        stated = int(row.value) if row.measured_metric == metric else value
        if stated is None and name == "sequence_length":
            stated = words.length_in_notes(row.notes)
            if stated is not None:
                draft.assume(f"sequence length: {stated}, as the notes say", decisive=True)
        if stated is None and needed:
            raise Unexpressed(f"the {word} is not stated")
        if stated is not None:
            training[name] = stated
    if _DATA_OF_LENGTH.search(row.notes) and "packing=true" not in row.notes.lower().replace("sample_", ""):
        draft.assume("every sample is as long as the maximum", decisive=True)
    per_step = training.get("micro_batch_size", 1) * draft.parallelism["data_parallel_size"]
    if "gradient_accumulation_steps" in training:
        return
    if row.grad_accum is not None:
        training["gradient_accumulation_steps"] = row.grad_accum
    elif row.global_batch_size is not None:
        training["gradient_accumulation_steps"] = max(1, row.global_batch_size // per_step)


def _training(row: MeasuredRow, draft: Draft) -> None:
    training = draft.training
    _adapters(row, draft)
    _present_targets(draft)
    _recompute(row, draft)
    _optimizer(row, draft)
    attention = words.attention(row.attention_impl)
    if attention is not None:
        training.setdefault("attention", attention)
    if words.fused_cross_entropy(row.notes):
        training.setdefault("fused_cross_entropy", True)
    if words.liger_kernels(row.notes) and _is_patched(draft):
        training.setdefault("use_liger_kernel", True)
    if _HEADLESS.search(row.model_name.lower()) or "task_type=seq_cls" in row.notes:
        training.setdefault("fused_cross_entropy", True)
        draft.assume("a model without a vocabulary head is counted with a loss that never holds logits")
    if words.compiled(row.notes) and training["framework"] in ("transformers", "torchtitan"):
        training.setdefault("compile", True)
    if re.search(r"cuda[ -]graphs? (?!none)", row.notes.lower()):
        training.setdefault("cuda_graphs", True)


def _is_patched(draft: Draft) -> bool:
    known = draft.architecture is not None and draft.architecture.family.model_type in liger.PATCHED
    return known and draft.training["framework"] in ("transformers", "deepspeed")


def _adapters(row: MeasuredRow, draft: Draft) -> None:
    if "method" in draft.training:
        return
    adapters = words.lora(row.peft)
    if adapters is None:
        raise Unexpressed(f"adapters that have no word in a request: {row.peft}")
    draft.training.update(adapters)
    if adapters and not words.is_lora(row.peft):
        draft.assume(f"{row.peft.split()[0]} is counted as LoRA", decisive=True)
    elif adapters and not adapters["lora"].get("rank"):
        rank = words.rank_in_notes(row.notes)
        draft.training["lora"]["rank"] = rank or 8
        draft.assume(f"LoRA rank: {rank}, as the notes say" if rank else "LoRA rank: PEFT's default of 8")


def _present_targets(draft: Draft) -> None:
    """PEFT passes over targets that the model lacks, as long as it has one of them; so do modules to save."""
    adapters = draft.training.get("lora") or {}
    model = draft.architecture
    names = adapters.get("target_modules")
    if model is None or not isinstance(names, tuple):
        return
    known = {layer.name.rpartition(".")[2] for layer in model.linear_layers}
    known.update(EXPERT_TARGETS.get(model.family.model_type, ()))
    found = tuple(name for name in names if name in known)
    if found and found != names:
        adapters["target_modules"] = found
        lost = ", ".join(name for name in names if name not in known)
        draft.assume(f"targets that the model lacks are passed over, as PEFT does: {lost}")


def _recompute(row: MeasuredRow, draft: Draft) -> None:
    if "offloaded checkpoints" in row.recompute or re.search(r"full.*\+ offload", row.recompute):
        draft.training.setdefault("offload_checkpoints", True)
    if "recompute" in draft.training:
        return
    stated = words.recompute(row.recompute or words.assumed(row.notes).get("recompute", ""))
    stated = stated or words.recompute_in_notes(row.notes)
    if not stated and re.search(_CHECKPOINTING_FRAMEWORKS, row.framework.lower()):
        stated = {"recompute": "full"}
        draft.assume("recompute: full, the framework's default", decisive=True)
    elif not stated:
        draft.assume("recompute: none", decisive=draft.reading.figure not in ("between_steps", "states"))
    elif not row.recompute:
        draft.assume(f"recompute: {stated['recompute']}", decisive=True)
    draft.training.update(stated)


def _optimizer(row: MeasuredRow, draft: Draft) -> None:
    training = draft.training
    if "optimizer" not in training:
        optimizer = words.optimizer(row.optimizer, row.optimizer_dtype if "bit" in row.optimizer_dtype else "")
        if row.optimizer == "lora-fa":
            draft.assume("LoRA-FA, which trains one of each adapter's matrices, is counted as AdamW", decisive=True)
            optimizer = "adamw"
        if optimizer is None and row.optimizer and "optim" not in row.optimizer:
            raise Unexpressed(f"optimizer that has no word in a request: {row.optimizer}")
        if optimizer is None:
            draft.assume("optimizer: AdamW", decisive=not training.get("method"))
        training["optimizer"] = optimizer or "adamw"
    if "fused" in f"{row.optimizer} {row.optimizer_dtype}".lower() and training["framework"] == "transformers":
        training.setdefault("optimizer_implementation", "fused")


def _offloaded(draft: Draft) -> None:
    if draft.training.get("offload_checkpoints") and draft.training.get("recompute") != "full":
        raise Unexpressed("offloaded activations that are not inputs of recomputed blocks have no word in a request")


def _buckets(row: MeasuredRow, draft: Draft) -> None:
    """Hugging Face's Trainer and accelerate make DeepSpeed's `reduce_bucket_size` the square of the hidden size, and
    ZeRO-3's persistence threshold ten times it: what `auto` means in the configs that fine-tuning frameworks ship.
    """
    hidden = None if draft.architecture is None else draft.architecture.sizes.get("hidden_size")
    if draft.training["framework"] == "deepspeed" and hidden and re.search(_HF_TRAINERS, row.framework.lower()):
        draft.parallelism.setdefault("reduce_bucket_size", hidden**2)
        if draft.parallelism.get("zero_stage") == 3:
            draft.parallelism.setdefault("stage3_param_persistence_threshold", hidden * 10)


def _precision(row: MeasuredRow, draft: Draft) -> None:
    training = draft.training
    if "precision" in training:
        return
    compute, weights = row.compute_dtype.lower(), row.param_dtype.lower()
    if not compute:
        draft.assume("compute in bf16", decisive=not training.get("method"))
        compute = "bf16"
    if re.search(r"int4|int8|nvfp4", compute):
        raise Unexpressed(f"computation in {row.compute_dtype} has no word in a request")
    half = "fp16" if compute.startswith("fp16") else "bf16"
    own_master = training["framework"] in ("deepspeed", "megatron", "torchtitan", "nanotron")
    if "fp8" in compute or "float8" in compute:
        training["precision"] = "fp8-mixed"
    elif compute.startswith("fp32"):
        training["precision"] = "fp32"
    elif own_master or "autocast" in compute or "amp" in compute or training.get("method") or weights == "fp32":
        training["precision"] = f"{half}-mixed"
    elif weights.startswith(half):
        training["precision"] = half
    else:
        training["precision"] = half
        draft.assume(f"weights and optimizer states in {half}, as the model is loaded", decisive=True)
    _base_format(row, draft, weights)


def _base_format(row: MeasuredRow, draft: Draft, weights: str) -> None:
    if not draft.training.get("method"):
        return
    adapters: dict[str, Any] = draft.training.setdefault("lora", {})
    weights = weights or _format_in(row.model_name.lower())
    if "gptq" in weights or "gptq" in row.peft.lower():
        draft.training["method"] = "qlora"
        adapters.setdefault("base_format", "nf4-double")
        draft.assume("a GPTQ base of 4 bit and groups of 128 is counted as doubly quantized NF4, of as many bytes")
    elif "double" in weights:
        adapters["base_format"] = "nf4-double"
    elif re.search(r"nf4|4-bit|int4", weights):
        draft.training["method"] = "qlora"
        adapters.setdefault("base_format", "nf4")
    elif weights == "fp8":
        draft.training["method"] = "qlora"
        adapters.setdefault("base_format", "fp8")
    elif weights.startswith("int8"):
        draft.training["method"] = "qlora"
        adapters["base_format"] = "int8"
    elif weights[:4] in ("bf16", "fp16", "fp32") and draft.training["method"] == "lora":
        adapters.setdefault("base_format", weights[:4])
    _check_experts(row, draft)
    if draft.training["method"] == "qlora" and re.search(_PREPARING, row.framework.lower()):
        sharded = draft.parallelism.get("zero_stage") == 3 or re.search(r"gptq", f"{weights} {row.peft.lower()}")
        adapters.setdefault("prepared", not sharded)


_PREPARING = r"^trl\b|^peft ?\+ ?trl\b|^qlora$|^xtuner"
"""Frameworks that call PEFT's `prepare_model_for_kbit_training` on a quantized base that is not sharded."""


def _format_in(model: str) -> str:
    """The format of the weights that a model's name ends in; NVFP4 has as many bytes as NF4 with plain scales."""
    found = re.search(r"[-_](nvfp4|gptq|awq|bnb-4bit|4bit|fp8)\b", model)
    if found is None:
        return ""
    return {"fp8": "fp8", "gptq": "gptq int4", "awq": "gptq int4"}.get(found[1], "nf4")


def _check_experts(row: MeasuredRow, draft: Draft) -> None:
    """bitsandbytes quantizes linear layers; experts that lie in stacks are none, and stay as they are."""
    experts = draft.architecture is not None and draft.architecture.sizes.get("num_experts")
    if experts and re.search(r"quantized moe experts|linearized|nvfp4", f"{row.notes} {row.model_name}".lower()):
        raise Unexpressed("quantized experts of a mixture have no word in a request")
