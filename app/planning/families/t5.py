"""T5 and its like: relative positions, RMSNorm before each part, no biases. mT5, UMT5, LongT5, Switch Transformers.

ByT5 and MyT5 are T5 by their configs. Source: the modeling files of the same names in transformers.
"""

from dataclasses import replace

from app.planning.families.aliases import spelling
from app.planning.families.decoder import HIDDEN
from app.planning.families.encoder_decoder import (
    ENCODER,
    EncoderDecoderLayout,
    Side,
    attend,
    dense_and_sparse,
    encoder_decoder_family,
    project,
    relative_bias,
)
from app.planning.families.family import Reader, Shapes
from app.planning.families.fields import LARGEST_EXPERT_COUNT, LARGEST_LAYER_COUNT, Fields
from app.planning.ledger import SEQUENCE, Tape, Tensor
from app.planning.modules import ACTIVATIONS, norm
from app.planning.sizes import named, smallest

T5_MODULES = (
    ("self_attn", "SelfAttention"),
    ("cross_attn", "EncDecAttention"),
    ("mlp", "DenseReluDense"),
    ("gated_mlp", "DenseReluDense"),
    ("mlp.up_proj", "wi"),
    ("gated_mlp.gate_proj", "wi_0"),
    ("gated_mlp.up_proj", "wi_1"),
    ("down_proj", "wo"),
)
SWITCH_MODULES = (
    *T5_MODULES,
    ("experts_mlp", "mlp"),
    ("experts_mlp.router", "router.classifier"),
    ("experts_mlp.up_proj", "experts.wi"),
    ("experts_mlp.down_proj", "experts.wo"),
)


def t5_reader(vocabulary: int, inner: int, layers: int, heads: int, feed: str, *, every_layer: bool = False) -> Reader:
    """A reader of T5-like configs with these defaults."""

    def read(fields: Fields) -> Shapes:
        layout, sizes = _t5(fields, vocabulary, 512, inner, layers, heads, feed)
        if every_layer:
            fields.must_be("scalable_attention", True, because="it is known with true alone")
            layout = replace(layout, relative="every-layer")
        return Shapes(layout, sizes, longest_sequence=2**20)

    return read


def read_longt5(fields: Fields) -> Shapes:
    """LongT5: each token of the encoder sees its neighbours, and perhaps summaries of blocks."""
    layout, sizes = _t5(fields, 32128, 512, 2048, 6, 8, "relu")
    sizes["local_radius"] = fields.count("local_radius", 127)
    sizes["global_block_size"] = fields.count("global_block_size", 16)
    kind = fields.one_of("encoder_attention_type", ("local", "transient-global"), default="local")
    if kind == "local":
        layout = replace(layout, encoder_attention=local_attention)
    else:
        layout = replace(layout, encoder_attention=transient_global_attention, beside_embeddings=global_positions)
    return Shapes(layout, sizes, longest_sequence=2**20)


