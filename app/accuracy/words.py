"""What the free text of a source means: sharding, recomputation, attention, optimizer, formats, adapters, offload.

Each reader takes the text of one column (or the notes) and knows nothing of rows, so that the same words mean the same
whoever wrote them.
"""

import re
from typing import Any

_MODULES = ("core_attn", "mlp", "moe", "moe_act", "layernorm", "mla_up_proj", "shared_experts")

_OPTIMIZERS = (
    (r"paged.*8.?bit", "paged-adamw-8bit"),
    (r"paged", "paged-adamw"),
    (r"torch.?_?8bit|ao 8.?bit", "adamw-8bit-torchao"),
    (r"torch.?_?4bit|ao 4.?bit", "adamw-4bit-torchao"),
    (r"adam.*8.?bit|8.?bit.*adam|8bit \(bits", "adamw-8bit"),
    (r"muon", "muon"),
    (r"adafactor", "adafactor"),
    (r"galore", "galore-adamw"),
    (r"badam", "badam"),
    (r"lomo", "lomo"),
    (r"lion", "lion"),
    (r"sgd", "sgd"),
    (r"adamw", "adamw"),
    (r"adam", "adam"),
)


def zero_stage(text: str) -> int | None:
    """0 to 3, or None where the text does not say."""
    words = text.lower()
    degree = re.search(r"sharding degree (\d+)", words)
    if degree is not None and int(degree[1]) == 1:
        return 0
    if re.search(r"no zero|not stated|not in the excerpt|zero-2 / zero-3", words):
        return None
    stage = re.search(r"zero-?([0-3])", words)
    if stage is not None:
        return int(stage[1])
    if "no fsdp" in words or "distributed optimizer" in words or "zero (stage" in words:
        return 1
    if "fsdp" in words:
        return 3
    return 0 if words.startswith(("none", "ddp")) else None


def shards(text: str) -> int | None:
    """Ranks over which sharding goes, where the text says so."""
    degree = re.search(r"sharding degree (\d+)|over (\d+)", text.lower())
    return None if degree is None else int(degree[1] or degree[2])


def recompute(text: str) -> dict[str, Any]:
    """Fields of Training. Empty where the text does not say, None for what has no field."""
    words = text.lower()
    if not words:
        return {}
    if words.startswith("none"):
        return {"recompute": "none"}
    if words.startswith("selective"):
        modules = tuple(module for module in _MODULES if re.search(rf"\b{module}\b", words))
        return {"recompute": "selective", **({"recompute_modules": modules} if modules else {})}
    if words.startswith("full"):
        return {"recompute": "full"}
    return {}


def recompute_in_notes(notes: str) -> dict[str, Any]:
    """Fields of Training where the notes say it in words. Empty where they do not."""
    words = notes.lower()
    if re.search(r"no (activation|gradient) checkpointing|checkpointing not mentioned|checkpoint=false", words):
        return {"recompute": "none"}
    if re.search(r"(gradient|activation) checkpointing( always| on| per|;|,|$| non| reentrant)|checkpoint=true", words):
        return {"recompute": "full"}
    return {}


def length_in_notes(notes: str) -> int | None:
    """Tokens per sequence where the notes name the setting, though the table does not print it."""
    found = re.search(r"(?:SEQ_LEN|seq_len default|sequence_len|max length|max_seq_len) (?:is )?(\d{3,})", notes)
    return None if found is None else int(found[1])


def rank_in_notes(notes: str) -> int | None:
    """LoRA's rank where only the notes say it."""
    found = re.search(r"(?:LoRA r=|rank )(\d+)", notes)
    return None if found is None else int(found[1])


def attention(text: str) -> str | None:
    """`flash`, `sdpa` or `eager`; None where the text does not say."""
    words = text.lower()
    if re.search(r"eager|unfused|local|no flash", words):
        return "eager"
    if re.search(r"flash|fa[234]\b|fused|flex", words):
        return "flash"
    return "sdpa" if "sdpa" in words else None


def optimizer(text: str, states: str = "") -> str | None:
    """The optimizer's name in the vocabulary; None where the text does not say or names another one."""
    words = f"{text} {states}".lower().strip()
    return next((name for pattern, name in _OPTIMIZERS if re.search(pattern, words)), None)


def offload(text: str) -> str | None:
    """`none`, `optimizer` or `optimizer+parameters`; None for anything that has no word. Activations are not counted:
    `offloads_checkpoints` reads them.
    """
    words = _ACTIVATIONS.sub("", text.lower()).strip()
    if not words or words == "none":
        return "none"
    if "activation" in words or ("%" in words and "100%" not in words) or words.startswith("yes"):
        return None
    return "optimizer+parameters" if "param" in words else "optimizer"


