"""Megatron-LM's functional tests: small models described by the flags of `megatron/training/arguments.py`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from app.accuracy import words
from app.accuracy.jobs import Draft, Unexpressed
from app.accuracy.rows import MeasuredRow
from app.planning.architecture import Architecture, from_config
from app.planning.families import FAMILIES
from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense
from app.planning.families.family import Shapes
from app.planning.families.mixture import MixtureOfExperts
from app.planning.modules import Activation, Norm

VOCABULARIES = {"GPT2BPE": 50257, "BertWordPieceCase": 28996, "BertWordPieceLowerCase": 30522}
"""Tokens of the vocabulary files that Megatron's own tokenizers read."""

DIVISIBLE_BY = 128
"""`make_vocab_size_divisible_by`: vocabularies are padded to a multiple of it times the tensor-parallel size."""


@dataclass(frozen=True, slots=True)
class Flags:
    """The command line of a Megatron run, as the notes print it: `name=value`, comma between."""

    text: str

    def on(self, name: str) -> bool:
        """Whether a flag is set."""
        return words.notes_value(self.text, name) == "True"

    def number(self, name: str, default: int) -> int:
        """A whole number."""
        return int(self._number(name, default))

    def real(self, name: str, default: float) -> float:
        """A real number."""
        return self._number(name, default)

    def word(self, name: str, default: str) -> str:
        """A word."""
        return words.notes_value(self.text, name) or default

    def _number(self, name: str, default: float) -> float:
        value = words.notes_value(self.text, name)
        try:
            return default if value is None else float(value)
        except ValueError:
            raise Unexpressed(f"{name}={value} is not a number") from None


