"""Encoder-decoder transformers: one forward pass for T5 and its like, with relative positions, and for BART and its
like, with tables of positions.

The encoder runs over the source (`sequence_length`), the decoder over the target (`target_sequence_length`); each
decoder layer attends to itself and to the encoder's output. The families stand in `t5`, `bart` and
`long_encoder_decoders`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from app.planning.families.decoder import HIDDEN, VOCABULARY
from app.planning.families.family import Family, Reader
from app.planning.ledger import SEQUENCE, Component, Linear, Tape, Tensor, Weight
from app.planning.losses import language_model_head
from app.planning.modules import (
    Activation,
    Heads,
    Norm,
    activation,
    attention,
    embed,
    embedding,
    feed_forward,
    idle,
    norm,
    position_embedding,
    softmax,
)
from app.planning.sizes import Size, named

DENOISING = "span corruption / denoising"
TARGET = named("target_sequence_length")
TARGET_VOCABULARY = named("decoder_vocab_size")


@dataclass(frozen=True, slots=True)
class Side:
    """The encoder or the decoder; its sizes have the prefix `encoder` or `decoder`."""

    name: str

    def size(self, name: str) -> Size:
        """One of its sizes."""
        return named(f"{self.name}_{name}")

    @property
    def heads(self) -> Heads:
        """The heads of its attention layers."""
        count, size = self.size("attention_heads"), self.size("head_dim")
        return Heads(count, count, size, size, grouped=False)


ENCODER, DECODER = Side("encoder"), Side("decoder")


def self_attention(tape: Tape, layout: "EncoderDecoderLayout", side: Side, x: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of one side to itself; `bias` stands for the distances of queries and keys."""
    with tape.module("self_attn", "attention"):
        query, key, value = (project(tape, layout, side, name, x) for name in ("q", "k", "v"))
        return attend(tape, layout, side, query, key, value, bias=bias, causal=side is DECODER)


def no_embedding(tape: Tape, layout: "EncoderDecoderLayout", side: Side, x: Tensor) -> Tensor:  # noqa: ARG001
    """Nothing beside the embeddings."""
    return x


@dataclass(frozen=True, slots=True)
class EncoderDecoderLayout:
    """Which parts an encoder-decoder model has."""

    tied: bool
    norm: Norm
    before: bool
    """Norms before each part (T5, mBART, Pegasus) or after each addition (BART, Marian)."""
    bias: bool
    gated: bool
    activation: Activation
    relative: Literal["none", "shared", "every-layer"]
    """A table of relative positions per stack, in its first layer or in every one (UMT5)."""
    positions: Literal["none", "learned", "fixed"]
    """Tables of positions on both sides; fixed ones get no gradient, and M2M-100's are no parameters at all."""
    embedding_norm: bool
    final_norm: bool
    residual_dropout: float
    attention_dropout: float
    attention_bias: bool = True
    target_positions: bool = False
    """A table of `target_position_rows` of its own for the decoder; else both have `position_rows`."""
    head_component: Component = "lm_head"
    head_offset: bool = False
    """A constant added to the logits, which the class holds as a buffer."""
    separate_embeddings: bool = False
    """A table of `decoder_vocab_size` words of its own for the decoder."""
    idle_embedding: bool = False
    """Untied, the class still holds the table that both sides would share."""
    stacks: tuple[str, ...] = ("encoder_layers", "decoder_layers")
    """The sizes that count the layers of each kind; with experts `encoder_dense_layers`, `encoder_sparse_layers`."""
    router_bias: bool = False
    softmax_in_fp32: bool = False
    inner_dropout: float = 0.0
    """Dropout behind the activation of the feed-forward network."""
    encoder_attention: Callable[[Tape, "EncoderDecoderLayout", Side, Tensor], Tensor] | None = None
    """The encoder's attention, where it does not see the whole source."""
    beside_embeddings: Callable[[Tape, "EncoderDecoderLayout", Side, Tensor], Tensor] = no_embedding
    """More parameters that stand beside a side's embeddings."""