_ACTIVATIONS = re.compile(r"[\s+]*activation(s| checkpoints)( \(all\))?(?= *(\+|$))")


def offloads_checkpoints(text: str) -> bool:
    """Whether all activations that wait for backward, or the inputs of recomputed blocks, are moved to host memory."""
    return bool(_ACTIVATIONS.search(text.lower()))


def fused_cross_entropy(notes: str) -> bool:
    """Whether a loss without whole logits is said to be in use."""
    words = notes.lower()
    if re.search(r"no liger|liger no\b|without liger|use_liger_kernel=false|baseline cross-entropy", words):
        return False
    return bool(
        re.search(
            r"liger (yes|plugin|kernel|fused)|with liger|use_liger_kernel=true|cut cross-?entropy|fused ce\b|"
            r"fused cross-?entropy|chunked (cross.entropy|loss)|chunk \(\d+\) loss|"
            r"cross.entropy(_loss)?.fusion=true|linear cross-?entropy",
            words,
        )
    )


def liger_kernels(notes: str) -> bool:
    """Whether all of Liger's kernels are said to be in use, not its loss alone."""
    words = notes.lower()
    if re.search(r"no liger|liger no\b|without liger|use_liger_kernel=false", words):
        return False
    return bool(re.search(r"liger (yes|plugin|kernels?\b)|with liger|use_liger_kernel=true", words))


def compiled(notes: str) -> bool:
    """Whether torch.compile is said to be in use for the model."""
    words = notes.lower()
    other = r"no compile|without compile|eager|compile of the loss only|only the loss is compiled"
    return bool(re.search(r"\bcompile\b", words)) and not re.search(other, words)


_ADAPTERS_OF_ANOTHER_KIND = re.compile(r"osf|adapter\b|freeze")


def lora(text: str) -> dict[str, Any] | None:
    """Fields of Training for adapters; empty for full training. None for a method that trains something else."""
    words = text.lower()
    if not words or words == "none":
        return {}
    if _ADAPTERS_OF_ANOTHER_KIND.match(words):
        return None
    rank = re.search(r"\br=(\d+)", words)
    adapters: dict[str, Any] = {}
    if rank is not None:
        adapters["rank"] = int(rank[1])
    targets = _targets(words)
    if targets is not None:
        adapters["target_modules"] = targets
    saved = [name for name in ("embed_tokens", "lm_head") if re.search(rf"incl\. .*{name}", words)]
    if "(emb)" in words:
        saved = ["embed_tokens", "lm_head"]
    if saved:
        adapters["modules_to_save"] = tuple(saved)
    quantized = bool(re.search(r"q-?lora|gptq|4-?bit|nf4", words))
    if "double" in words:
        adapters["base_format"] = "nf4-double"
    return {"method": "qlora" if quantized else "lora", "lora": adapters}


def is_lora(text: str) -> bool:
    """Whether adapters are low-rank ones as a request means them, rather than another small addition."""
    words = text.lower().replace("-", "")
    return bool(re.match(r"q?lora\b", words))


_MEGATRON_LAYERS = (
    ("linear_qkv", ("q_proj", "k_proj", "v_proj")),
    ("linear_proj", ("o_proj",)),
    ("linear_fc1", ("gate_proj", "up_proj")),
    ("linear_fc2", ("down_proj",)),
)
"""Megatron's joint layers, by the names that Hugging Face gives their parts."""


def _targets(words: str) -> str | tuple[str, ...] | None:
    if re.search(r"all.linear|all layers|targets?=linear|target all|all linear|\ball\b", words):
        return "all-linear"
    joint = [name for word, names in _MEGATRON_LAYERS for name in names if re.search(rf"\b{word}\b", words)]
    if joint:
        return tuple(joint)
    named = re.findall(r"\b([a-z]+_proj|query_key_value|w[123]|wqkv)\b", words)
    if named:
        return tuple(dict.fromkeys(named))
    pattern = re.search(r"\(([a-z|]+)\)_proj", words)
    if pattern is not None:
        return tuple(f"{part}_proj" for part in pattern[1].split("|") if part)
    if re.search(r"q,v\b|q and v", words):
        return ("q_proj", "v_proj")
    return "all-linear" if "(mlp|" in words else None


def notes_value(notes: str, name: str) -> str | None:
    """The value of `name=value` in the notes, without a unit behind it; Megatron's flags are written so."""
    match = re.search(rf"(?<![\w-]){re.escape(name)}=(\[[^\]]*\]|\([^ ,;]*\)|[^,;\s]+)", notes)
    return None if match is None else match[1]


def assumed(notes: str) -> dict[str, str]:
    """Columns that the collectors of the data filled by assumption: `ASSUMED column=value` in the notes."""
    return {column: value.strip() for column, value in re.findall(r"ASSUMED (\w+)=([^;]+)", notes)}