def local_attention(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:
    """Attention to the block around a token and its two neighbours."""
    with tape.module("self_attn", "attention"):
        query, key, value = (project(tape, layout, side, name, x) for name in ("q", "k", "v"))
        near = smallest(SEQUENCE, named("local_radius") * 3 + 3)
        return attend(tape, layout, side, query, key, value, source=near)


def transient_global_attention(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:
    """Local attention, and attention to the sums of all blocks, which have a norm."""
    scale = norm(tape, layout.norm, "global_input_layer_norm", x, HIDDEN)
    return local_attention(tape, layout, side, scale)


def global_positions(tape: Tape, layout: EncoderDecoderLayout, side: Side, x: Tensor) -> Tensor:  # noqa: ARG001
    """The encoder's second table of relative positions, between tokens and blocks."""
    if side is ENCODER:
        relative_bias(tape, side, "global_relative_attention_bias")
    return x


def read_switch_transformers(fields: Fields) -> Shapes:
    """Switch Transformers: T5 with experts in some layers of either side; a token takes one."""
    layout, sizes = _t5(fields, 32128, 768, 2048, 12, 12, "relu", experts=True)
    own = fields.count("num_layers", 12, most=LARGEST_LAYER_COUNT)
    decoder = own if fields.is_null("num_decoder_layers") else 12
    sizes["decoder_layers"] = fields.count("num_decoder_layers", decoder, most=LARGEST_LAYER_COUNT)
    sizes["num_experts"] = fields.count("num_experts", 8, most=LARGEST_EXPERT_COUNT)
    sizes["num_experts_per_tok"] = 1
    fields.ignore("expert_capacity", "router_dtype", "router_ignore_padding_tokens", "router_jitter_noise")
    fields.ignore("router_z_loss_coef", "router_aux_loss_coef", "add_router_probs")
    fields.ignore("router_type", "batch_prioritized_routing", "num_selected_experts")
    sparse = {}
    for side in ("encoder", "decoder"):
        layers = sizes[f"{side}_layers"]
        wanted = fields.whole(f"num_sparse_{side}_layers", 3)
        counted = own if side == "encoder" else layers
        step = fields.whole(f"{side}_sparse_step", counted // wanted if wanted else counted)
        sparse[side] = layers if step == 1 else len(range(1, layers, step)) if step else 0
    layout = replace(
        layout,
        stacks=dense_and_sparse(sizes, sparse),
        router_bias=fields.flag("router_bias", default=False),
        idle_embedding=not layout.tied,
    )
    return Shapes(layout, sizes, longest_sequence=2**20)


def _t5(
    fields: Fields,
    vocabulary: int,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    feed: str,
    *,
    experts: bool = False,
) -> tuple[EncoderDecoderLayout, dict[str, int]]:
    fields.ignore("n_positions", "output_past", "relative_attention_max_distance", "initializer_factor")
    fields.ignore("classifier_dropout", "scale_decoder_outputs")
    projection = fields.get("feed_forward_proj") or feed
    gated, _, act = str(projection).rpartition("-")
    if gated not in ("", "gated") or act not in ACTIVATIONS or (experts and gated):
        raise fields.refuse(
            "feed_forward_proj", f"feed_forward_proj {projection!r} is not known; it is relu or gated-gelu"
        )
    fields.must_be("is_gated_act", gated == "gated", because="it contradicts feed_forward_proj")
    fields.ignore("dense_act_fn")
    own = fields.count("num_layers", layers, most=LARGEST_LAYER_COUNT)
    count = fields.count("num_hidden_layers", own, most=LARGEST_LAYER_COUNT)
    a = fields.count(spelling(fields, "num_attention_heads", "num_heads"), heads)
    d = fields.count("d_kv" if experts else spelling(fields, "head_dim", "d_kv"), 64)
    width = fields.count("d_ff", inner)
    sizes = {
        "hidden_size": fields.count(spelling(fields, "hidden_size", "d_model"), hidden),
        "vocab_size": fields.count("vocab_size", vocabulary),
        "relative_attention_num_buckets": fields.count("relative_attention_num_buckets", 32),
        "encoder_layers": count,
        "decoder_layers": fields.count("num_decoder_layers", own, most=LARGEST_LAYER_COUNT),
        "num_hidden_layers": count,
        "num_attention_heads": a,
        "num_key_value_heads": a,
    }
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_attention_heads": a, f"{side}_head_dim": d, f"{side}_ffn_dim": width}
    layout = EncoderDecoderLayout(
        tied=fields.flag("tie_word_embeddings", default=True),
        norm="rms-t5",
        before=True,
        bias=False,
        gated=gated == "gated",
        activation="gelu-python" if act == "gelu" and gated else ACTIVATIONS[act],
        relative="shared",
        positions="none",
        embedding_norm=False,
        final_norm=True,
        residual_dropout=fields.probability("dropout_rate", default=0.1),
        attention_dropout=fields.probability("dropout_rate", default=0.1),
        inner_dropout=fields.probability("dropout_rate", default=0.1),
        attention_bias=False,
    )
    return layout, sizes


T5 = encoder_decoder_family("t5", "T5ForConditionalGeneration", t5_reader(32128, 2048, 6, 8, "relu"), T5_MODULES)
MT5 = encoder_decoder_family(
    "mt5", "MT5ForConditionalGeneration", t5_reader(250112, 1024, 8, 6, "gated-gelu"), T5_MODULES
)
UMT5 = encoder_decoder_family(
    "umt5", "UMT5ForConditionalGeneration", t5_reader(250112, 1024, 8, 6, "gated-gelu", every_layer=True), T5_MODULES
)
LONGT5 = encoder_decoder_family("longt5", "LongT5ForConditionalGeneration", read_longt5, T5_MODULES)
SWITCH_TRANSFORMERS = encoder_decoder_family(
    "switch_transformers", "SwitchTransformersForConditionalGeneration", read_switch_transformers, SWITCH_MODULES
)