def forward(tape: Tape, layout: EncoderDecoderLayout) -> None:
    """One forward pass with loss: source through the encoder, target through the decoder and the head."""
    with tape.segment("source embedding"), tape.module("encoder", "residual"):
        if layout.idle_embedding:
            with tape.module("shared", "word_embedding"):
                idle(tape, tape.matrix("weight", VOCABULARY, HIDDEN, split="vocabulary"))
        x, table = embedding(tape, "embed_tokens", VOCABULARY, HIDDEN)
        x = _after_embedding(tape, layout, x, ENCODER)
        bias = _relative_bias(tape, layout, ENCODER)
    x = _stack(tape, layout, ENCODER, x, None, bias)
    with tape.segment("end of encoder"), tape.module("encoder", "residual"):
        memory = norm(tape, layout.norm, "final_norm", x, HIDDEN) if layout.final_norm else tape.copy(x)
        memory = tape.dropout(memory, layout.residual_dropout if layout.relative != "none" else 0.0)
    with tape.over(TARGET):
        with tape.segment("target embedding"), tape.module("decoder", "residual"):
            y, target_table = _target_embedding(tape, layout, table)
            y = _after_embedding(tape, layout, y, DECODER)
            bias = _relative_bias(tape, layout, DECODER)
        y = _stack(tape, layout, DECODER, y, memory, bias)
        with tape.segment("head"):
            if layout.final_norm:
                with tape.module("decoder", "residual"):
                    y = norm(tape, layout.norm, "final_norm", y, HIDDEN)
            rows = TARGET_VOCABULARY if layout.separate_embeddings else VOCABULARY
            tied_to = target_table if layout.tied else None
            language_model_head(
                tape,
                y,
                HIDDEN,
                rows,
                tied_to,
                component=layout.head_component,
                loss_in_fp32=False,
                offset=layout.head_offset,
            )


def _target_embedding(tape: Tape, layout: EncoderDecoderLayout, table: Weight) -> tuple[Tensor, Weight]:
    if layout.separate_embeddings or layout.idle_embedding:
        rows = TARGET_VOCABULARY if layout.separate_embeddings else VOCABULARY
        return embedding(tape, "embed_tokens", rows, HIDDEN)
    return embed(tape, table, HIDDEN, tied=True), table


def _after_embedding(tape: Tape, layout: EncoderDecoderLayout, x: Tensor, side: Side) -> Tensor:
    if layout.positions != "none":
        rows = "target_position_rows" if layout.target_positions and side is DECODER else "position_rows"
        learned = layout.positions == "learned"
        x = position_embedding(tape, "embed_positions", named(rows), HIDDEN, x, trainable=learned)
    if layout.embedding_norm:
        x = norm(tape, layout.norm, "layernorm_embedding", x, HIDDEN)
    return tape.dropout(layout.beside_embeddings(tape, layout, side, x), layout.residual_dropout)


def _relative_bias(tape: Tape, layout: EncoderDecoderLayout, side: Side) -> Tensor | None:
    """The bias that a stack's layers share, if they do."""
    return relative_bias(tape, side, "relative_attention_bias") if layout.relative == "shared" else None


def relative_bias(tape: Tape, side: Side, name: str) -> Tensor:
    """A table of relative positions, one logit for each bucket of distances and head, looked up for every pair of
    positions; keeps the buckets.
    """
    with tape.module(name, "relative_position"):
        rows = tape.weight("weight", named("relative_attention_num_buckets") * side.size("attention_heads"))
        pairs = tape.sequence * tape.sequence
        buckets = tape.tensor(pairs, "int64", differentiable=False)
        logits = tape.tensor(pairs * side.size("attention_heads"), tape.parameters)
        return tape.record("embedding", (), logits, saves=(buckets,), weights=(rows,), in_block=True)


def _stack(
    tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor, memory: Tensor | None, bias: Tensor | None
) -> Tensor:
    for count in layout.stacks:
        if not count.startswith(side.name):
            continue
        with tape.segment(count.replace("_", " "), named(count)), tape.module(f"{side.name}.layer", "residual"):
            x = _layer(tape, layout, side, x, memory, bias, sparse="sparse" in count)
    return x


def _layer(
    tape: Tape,
    layout: EncoderDecoderLayout,
    side: Side,
    x: Tensor,
    memory: Tensor | None,
    bias: Tensor | None,
    *,
    sparse: bool,
) -> Tensor:

    def to_self(given: Tensor) -> Tensor:
        if side is ENCODER and layout.encoder_attention is not None:
            return layout.encoder_attention(tape, layout, side, given)
        own = layout.relative == "every-layer"
        table = relative_bias(tape, side, "self_attn.relative_attention_bias") if own else bias
        return self_attention(tape, layout, side, given, table)

    parts: list[tuple[str, Callable[[Tensor], Tensor]]] = [("self_attn", to_self)]
    if memory is not None:
        parts.append(("cross_attn", lambda given: _cross_attention(tape, layout, side, given, memory)))
    if sparse:
        parts.append(("experts", lambda given: _experts(tape, layout, side, given)))
    else:
        parts.append(("mlp", lambda given: _feed_forward(tape, layout, side, given)))
    for name, part in parts:
        given = norm(tape, layout.norm, f"{name}_norm", x, HIDDEN) if layout.before else x
        x = tape.add(x, tape.dropout(part(given), layout.residual_dropout))
        if not layout.before:
            x = norm(tape, layout.norm, f"{name}_norm", x, HIDDEN)
    return x


