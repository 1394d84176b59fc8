"""The model a source names, or the shapes it prints, as an architecture."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from app import catalog
from app.accuracy.jobs import Draft, Unexpressed
from app.accuracy.rows import MeasuredRow
from app.errors import InvalidInput
from app.planning.architecture import Architecture, from_config, from_parameters
from app.planning.families.family import Shapes

_ENDINGS = re.compile(
    r"-(instruct|chat|it|hf|base|pt|sft|fp8|nvfp4|gptq|awq|int4|int8|bf16|nf4|dequantized|linearized|unsloth|bnb|4bit|"
    r"8bit|0?\d{2}0[1-9]|2[3-6](0[1-9]|1[0-2]))$"
)
_OF_THE_SAME_SHAPES = (
    (r"llama-3-405b", "llama-3.1-405b"),
    (r"deepseek-v3-16b", "deepseek-v2-lite"),
    (r"qwen3-(embedding|reranker)-(\d+b)", r"qwen3-\2"),
    (r"deepseek-r1-0528-qwen3-8b", "qwen3-8b"),
    (r"(mistral-small-3.*|devstral-small.*|magistral-small.*)", "mistral-small-24b"),
    (r"qwen2.5-coder-(\d+b)", r"qwen2.5-\1"),
    (r"functiongemma-270m", "gemma-3-270m"),
    (r"cohere-command-r\+", "c4ai-command-r-plus"),
    (r"mt0-xxl", "mt5-xxl"),
    (r"t5-v1\.1-(\w+)", r"t5-v1-1-\1"),
)
"""Models that have the shapes of one in the catalogue, as patterns of normalised names."""

_LANGUAGE_MODELS = ((r"(?:internvl3[-.]5|qwen3-vl|qwen3-omni)-(30b-a3b|235b-a22b)", r"qwen3-\1"),)
"""Models for images, video or sound whose language model is one of the catalogue, as patterns of normalised names."""

_CLASS_DEFAULTS = (
    (r"glm-4\.7-flash", "glm4_moe_lite"),
    (r"qwen3-next-80b-a3b", "qwen3_next"),
    (r"mistral-small-4-119b", "mistral4"),
    (r"llama-3\.2-11b-vision", "mllama"),
    (r"kimi-linear-48b-a3b", "kimi_linear"),
    (r"qwen3\.5-35b-a3b", "qwen3_5_moe"),
    (r"qwen3\.5-9b", "qwen3_5"),
    (r"voxtral-mini-3b", "voxtral"),
    (r"gemma-4-e2b", "gemma4"),
    (r"llama-4-scout.*", "llama4"),
)
"""Models whose shapes are the defaults of their class, as patterns of normalised names."""
_NEMOTRON = {"model_type": "nemotron_h", "vocab_size": 131072, "head_dim": 128, "mamba_head_dim": 64, "n_groups": 8}
_PUBLISHED: tuple[tuple[str, Mapping[str, Any]], ...] = (
    (r"glm-4\.5-air", {"model_type": "glm4_moe", "head_dim": 128, "attention_bias": True}),
    (
        r"nemotron-h-56b",
        {
            **_NEMOTRON,
            "hidden_size": 8192,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "intermediate_size": 32768,
            "mamba_num_heads": 256,
            "ssm_state_size": 256,
            "hybrid_override_pattern": "M-" * 54 + "*" * 10,
        },
    ),
    (
        r"(nvidia-)?nemotron-3-nano.*",
        {
            **_NEMOTRON,
            "hidden_size": 2688,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "intermediate_size": 1856,
            "mamba_num_heads": 64,
            "ssm_state_size": 128,
            "n_routed_experts": 128,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1856,
            "moe_shared_expert_intermediate_size": 3712,
            "hybrid_override_pattern": "MEMEM*" + "EMEMEM*" * 4 + "EMEMEMEM*" + "EMEMEMEME",
        },
    ),
)
"""Configs of models that are not in the catalogue, from their reports: 107, 56.3 and 31.6 billion parameters. The order
of Nemotron-H's layers changes nothing that is counted.
"""

_COLUMNS = (
    ("hidden", "hidden_size"),
    ("heads", "num_attention_heads"),
    ("kv_heads", "num_key_value_heads"),
    ("experts", "num_experts"),
    ("top_k", "num_experts_per_tok"),
)


def normalised(name: str) -> str:
    """A model's name without its organisation, its kind of tuning, its quantization, and differences of spelling."""
    text = re.sub(r"\(.*?\)|\btruncated\b.*", "", name.lower()).strip().rpartition("/")[2]
    text = re.sub(r"[\s_]+", "-", text).removeprefix("meta-").strip("-")
    text = re.sub(r"^(open)?llama-?(\d)(?!\d*b)", r"\1llama-\2", text)
    text = re.sub(r"^deepseek-?v", "deepseek-v", text)
    text = re.sub(r"^qwen-(\d\.?\d?)(?=-)", r"qwen\1", text)
    text = re.sub(r"^(gpt|bert)-?(\d)$", r"\1\2", text)
    while (shorter := _ENDINGS.sub("", text)) != text:
        text = shorter
    return text