def rule(row: MeasuredRow, draft: Draft, _: Mapping[str, float]) -> None:
    """The model is built from the flags; memory is that of the last rank, so of the last pipeline stage."""
    flags = Flags(row.notes)
    gpus = _gpus(row, draft)
    split = (row.tp or 1) * (row.pp or 1) * (row.cp or 1)
    if row.dp is None and gpus is not None:
        draft.parallelism["data_parallel_size"] = max(1, gpus // split)
    draft.reading = replace(draft.reading, stage=-1)
    draft.architecture = model_of(row, flags, draft)
    experts_tensor = flags.number("expert-tensor-parallel-size", 0)
    if experts_tensor and draft.architecture is not None and "num_experts" in draft.architecture.sizes:
        draft.parallelism["expert_tensor_parallel_size"] = experts_tensor
    stages = stages_of(row, flags)
    if stages is not None:
        draft.parallelism["layers_per_stage"] = stages
    if "distill" in row.model_name:
        raise Unexpressed("distillation holds a teacher model beside the trained one")
    if row.attention_impl == "transformer_engine" and flags.on("deterministic-mode") and _old_lts(row):
        draft.training["attention"] = "eager"
        draft.assume("attention: unfused, as the LTS container of 2025 has no deterministic flash attention")
    if row.attention_impl == "local" and flags.on("use-flash-attn"):
        draft.training["attention"] = "flash"
    if flags.on("cross-entropy-loss-fusion"):
        draft.training["fused_cross_entropy"] = True
    if flags.word("cuda-graph-impl", "none") != "none" or flags.on("enable-cuda-graph"):
        draft.training["cuda_graphs"] = True
    if flags.on("fine-grained-activation-offloading"):
        raise Unexpressed("activations offloaded to host memory have no word in a request")
    if re.search(r"model_config differs .* in: .*(num-layers|hidden-size|-size)", row.notes):
        draft.assume("the model's sizes are those of the arguments given, which differ between commits", decisive=True)
    if flags.on("deterministic-mode"):
        draft.training["deterministic"] = True
    if gpus is None and words.zero_stage(row.zero_stage_or_fsdp):
        raise Unexpressed("the number of GPUs is not stated, which the optimizer is sharded over")


def _old_lts(row: MeasuredRow) -> bool:
    return "env=lts" in row.notes and "last updated 2025" in row.notes


def _gpus(row: MeasuredRow, draft: Draft) -> int | None:
    """GPUs of the job: functional tests run on one node; release runs, whose number is not public, on more."""
    if row.num_gpus is not None or re.search(r"release|weekly", row.model_name):
        return row.num_gpus
    node = 4 if row.gpu_model == "GB200" else 8
    draft.assume(f"GPUs: one node of {node}", decisive=True)
    return node


def stages_of(row: MeasuredRow, flags: Flags) -> tuple[int, ...] | None:
    """Layers per stage where the embedding or the loss counts as a layer, or the ends are given; else None."""
    pipeline, layers = row.pp or 1, row.layers or 0
    if pipeline == 1:
        return None
    extra = [flags.on("account-for-embedding-in-pipeline-split"), flags.on("account-for-loss-in-pipeline-split")]
    if any(extra):
        each = (layers + sum(extra)) // pipeline
        return (each - extra[0], *[each] * (pipeline - 2), each - extra[1])
    first = flags.number("num-layers-in-first-pipeline-stage", flags.number("decoder-first-pipeline-num-layers", 0))
    last = flags.number("num-layers-in-last-pipeline-stage", flags.number("decoder-last-pipeline-num-layers", 0))
    if not first and not last:
        return None
    middle = (layers - first - last) // (pipeline - bool(first) - bool(last))
    return (first or middle, *[middle] * (pipeline - 2), last or middle)


def model_of(row: MeasuredRow, flags: Flags, draft: Draft) -> Architecture:
    """The model that Megatron's flags describe. Raises Unexpressed for what is no plain decoder."""
    kind = row.model_name.partition("/")[0]
    if row.hidden is None or row.heads is None or row.seq_len is None:
        raise Unexpressed("hidden size, heads or sequence length are not stated")
    pattern = flags.word("hybrid-override-pattern", flags.word("hybrid-layer-pattern", ""))
    if pattern:
        return _hybrid(row, flags, draft, pattern)
    if kind in ("bert", "t5"):
        return _encoder(row, flags, draft, kind)
    if kind not in ("gpt", "moe", "mixtral"):
        raise Unexpressed(f"Megatron's {kind} models are not estimated")
    if row.layers is None:
        raise Unexpressed("the number of layers is not stated")
    if flags.number("mtp-num-layers", 0):
        raise Unexpressed("multi-token prediction layers are not estimated")
    return _decoder(
        _Shape(
            hidden=row.hidden,
            layers=row.layers,
            heads=row.heads,
            key_value_heads=row.kv_heads or row.heads,
            inner=row.ffn or (default_inner(row.hidden, gated=flags.on("swiglu"))),
            vocabulary=vocabulary_of(row, flags, draft),
            tied=row.tied_embeddings != "false",
            positions=flags.number("max-position-embeddings", row.seq_len),
            experts=row.experts or 0,
            experts_per_token=row.top_k or 2,
            query_key_norm=flags.on("qk-layernorm") or "qk_layernorm" in row.model_name,
            frequency=_frequency(flags.word("moe-layer-freq", "1"), row.layers) if row.experts else (),
        ),
        Flags(re.sub(r"^.*?flags: |;.*$", "", row.notes)) if "flags: " in row.notes else Flags(""),
    )


def _hybrid(row: MeasuredRow, flags: Flags, draft: Draft, pattern: str) -> Architecture:
    """Megatron's hybrid of Mamba 2, attention, MLPs and experts, one letter a layer; what stands behind a slash are
    layers of multi-token prediction.
    """
    layers, slash, _ = pattern.partition("/")
    if slash or flags.number("mtp-num-layers", 0):
        draft.assume("without the layers of multi-token prediction", decisive=True)
    hidden = row.hidden or 0
    config: dict[str, Any] = {
        "model_type": "nemotron_h",
        "hybrid_override_pattern": layers,
        "hidden_size": hidden,
        "num_attention_heads": row.heads,
        "num_key_value_heads": row.kv_heads or row.heads,
        "head_dim": flags.number("kv-channels", hidden // (row.heads or 1)),
        "intermediate_size": row.ffn or default_inner(hidden, gated=flags.on("swiglu")),
        "mlp_hidden_act": "relu2" if flags.on("squared-relu") or "nemotron" in row.model_name else "gelu",
        "vocab_size": vocabulary_of(row, flags, draft),
        "mamba_head_dim": flags.number("mamba-head-dim", 64),
        "mamba_num_heads": flags.number("mamba-num-heads", 2 * hidden // flags.number("mamba-head-dim", 64)),
        "ssm_state_size": flags.number("mamba-state-dim", 128),
        "n_groups": flags.number("mamba-num-groups", 8),
        "tie_word_embeddings": row.tied_embeddings != "false",
    }
    if row.experts:
        config |= {"n_routed_experts": row.experts, "num_experts_per_tok": row.top_k}
        config["moe_intermediate_size"] = flags.number("moe-ffn-hidden-size", config["intermediate_size"])
        config["moe_shared_expert_intermediate_size"] = flags.number("moe-shared-expert-intermediate-size", 0)
    return from_config(config)


def _encoder(row: MeasuredRow, flags: Flags, draft: Draft, kind: str) -> Architecture:
    """Megatron's BERT as Hugging Face's class of that name, its T5 as the nearest one: BART has its learned positions,
    LayerNorms and biases.
    """
    positions = flags.number("max-position-embeddings", row.seq_len or 512)
    config: dict[str, Any] = {"vocab_size": vocabulary_of(row, flags, draft), "max_position_embeddings": positions}
    inner = row.ffn or default_inner(row.hidden or 0, gated=False)
    if kind == "bert":
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        config |= dict(zip(names, (row.hidden, row.layers, row.heads, inner), strict=True))
        return from_config({"model_type": "megatron-bert", **config})
    draft.assume("Megatron's T5 is counted as BART of the same sizes", decisive=True)
    draft.training["target_sequence_length"] = flags.number("decoder-seq-length", 128)
    found = re.search(r"layers: enc (\d+) dec (\d+)", row.notes)
    encoder, decoder = (int(found[1]), int(found[2])) if found else (row.layers, row.layers)
    config |= {"d_model": row.hidden, "encoder_layers": encoder, "decoder_layers": decoder}
    for part in ("encoder", "decoder"):
        config |= {f"{part}_attention_heads": row.heads, f"{part}_ffn_dim": inner}
    return from_config({"model_type": "bart", **config})


def default_inner(hidden: int, *, gated: bool) -> int:
    """Megatron's `ffn_hidden_size`: four times the hidden size, or two thirds of it in multiples of 64 with SwiGLU."""
    return int((4 * hidden * 2 / 3) / 64) * 64 if gated else 4 * hidden


def vocabulary_of(row: MeasuredRow, flags: Flags, draft: Draft) -> int:
    """Padded vocabulary size, from the column or by the tokenizer's name."""
    tokenizer = flags.word("tokenizer", "")
    size = row.vocab or VOCABULARIES.get(tokenizer)
    if size is None:
        size = 32_000
        draft.assume(f"vocabulary of {size}: that of {tokenizer or 'the tokenizer'} is not stated", decisive=True)
    multiple = flags.number("divisible-by", DIVISIBLE_BY) * (row.tp or 1)
    return -(-size // multiple) * multiple


def _frequency(text: str, layers: int) -> tuple[bool, ...]:
    parts = re.findall(r"\[([01])\]\*(\d+)", text)
    if parts:
        return tuple(bool(int(value)) for value, count in parts for _ in range(int(count)))
    if not text.isdigit():
        raise Unexpressed(f"moe-layer-freq={text} is neither a number nor a pattern")
    return tuple(layer % int(text) == 0 for layer in range(layers))


@dataclass(frozen=True, slots=True)
class _Shape:
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    inner: int
    vocabulary: int
    tied: bool
    positions: int
    experts: int
    experts_per_token: int
    query_key_norm: bool
    frequency: tuple[bool, ...]


def _latent_sizes(flags: Flags) -> dict[str, int]:
    """Sizes of multi-head latent attention, with Megatron's defaults."""
    return {
        "q_lora_rank": flags.number("q-lora-rank", 512),
        "kv_lora_rank": flags.number("kv-lora-rank", 512),
        "qk_nope_head_dim": flags.number("qk-head-dim", 128),
        "qk_rope_head_dim": flags.number("qk-pos-emb-head-dim", 64),
        "v_head_dim": flags.number("v-head-dim", 128),
        "head_dim": flags.number("qk-pos-emb-head-dim", 64),
    }


def _expert_sizes(shape: _Shape, flags: Flags) -> dict[str, int]:
    """Sizes of the experts, and how many layers have them; of shared ones where there are any."""
    shared = flags.number("moe-shared-expert-intermediate-size", 0)
    return {
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.experts_per_token,
        "moe_intermediate_size": flags.number("moe-ffn-hidden-size", shape.inner),
        "num_moe_layers": sum(shape.frequency),
        "num_dense_layers": shape.layers - sum(shape.frequency),
        **({"shared_expert_intermediate_size": shared} if shared else {}),
    }


@cache
def _decoder(shape: _Shape, flags: Flags) -> Architecture:
    latent = flags.on("multi-latent-attention")
    embedding = flags.word("position-embedding-type", "learned_absolute")
    gated, bias = flags.on("swiglu"), not flags.on("disable-bias-linear")
    hidden_dropout = flags.real("hidden-dropout", 0.1)
    sizes = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": flags.number("kv-channels", shape.hidden // shape.heads),
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
    }
    if embedding == "learned_absolute":
        sizes["position_rows"] = shape.positions
    activation: Activation = "relu2" if flags.on("squared-relu") else "silu" if gated else "gelu"
    attention = Attention(
        grouped=shape.key_value_heads != shape.heads,
        bias=bias or flags.on("add-qkv-bias"),
        output_bias=bias,
        joint=not latent,
        rotary=embedding == "rope" or latent,
        query_key_norm="head" if shape.query_key_norm else "none",
        latent="queries-and-keys" if latent else "none",
        dropout=flags.real("attention-dropout", 0.1),
    )
    if latent:
        sizes |= _latent_sizes(flags)
        attention = replace(attention, grouped=False, bias=False)
    norm: Norm = "rms" if flags.word("normalization", "LayerNorm") == "RMSNorm" else "layer"
    dense = Dense(gated=gated, activation=activation, bias=bias, joint=gated)
    blocks: tuple[Block, ...] = (Block(attention, dense, norm=norm, residual_dropout=hidden_dropout),)
    if shape.experts:
        sizes |= _expert_sizes(shape, flags)
        experts = MixtureOfExperts(
            gated=gated,
            activation=activation,
            expert_bias=bias and not flags.on("moe-grouped-gemm"),
            shared="shared_expert_intermediate_size" in sizes,
            shared_gate=flags.on("moe-shared-expert-gate"),
            joint_shared=gated,
        )
        blocks = tuple(
            replace(blocks[0], feed_forward=part, repeats=repeats)
            for part, repeats in ((dense, "num_dense_layers"), (experts, "num_moe_layers"))
            if sizes[repeats]
        )
    layout = DecoderLayout(
        blocks,
        tied=shape.tied,
        rotary=attention.rotary,
        positions=embedding == "learned_absolute",
        embedding_dropout=hidden_dropout,
        norm=norm,
    )
    family = FAMILIES["deepseek_v3" if latent else "mixtral" if shape.experts else "gpt2" if not gated else "llama"]
    return Architecture("Megatron GPT", family, Shapes(layout, sizes, shape.positions))
