"""Decoder-only transformers: one forward pass for every family whose blocks are attention and a feed-forward network.

A family says which parts its blocks have by a `DecoderLayout`, and how large they are by sizes with the names of its
`config.json`; this module turns both into operations. Blocks of different kinds (dense and mixture-of-experts layers,
layers of different width) are listed one after the other with the name of the size that counts them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from app.planning.families.differential import differential_attention
from app.planning.families.latent import latent_projections
from app.planning.families.mixture import MixtureOfExperts, record_mixture
from app.planning.ledger import Tape, Tensor, Weight
from app.planning.losses import language_model_head
from app.planning.modules import (
    Activation,
    Heads,
    Norm,
    attention,
    embedding,
    feed_forward,
    norm,
    position_embedding,
    rotary,
    rotary_table,
)
from app.planning.sizes import Size, named

HIDDEN = named("hidden_size")
VOCABULARY = named("vocab_size")

Placement = Literal["pre", "post", "sandwich", "output", "parallel", "parallel-two-norms"]
"""Where norms stand: before each part; after each addition (original transformer); before and after each part (Gemma
2); after each part but before the addition (OLMo 2); attention and MLP side by side behind one norm, or behind one
each.
"""


@dataclass(frozen=True, slots=True)
class Attention:
    """Which parts an attention layer has. Sizes: `num_attention_heads`, `num_key_value_heads`, `head_dim`; with a
    latent (MLA) `kv_lora_rank`, `qk_nope_head_dim`, `qk_rope_head_dim`, `v_head_dim` and, if queries have one,
    `q_lora_rank`.
    """

    grouped: bool
    bias: bool = False
    """Biases on query, key and value."""
    output_bias: bool = False
    joint: bool = False
    """One matrix for query, key and value."""
    rotary: bool = True
    query_key_norm: Literal["none", "head", "full", "per-head"] = "none"
    """A norm over each head with one weight for all, over all heads at once, or over each head with its own weight."""
    query_key_norm_kind: Norm = "rms"
    latent: Literal["none", "keys", "queries-and-keys"] = "none"
    indexer: bool = False
    """A small attention that picks which keys a query sees (DeepSeek-V3.2)."""
    sinks: bool = False
    """One learned logit per head that takes up attention (gpt-oss)."""
    differential: bool = False
    """The difference of two attentions over halves of the values, weighed by four learned vectors (DiffLlama)."""
    output_norm: bool = False
    """A norm over all heads before the output projection (BitNet)."""
    gate: Literal["none", "joint", "elements", "heads"] = "none"
    """A sigmoid gate on the output: from a query projection of twice the width, or from a projection of its own with
    one value per element or per head.
    """
    value_head: bool = False
    """Values have heads of `v_head_dim`, also without a latent."""
    causal: bool = True
    mask_buffer: bool = False
    """Each layer holds a causal mask for all `max_position_embeddings` (GPT-Neo)."""
    window: str = ""
    """The size that says how many keys a query sees; empty where it sees all."""
    spread: bool = False
    """Keys and values are copied for every query head at once (Falcon's newer generation)."""
    one_head: bool = False
    """One key/value head for all, where heads are grouped."""
    broadcast: bool = False
    """That head is broadcast, which no fused kernel takes (Falcon 7B)."""
    scores_in_fp32: bool = False
    """Queries and keys are multiplied in FP32 whatever the weights' format (GPT-Neo)."""
    heads_first: bool = False
    """Queries are laid out head by head, as the concatenation behind a partial rotary embedding leaves them."""
    softcap: bool = False
    """A tanh that caps the scores (Gemma 2)."""
    dropout: float = 0.0
    softmax_in_fp32: bool = True


@dataclass(frozen=True, slots=True)
class Dense:
    """A feed-forward network of width `intermediate_size`."""

    gated: bool = True
    activation: Activation = "silu"
    bias: bool = False
    joint: bool = False
    """One matrix for gate and up."""
    inner_norm: Norm = "none"
    """A norm before the matrix down (BitNet)."""


@dataclass(frozen=True, slots=True)
class Block:
    """One kind of layer and the name of the size that counts it."""

    attention: Attention
    feed_forward: Dense | MixtureOfExperts
    repeats: str = "num_hidden_layers"
    placement: Placement = "pre"
    norm: Norm = "rms"
    residual_dropout: float = 0.0
    feed_dropout_only: bool = False
    """No dropout behind the attention, as in DistilBERT."""
    first: bool = False
    """No norm before the attention, as in ModernBERT's first layer."""
    suffix: str = ""
    """Appended to the names of this block's sizes, where layers of one model differ in width."""


class Layer(Protocol):
    """A kind of layer that records itself, where a block of attention and feed-forward network does not describe it."""

    @property
    def repeats(self) -> str:
        """The name of the size that counts it."""

    @property
    def suffix(self) -> str:
        """Appended to the names of its sizes, where layers of one model differ in width."""

    def record(self, tape: Tape, x: Tensor) -> Tensor:
        """Writes one layer down and returns the residual stream after it."""


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    """Which parts a decoder-only model has."""

    blocks: tuple[Block | Layer, ...]
    tied: bool
    rotary: bool = True
    positions: bool = False
    """Learned positions: a table of `position_rows`."""
    embedding_norm: bool = False
    embedding_dropout: float = 0.0
    embedding_width: bool = False
    """Word embeddings of width `word_embed_proj_dim`, projected to the hidden size and back before the head."""
    final_norm: bool = True
    norm: Norm = "rms"
    head_bias: bool = False
    head_scaled: bool = False
    """A number that the logits are multiplied by (Granite, Cohere)."""
    head_softcap: bool = False
    """A tanh that caps the logits (Gemma 2)."""
    mask_buffer: bool = False
    """The model holds a causal mask for all `max_position_embeddings` (GPT-BigCode)."""
    remainder: bool = False
    """Whether `unattributed_parameters` belong to no layer, as in shapes inferred from a bare count."""


def forward(tape: Tape, layout: DecoderLayout) -> None:
    """One forward pass with loss: embeddings, all blocks, final norm and head."""
    with tape.segment("embedding"), tape.module("model", "residual"):
        x, table = _embeddings(tape, layout)
    for block in layout.blocks:
        with tape.segment("layers" + block.suffix, named(block.repeats)), tape.module("model.layers", "residual"):
            x = decoder_layer(tape, x, block) if isinstance(block, Block) else block.record(tape, x)
    with tape.segment("head"):
        width = HIDDEN
        with tape.module("model", "residual"), tape.releasing():
            if layout.final_norm:
                x = norm(tape, layout.norm, "norm", x, HIDDEN)
            if layout.embedding_width:
                width = named("word_embed_proj_dim")
                with tape.module("project_out", "embedding_projection"):
                    x = tape.linear(x, HIDDEN, width)
        x = tape.record("hidden_states", (x,), x, passes=True)
        language_model_head(
            tape,
            x,
            width,
            VOCABULARY,
            table if layout.tied else None,
            bias=layout.head_bias,
            softcap=layout.head_softcap,
            scaled=layout.head_scaled,
        )


def _embeddings(tape: Tape, layout: DecoderLayout) -> tuple[Tensor, Weight]:
    width = named("word_embed_proj_dim") if layout.embedding_width else HIDDEN
    x, table = embedding(tape, "embed_tokens", VOCABULARY, width)
    if layout.embedding_width:
        with tape.module("project_in", "embedding_projection"):
            x = tape.linear(x, width, HIDDEN)
    if layout.rotary:
        rotary_table(tape, named("head_dim"))
    if layout.mask_buffer and not tape.kernels.fused:
        mask_buffer(tape)
    if layout.positions:
        x = position_embedding(tape, "embed_positions", named("position_rows"), HIDDEN, x)
    if layout.embedding_norm:
        x = norm(tape, layout.norm, "embed_norm", x, HIDDEN)
    if layout.remainder:
        with tape.module("rest", "unattributed"):
            rest = tape.weight("weight", named("unattributed_parameters"))
            tape.record("unattributed", (), tape.tensor(Size.of(0), tape.parameters), weights=(rest,))
    return tape.dropout(x, layout.embedding_dropout), table


def decoder_layer(tape: Tape, x: Tensor, block: Block) -> Tensor:
    """Attention and feed-forward network with their norms and additions, in the block's order."""

    def attend(given: Tensor) -> Tensor:
        dropout = 0.0 if block.feed_dropout_only else block.residual_dropout
        return tape.dropout(self_attention(tape, given, block), dropout)

    def feed(given: Tensor) -> Tensor:
        return tape.dropout(feed_forward_of(tape, given, block), block.residual_dropout)

    return arrange(tape, x, attend, feed, block.placement, block.norm, first=block.first)


def arrange(
    tape: Tape,
    x: Tensor,
    attend: Callable[[Tensor], Tensor],
    feed: Callable[[Tensor], Tensor],
    placement: Placement,
    kind: Norm,
    *,
    first: bool = False,
) -> Tensor:
    """Two parts of a layer with their norms and additions; `first` has no norm before `attend`."""
    if placement in ("parallel", "parallel-two-norms"):
        normed = norm(tape, kind, "input_layernorm", x, HIDDEN)
        other = norm(tape, kind, "post_attention_layernorm", x, HIDDEN) if placement != "parallel" else normed
        return tape.add(tape.add(x, attend(normed)), feed(other))
    for name, part in (("attention", attend), ("feed_forward", feed)):
        before = placement in ("pre", "sandwich") and not (first and name == "attention")
        out = part(norm(tape, kind, f"pre_{name}_norm", x, HIDDEN) if before else x)
        if placement in ("sandwich", "output"):
            out = norm(tape, kind, f"post_{name}_norm", out, HIDDEN)
        x = tape.add(x, out)
        if placement == "post":
            x = norm(tape, kind, f"{name}_norm", x, HIDDEN)
    return x


def self_attention(tape: Tape, x: Tensor, block: Block) -> Tensor:
    """An attention layer with its projections."""
    with tape.module("self_attn", "attention"):
        layout, heads = block.attention, heads_of(block)
        if layout.latent != "none":
            latent_queries = layout.latent == "queries-and-keys"
            query, key, value = latent_projections(
                tape, x, heads, latent_queries=latent_queries, bias=layout.bias, indexer=layout.indexer
            )
        else:
            query, key, value = projections(tape, x, block, heads)
        if layout.spread:
            heads = replace(heads, key_value=heads.query, grouped=False)
        if layout.mask_buffer and not tape.kernels.fused:
            mask_buffer(tape)
        if layout.sinks:
            sinks = tape.weight("sinks", heads.query)
            query = tape.record("sinks", (query,), query, weights=(sinks,), passes=True)
        if layout.differential:
            mixed = differential_attention(tape, query, key, value, heads, softmax_in_fp32=layout.softmax_in_fp32)
        else:
            mixed = attention(
                tape,
                query,
                key,
                value,
                heads,
                dropout=layout.dropout,
                softmax_in_fp32=layout.softmax_in_fp32,
                causal=layout.causal,
                window=layout.window,
                softcap=layout.softcap,
                heads_first=layout.heads_first,
                broadcast=layout.broadcast,
                scores_in_fp32=layout.scores_in_fp32,
            )
        width = heads.query * heads.value_size
        if layout.output_norm:
            mixed = norm(tape, "rms", "attn_sub_norm", mixed, width)
        if layout.gate != "none":
            mixed = output_gate(tape, x, query, mixed, layout, heads.query if layout.gate == "heads" else width)
        with tape.module("o_proj", "attention"):
            return tape.linear(mixed, width, HIDDEN, bias=layout.output_bias, split="row")


def mask_buffer(tape: Tape) -> None:
    """A causal mask for all positions, which the class holds."""
    positions = named("max_position_embeddings")
    mask = tape.tensor(positions * positions, "bool", differentiable=False)
    tape.record("causal_mask", (), tape.tensor(Size.of(0), "bool"), buffers=(mask,))


def output_gate(tape: Tape, x: Tensor, query: Tensor, mixed: Tensor, layout: Attention, width: Size) -> Tensor:
    """The sigmoid gate on what attention gives."""
    if layout.gate == "joint":
        gate = tape.record("split", (query,), tape.tensor(mixed.elements, query.format))
    else:
        with tape.module("output_gate", "attention"):
            gate = tape.linear(x, HIDDEN, width, split="column")
    return tape.multiply(mixed, tape.pointwise("sigmoid", gate, saves_output=True))


def heads_of(block: Block) -> Heads:
    """The heads of a block's attention."""
    layout, suffix = block.attention, block.suffix
    query = named("num_attention_heads" + suffix)
    if layout.latent != "none":
        size = named("qk_nope_head_dim") + named("qk_rope_head_dim")
        return Heads(query, query, size, named("v_head_dim"), grouped=False)
    key_value = named("num_key_value_heads" + suffix) if layout.grouped else query
    size = named("head_dim" + suffix)
    value_size = named("v_head_dim" + suffix) if layout.value_head else size
    return Heads(query, key_value, size, value_size, grouped=layout.grouped, one=layout.grouped and layout.one_head)


def projections(tape: Tape, x: Tensor, block: Block, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value: one linear layer each or a joint one, with norms and rotary embedding if there are any."""
    layout = block.attention
    widths = (heads.query * heads.size, heads.key_value * heads.size, heads.key_value * heads.value_size)
    if layout.gate == "joint":
        widths = (widths[0] * 2, *widths[1:])
    if layout.joint:
        with tape.module("qkv_proj", "attention"):
            joint = tape.linear(x, HIDDEN, widths[0] + widths[1] * 2, bias=layout.bias, split="column")
        if not layout.rotary and layout.query_key_norm == "none":
            return joint, joint, joint
        if layout.spread:
            widths = (widths[0],) * 3
        query, key = (tape.record("split", (joint,), tape.tensor(tape.tokens * w, joint.format)) for w in widths[:2])
        value = tape.copy(joint, tape.tokens * widths[2]) if layout.spread else joint
    else:
        made = []
        for name, width in zip(("q_proj", "k_proj", "v_proj"), widths, strict=True):
            with tape.module(name, "attention"):
                made.append(tape.linear(x, HIDDEN, width, bias=layout.bias, split="column"))
        query, key, value = made
    if layout.gate == "joint":
        query = tape.record("split", (query,), tape.tensor(tape.tokens * heads.query * heads.size, query.format))
    if layout.query_key_norm != "none":
        query = query_key_norm(tape, "q_norm", query, layout, heads.query, heads.size)
        key = query_key_norm(tape, "k_norm", key, layout, heads.key_value, heads.size)
    if layout.rotary:
        query, key = rotary(tape, query), rotary(tape, key)
    if tape.kernels.one_qkv_buffer and not heads.grouped:
        rest = tape.tensor(tape.tokens * (widths[1] + widths[2]), query.format, differentiable=False)
        query = tape.record("view", (query,), query, saves=(rest,), passes=True)
    return query, key, value


def query_key_norm(tape: Tape, name: str, x: Tensor, layout: Attention, count: Size, size: Size) -> Tensor:
    """A norm of queries or keys."""
    width = size if layout.query_key_norm == "head" else count * size
    rows = tape.tokens if layout.query_key_norm == "full" else tape.tokens * count
    return norm(tape, layout.query_key_norm_kind, name, x, width, rows)


def feed_forward_of(tape: Tape, x: Tensor, block: Block) -> Tensor:
    """A block's dense MLP, or its experts with what every token takes beside them."""
    layout = block.feed_forward
    if isinstance(layout, Dense):
        with tape.module("mlp", "mlp"):
            inner = named("intermediate_size" + block.suffix)
            return feed_forward(
                tape,
                x,
                HIDDEN,
                inner,
                gated=layout.gated,
                kind=layout.activation,
                bias=layout.bias,
                joint=layout.joint,
                inner_norm=layout.inner_norm,
            )
    return record_mixture(tape, x, layout)