@cache
def _catalogue() -> Mapping[str, Architecture]:
    found: dict[str, Architecture] = {}
    for id, model in catalog.load().models.items():
        found.setdefault(normalised(id), model.architecture)
    return found


@cache
def known(name: str) -> Architecture | None:
    """The catalogue's model of this name, or one whose shapes are its class's defaults, if there is one."""
    text = normalised(name)
    for pattern, model_type in _CLASS_DEFAULTS:
        if re.fullmatch(pattern, text):
            return from_config({"model_type": model_type}, name=name)
    for pattern, config in _PUBLISHED:
        if re.fullmatch(pattern, text):
            return from_config(config, name=name)
    models = _catalogue()
    inside = re.search(r"\(([\w.-]+)", name)
    spellings = [text]
    spellings += [re.sub(pattern, other, text) for pattern, other in _OF_THE_SAME_SHAPES if re.fullmatch(pattern, text)]
    spellings += [re.sub(r"(deepseek.*)-\d+b$", r"\1", text), normalised(inside[1]) if inside else ""]
    for spelling in spellings:
        if spelling in models:
            return models[spelling]
    versions = [found for key, found in models.items() if re.fullmatch(re.escape(text) + r"-v?\d[\d.]*", key)]
    return versions[0] if len(versions) == 1 else None


def with_sizes(model: Architecture, **sizes: int) -> Architecture:
    """`model` with some sizes changed, such as `num_hidden_layers` of a truncated one."""
    longest = max(model.shapes.longest_sequence, sizes.get("position_rows", 0))
    shapes = Shapes(model.shapes.layout, {**model.shapes.sizes, **sizes}, longest, model.shapes.assumptions)
    return replace(model, shapes=shapes)


def read(row: MeasuredRow, draft: Draft) -> None:
    """Sets the architecture: the catalogue's where the name is known and the columns agree, else what the columns
    say, else shapes inferred from the parameter count. Raises Unexpressed.
    """
    found = known(row.model_name)
    if found is None:
        found = _language_model(row.model_name, draft)
    if found is not None and (agreed := _agreed(row, found, draft)) is not None:
        draft.architecture = agreed
        return
    if row.hidden and row.layers:
        draft.architecture = _from_columns(row, draft)
        return
    count = _count(row.params_total) or _count_in(row.model_name)
    if count is None:
        raise Unexpressed(f"unknown model, and its shapes are not given: {row.model_name or '(no name)'}")
    draft.assume("shapes inferred from the parameter count", decisive=True)
    try:
        draft.architecture = from_parameters(count)
    except InvalidInput as error:
        raise Unexpressed(error.detail) from error


def _language_model(name: str, draft: Draft) -> Architecture | None:
    text = normalised(name)
    for pattern, model in _LANGUAGE_MODELS:
        if re.fullmatch(pattern, text):
            draft.assume("the language model alone is counted, without encoders of images or sound", decisive=True)
            return _catalogue().get(re.sub(pattern, model, text))
    return None


def _agreed(row: MeasuredRow, model: Architecture, draft: Draft) -> Architecture | None:
    sizes = model.sizes
    for column, name in _COLUMNS:
        stated = getattr(row, column)
        if stated is not None and name in sizes and stated != sizes[name]:
            return None
    inner = {sizes.get(name) for name in ("intermediate_size", "moe_intermediate_size")}
    if row.ffn is not None and row.ffn not in inner:
        return None
    changed = {}
    rows_of_positions = sizes.get("position_rows")
    if rows_of_positions is not None and (row.seq_len or 0) > rows_of_positions:
        changed["position_rows"] = row.seq_len or 0
        draft.assume(f"{model.name} with {row.seq_len} positions")
    if row.vocab is not None and row.vocab != sizes["vocab_size"]:
        changed["vocab_size"] = row.vocab
    if row.layers is not None and row.layers != sizes["num_hidden_layers"]:
        changed |= _cut(model, row.layers)
        draft.assume(f"{model.name} cut to {row.layers} layers")
    return with_sizes(model, **changed) if changed else model


