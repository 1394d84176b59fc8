"""T5Gemma: Gemma 2's blocks as an encoder and a decoder, which may differ in every size.

Source: transformers modeling_t5gemma.py.
"""

from dataclasses import dataclass

from app.planning.families.encoder_decoder import TARGET
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, is_grouped
from app.planning.ledger import SEQUENCE, Tape, Tensor, Weight
from app.planning.losses import language_model_head
from app.planning.modules import Activation, Heads, attention, embedding, feed_forward, norm, rotary, rotary_table
from app.planning.sizes import Size, named

T5GEMMA_DEFAULTS = Defaults(256000, 2304, 26, 8, 8192, intermediate_size=9216, num_key_value_heads=4, head_dim=256)


@dataclass(frozen=True, slots=True)
class Side:
    """The encoder or the decoder: its sizes have the prefix `name`."""

    name: str
    grouped: bool
    bias: bool
    activation: Activation

    def size(self, name: str) -> Size:
        """One of its sizes."""
        return named(f"{self.name}_{name}")

    @property
    def width(self) -> Size:
        """The width of its residual stream."""
        return self.size("hidden_size")

    @property
    def heads(self) -> Heads:
        """The heads of its attention layers."""
        size = self.size("head_dim")
        return Heads(
            self.size("num_attention_heads"), self.size("num_key_value_heads"), size, size, grouped=self.grouped
        )


@dataclass(frozen=True, slots=True)
class T5GemmaLayout:
    """Which parts a T5Gemma model has."""

    encoder: Side
    decoder: Side
    tied: bool
    dropout: float
    attention_dropout: float


def forward(tape: Tape, layout: T5GemmaLayout) -> None:
    """One forward pass with loss: source through the encoder, target through the decoder and the head."""
    x, _ = _embed(tape, layout, layout.encoder, "source embedding")
    x = _stack(tape, layout, layout.encoder, x, None)
    with tape.segment("end of encoder"), tape.module("encoder", "residual"):
        memory = tape.dropout(norm(tape, "rms", "norm", x, layout.encoder.width), layout.dropout)
    with tape.over(TARGET):
        y, table = _embed(tape, layout, layout.decoder, "target embedding")
        y = _stack(tape, layout, layout.decoder, y, memory)
        with tape.segment("head"):
            width = layout.decoder.width
            y = tape.dropout(norm(tape, "rms", "norm", y, width), layout.dropout)
            language_model_head(tape, y, width, layout.decoder.size("vocab_size"), table if layout.tied else None)


def _embed(tape: Tape, layout: T5GemmaLayout, side: Side, segment: str) -> tuple[Tensor, Weight]:
    with tape.segment(segment), tape.module(side.name, "residual"):
        x, table = embedding(tape, "embed_tokens", side.size("vocab_size"), side.width)
        rotary_table(tape, side.size("head_dim"))
        return tape.dropout(tape.scale(x), layout.dropout), table


def _stack(tape: Tape, layout: T5GemmaLayout, side: Side, x: Tensor, memory: Tensor | None) -> Tensor:
    with (
        tape.segment(f"{side.name} layers", side.size("num_hidden_layers")),
        tape.module(f"{side.name}.layers", "residual"),
    ):
        given = norm(tape, "rms", "pre_self_attn_layernorm", x, side.width)
        x = _add(tape, layout, side, "post_self_attn_layernorm", x, _attention(tape, layout, side, given, None))
        if memory is not None:
            given = norm(tape, "rms", "pre_cross_attn_layernorm", x, side.width)
            out = _attention(tape, layout, side, given, memory)
            x = _add(tape, layout, side, "post_cross_attn_layernorm", x, out)
        given = norm(tape, "rms", "pre_feedforward_layernorm", x, side.width)
        with tape.module("mlp", "mlp"):
            inner = side.size("intermediate_size")
            out = feed_forward(tape, given, side.width, inner, gated=True, kind=side.activation, bias=False)
        return _add(tape, layout, side, "post_feedforward_layernorm", x, out)


def _add(tape: Tape, layout: T5GemmaLayout, side: Side, name: str, x: Tensor, out: Tensor) -> Tensor:
    return tape.add(x, tape.dropout(norm(tape, "rms", name, out, side.width), layout.dropout))


def _attention(tape: Tape, layout: T5GemmaLayout, side: Side, x: Tensor, memory: Tensor | None) -> Tensor:
    heads = side.heads
    queries, keys = heads.query * heads.size, heads.key_value * heads.size
    with tape.module("self_attn" if memory is None else "cross_attn", "attention"):
        query = _project(tape, side, "q_proj", x, side.width, queries)
        if memory is None:
            key, value = (_project(tape, side, name, x, side.width, keys) for name in ("k_proj", "v_proj"))
            query, key = rotary(tape, query), rotary(tape, key)
        else:
            with tape.over(SEQUENCE):
                width = layout.encoder.width
                key, value = (_project(tape, side, name, memory, width, keys) for name in ("k_proj", "v_proj"))
        mixed = attention(
            tape,
            query,
            key,
            value,
            heads,
            dropout=layout.attention_dropout,
            softmax_in_fp32=True,
            source=None if memory is None else SEQUENCE,
        )
        with tape.module("o_proj", "attention"):
            return tape.linear(mixed, queries, side.width, bias=side.bias, split="row")


def _project(tape: Tape, side: Side, name: str, x: Tensor, into: Size, out: Size) -> Tensor:
    with tape.module(name, "attention"):
        return tape.linear(x, into, out, bias=side.bias, split="column")


def read_t5gemma(fields: Fields) -> Shapes:
    """T5Gemma: a whole Gemma config for each side."""
    sizes: dict[str, int] = {}
    encoder, decoder = (_side(fields.section(name), name, sizes) for name in ("encoder", "decoder"))
    for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
        sizes[name] = sizes[f"encoder_{name}"]
    fields.ignore("classifier_dropout_rate", "vocab_size")
    layout = T5GemmaLayout(
        encoder,
        decoder,
        tied=fields.flag("tie_word_embeddings", default=True),
        dropout=fields.probability("dropout_rate", default=0.0),
        attention_dropout=fields.probability("attention_dropout", default=0.0),
    )
    return Shapes(layout, sizes, sizes["encoder_max_position_embeddings"])


def _side(fields: Fields, name: str, sizes: dict[str, int]) -> Side:
    own = decoder_sizes(fields, T5GEMMA_DEFAULTS)
    sizes |= {f"{name}_{size}": value for size, value in own.items()}
    fields.ignore("query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping", "cache_implementation")
    fields.ignore("dropout_rate", "attention_dropout", "cross_attention_hidden_size", "add_cross_attention")
    fields.ignore("tie_word_embeddings", "tie_encoder_decoder", "hidden_act", "is_decoder")
    return Side(
        name,
        is_grouped(own),
        fields.flag("attention_bias", default=False),
        fields.activation("hidden_activation", default="gelu_pytorch_tanh"),
    )


T5GEMMA = Family(
    "t5gemma",
    "T5GemmaForConditionalGeneration",
    read_t5gemma,
    forward,
    (("lm_head", "lm_head.out_proj"),),
    family="encoder-decoder",
    pretraining_objective="prefix language modelling, or span corruption / denoising",
)
