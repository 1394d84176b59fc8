"""Encoder-decoders whose encoder sees a long source through windows and blocks: LED, BigBird-Pegasus, Pegasus-X.

Their decoders are BART's. Source: the modeling files of the same names in transformers.
"""

from dataclasses import replace

from app.planning.families.bart import BART_MODULES, BartKind, bart_parts
from app.planning.families.decoder import HIDDEN
from app.planning.families.encoder_decoder import (
    ENCODER,
    EncoderDecoderLayout,
    Side,
    attend,
    encoder_decoder_family,
    project,
)
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.windows import attention_window
from app.planning.ledger import SEQUENCE, Tape, Tensor
from app.planning.modules import attention, idle_linear, norm
from app.planning.sizes import Size, named, smallest

GAP_SENTENCES = "gap sentence generation"


def read_led(fields: Fields) -> Shapes:
    """LED: BART with Longformer's attention in the encoder, and tables of positions of different length."""
    kind = BartKind(positions=16384, offset=0, positions_name="max_encoder_position_embeddings")
    layout, sizes = bart_parts(fields, kind)
    sizes["target_position_rows"] = fields.count("max_decoder_position_embeddings", 1024)
    sizes["attention_window"] = attention_window(fields, sizes["encoder_layers"])
    fields.ignore("attention_dilation", "attention_mode", "autoregressive", "gradient_checkpointing")
    layout = replace(layout, target_positions=True, encoder_attention=longformer_attention)
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def longformer_attention(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:
    """Attention inside a window; the matrices for global tokens rest while there are none."""
    window = smallest(SEQUENCE, named("attention_window") + 1)
    with tape.module("windowed_attn", "attention"):
        out = _separate_attention(tape, layout, side, x, "longformer_self_attn", window, bias=True)
        for name in ("query_global", "key_global", "value_global"):
            with tape.module(f"longformer_self_attn.{name}", "attention"):
                idle_linear(tape, HIDDEN, HIDDEN)
        return out


def _separate_attention(
    tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor, inside: str, source: Size, *, bias: bool
) -> Tensor:
    made = []
    for name in ("query", "key", "value"):
        with tape.module(f"{inside}.{name}", "attention"):
            made.append(tape.linear(x, HIDDEN, HIDDEN, bias=bias, split="column"))
    mixed = attention(
        tape,
        made[0],
        made[1],
        made[2],
        side.heads,
        dropout=layout.attention_dropout,
        softmax_in_fp32=True,
        source=source,
    )
    with tape.module("output", "attention"):
        return tape.linear(mixed, HIDDEN, HIDDEN, bias=bias, split="row")


def read_bigbird_pegasus(fields: Fields) -> Shapes:
    """BigBird-Pegasus: blocks of the source see their neighbours, the ends and random others."""
    kind = BartKind(
        vocabulary=96103,
        positions=4096,
        layers=(16, 16),
        activation="gelu_new",
        before=True,
        embedding_norm=False,
        final_norm=True,
        offset=0,
    )
    layout, sizes = bart_parts(fields, kind)
    sizes["block_size"] = fields.count("block_size", 64)
    blocks = 5 + fields.whole("num_random_blocks", 3)
    sizes["seen_blocks"] = blocks
    whole = (
        fields.one_of("attention_type", ("block_sparse", "original_full"), default="block_sparse") == "original_full"
    )
    layout = replace(
        layout,
        attention_bias=fields.flag("use_bias", default=False),
        encoder_attention=full_attention if whole else block_attention,
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def full_attention(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:
    """Attention to the whole source, under BigBird's names."""
    with tape.module("windowed_attn", "attention"):
        return _separate_attention(tape, layout, side, x, "self", SEQUENCE, bias=layout.attention_bias)


def block_attention(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:
    """Attention to some blocks."""
    seen = smallest(SEQUENCE, named("block_size") * named("seen_blocks"))
    with tape.module("windowed_attn", "attention"):
        return _separate_attention(tape, layout, side, x, "self", seen, bias=layout.attention_bias)


def read_pegasus_x(fields: Fields) -> Shapes:
    """Pegasus-X: blocks of the source, and learned global tokens that all of them see."""
    kind = BartKind(
        vocabulary=96103,
        positions=16384,
        layers=(16, 16),
        before=True,
        embedding_norm=False,
        final_norm=True,
        table="none",
    )
    layout, sizes = bart_parts(fields, kind)
    sizes["block_size"] = fields.count("block_size", 512)
    sizes["num_global_tokens"] = fields.count("num_global_tokens", 32)
    fields.ignore("stagger_local_blocks")
    layout = replace(
        layout, attention_bias=False, encoder_attention=global_local_attention, beside_embeddings=global_tokens
    )
    return Shapes(layout, sizes, longest_sequence=2**20)


def global_local_attention(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:
    """Attention inside a block and to the global tokens, which have a norm of their own."""
    x = norm(tape, layout.norm, "global_self_attn_layer_norm", x, HIDDEN)
    with tape.module("self_attn", "attention"):
        query, key, value = (project(tape, layout, side, name, x) for name in ("q", "k", "v"))
        seen = smallest(SEQUENCE, named("block_size") + named("num_global_tokens"))
        return attend(tape, layout, side, query, key, value, source=seen)


def global_tokens(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:  # noqa: ARG001
    """The encoder's table of global tokens."""
    if side is not ENCODER:
        return x
    with tape.module("embed_global", "word_embedding"):
        rows = tape.weight("weight", named("num_global_tokens") * HIDDEN)
        return tape.record("global_tokens", (x,), x, weights=(rows,), passes=True)


LONG_MODULES = (*BART_MODULES, ("windowed_attn", "self_attn"))
LED = encoder_decoder_family("led", "LEDForConditionalGeneration", read_led, LONG_MODULES)
BIGBIRD_PEGASUS = encoder_decoder_family(
    "bigbird_pegasus",
    "BigBirdPegasusForConditionalGeneration",
    read_bigbird_pegasus,
    LONG_MODULES,
    objective=GAP_SENTENCES,
)
PEGASUS_X = encoder_decoder_family(
    "pegasus_x", "PegasusXForConditionalGeneration", read_pegasus_x, LONG_MODULES, objective=GAP_SENTENCES
)