def _cross_attention(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor, memory: Tensor) -> Tensor:
    with tape.module("cross_attn", "attention"):
        query = project(tape, layout, side, "q", x)
        with tape.over(SEQUENCE):
            key, value = (project(tape, layout, side, name, memory) for name in ("k", "v"))
        none = None
        if layout.relative != "none":
            none = tape.outside("no bias", side.heads.query * tape.sequence * SEQUENCE, tape.compute)
        return attend(tape, layout, side, query, key, value, source=SEQUENCE, bias=none)


def project(tape: Tape, layout: EncoderDecoderLayout, side: Side, name: str, x: Tensor) -> Tensor:
    """Queries, keys or values of all heads."""
    with tape.module(name, "attention"):
        width = side.heads.query * side.heads.size
        return tape.linear(x, HIDDEN, width, bias=layout.attention_bias, split="column")


def attend(
    tape: Tape,
    layout: EncoderDecoderLayout,
    side: Side,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    source: Size | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Attention over `source` keys, and the projection of its result."""
    heads = side.heads
    mixed = attention(
        tape,
        query,
        key,
        value,
        heads,
        dropout=layout.attention_dropout,
        softmax_in_fp32=layout.softmax_in_fp32,
        source=source,
        bias=bias,
        causal=causal,
    )
    with tape.module("o", "attention"):
        return tape.linear(mixed, heads.query * heads.size, HIDDEN, bias=layout.attention_bias, split="row")


def _feed_forward(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:
    with tape.module("gated_mlp" if layout.gated else "mlp", "mlp"):
        inner = side.size("ffn_dim")
        return feed_forward(
            tape,
            x,
            HIDDEN,
            inner,
            gated=layout.gated,
            kind=layout.activation,
            bias=layout.bias,
            inner_dropout=layout.inner_dropout,
        )


def _experts(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:
    """A router, and experts that are modules of their own; each token goes to `num_experts_per_tok` of them."""
    count, inner = named("num_experts"), side.size("ffn_dim")
    routed = tape.tokens * named("num_experts_per_tok")
    with tape.module("experts_mlp", "routed_experts"):
        with tape.module("router", "router"):
            logits = tape.linear(x, HIDDEN, count, bias=layout.router_bias)
            chosen = softmax(tape, logits, in_fp32=True)
        given = tape.record("gather", (x,), tape.tensor(routed * HIDDEN, tape.compute))
        made = _expert_linear(tape, layout, "up_proj", given, HIDDEN, inner, routed)
        made = activation(tape, layout.activation, made)
        out = _expert_linear(tape, layout, "down_proj", made, inner, HIDDEN, routed)
        return tape.record("combine", (out, chosen), tape.tensor(x.elements, out.format), saves=(out, chosen))


def _expert_linear(
    tape: Tape, layout: EncoderDecoderLayout, name: str, x: Tensor, into: Size, out: Size, routed: Size
) -> Tensor:
    count = named("num_experts")
    with tape.module(name, "routed_experts"):
        weights = [tape.matrix("weight", into, out, copies=count, split="expert")]
        module = weights[0].name.removesuffix(".weight")
        if layout.bias:
            weights.append(tape.weight("bias", count * out, split="expert"))
        return tape.record(
            "linear",
            (x,),
            tape.tensor(routed * out, tape.compute),
            saves=(x,),
            weights=tuple(weights),
            casts=(tape.tensor(weights[0].elements, tape.compute),) if tape.casts_weights else (),
            multiply_adds=routed * into * out,
            linear=Linear(module, into, out, copies=count),
        )


def dense_and_sparse(sizes: dict[str, int], sparse: Mapping[str, int]) -> tuple[str, ...]:
    """Counts dense layers beside each side's sparse ones in `sizes`, and names the kinds that there are."""
    for side, count in sparse.items():
        sizes[f"{side}_sparse_layers"], sizes[f"{side}_dense_layers"] = count, sizes[f"{side}_layers"] - count
    names = (f"{side}_{kind}_layers" for side in sparse for kind in ("dense", "sparse"))
    return tuple(name for name in names if sizes[name])


def encoder_decoder_family(
    model_type: str,
    class_name: str,
    read: Reader,
    module_names: tuple[tuple[str, str], ...],
    *,
    objective: str = DENOISING,
) -> Family:
    """A family with this module's forward pass."""
    return Family(
        model_type,
        class_name,
        read,
        forward,
        module_names,
        family="encoder-decoder",
        pretraining_objective=objective,
    )