def _cut(model: Architecture, layers: int) -> dict[str, int]:
    sizes = {"num_hidden_layers": layers}
    dense = model.sizes.get("num_dense_layers", 0)
    if "num_moe_layers" in model.sizes:
        kept = min(dense, max(1, layers * dense // model.sizes["num_hidden_layers"])) if dense else 0
        sizes |= {"num_dense_layers": kept, "num_moe_layers": layers - kept}
    return sizes


@dataclass(frozen=True, slots=True)
class _Like:
    """A model type for models whose names hold a word."""

    word: str
    model_type: str
    fields: tuple[tuple[str, Any], ...] = ()


_FAMILIES = (
    _Like("qwen3", "qwen3"),
    _Like("qwen", "qwen2"),
    _Like("mixtral", "mixtral"),
    _Like("chatglm", "glm"),
    _Like("glm", "glm"),
    _Like("granite", "granite"),
    _Like("gpt-j", "gptj"),
    _Like("gpt-neox", "gpt_neox"),
    _Like("gpt-oss", "gpt_oss"),
    _Like("nemotron", "nemotron"),
    _Like("bert", "bert"),
    _Like("bloom", "bloom"),
    _Like("gpt", "gpt2"),
    _Like("internlm", "llama", (("attention_bias", True),)),
)


_EQUAL_HEADS = ("gpt2", "bert", "bloom", "gptj", "gpt_neox")
"""Classes with one key and value per query head, and four times the hidden size in the MLP."""


def _from_columns(row: MeasuredRow, draft: Draft) -> Architecture:
    name = row.model_name.lower()
    like = next((like for like in _FAMILIES if like.word in name), _Like("", "llama"))
    config: dict[str, Any] = {"model_type": like.model_type, **dict(like.fields)}
    heads = row.heads or max(1, (row.hidden or 0) // 128)
    if row.heads is None:
        draft.assume(f"heads: {heads}, of 128 each")
    if like.model_type == "gpt2":
        config |= {"n_embd": row.hidden, "n_layer": row.layers, "n_head": heads, "n_inner": row.ffn}
        config["n_positions"] = max(row.seq_len or 0, 1024)
    else:
        config |= {"hidden_size": row.hidden, "num_hidden_layers": row.layers, "num_attention_heads": heads}
        config |= {"intermediate_size": row.ffn}
    if like.model_type not in _EQUAL_HEADS:
        config["num_key_value_heads"] = row.kv_heads or heads
    if row.ffn is None and like.model_type not in _EQUAL_HEADS:
        config["intermediate_size"] = -(-(8 * (row.hidden or 0) // 3) // 256) * 256
        draft.assume(f"ffn: {config['intermediate_size']}, Llama's rule", decisive=True)
    if row.vocab is None:
        draft.assume("vocab: the default of the family", decisive=True)
    else:
        config["vocab_size"] = row.vocab
    if row.tied_embeddings:
        config["tie_word_embeddings"] = row.tied_embeddings == "true"
    if row.experts:
        config |= _experts(row, like, config)
    draft.assume(f"counted as a {config['model_type']} of the shapes given")
    return _built(tuple(sorted((key, value) for key, value in config.items() if value is not None)))


def _experts(row: MeasuredRow, like: _Like, config: Mapping[str, Any]) -> dict[str, Any]:
    if like.model_type in ("qwen2", "qwen3"):
        return {
            "model_type": "qwen3_moe" if like.model_type == "qwen3" else "qwen2_moe",
            "num_experts": row.experts,
            "num_experts_per_tok": row.top_k or 2,
            "moe_intermediate_size": config["intermediate_size"],
        }
    if like.model_type == "gpt_oss":
        return {"num_local_experts": row.experts, "num_experts_per_tok": row.top_k or 4}
    return {"model_type": "mixtral", "num_local_experts": row.experts, "num_experts_per_tok": row.top_k or 2}


@cache
def _built(config: tuple[tuple[str, Any], ...]) -> Architecture:
    try:
        return from_config(dict(config))
    except InvalidInput as error:
        raise Unexpressed(f"the shapes given are refused: {error.detail}") from error


def _count_in(name: str) -> int | None:
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)\s*([bBmM])\b", name)
    if found is None or "moe" in name.lower() or re.search(r"-a\d", name.lower()):
        return None
    return _count(found[0].replace(" ", ""))


def _count(text: str) -> int | None:
    match = re.match(r"([\d.,]+(?:e\d+)?)\s*([bBmM]?)", text.replace(",", ""))
    if match is None:
        return None
    return int(float(match[1]) * {"": 1, "b": 10**9, "m": 10**6}[match[2].lower()])
