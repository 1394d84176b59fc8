"""Encoder-only transformers trained by masked language modelling: one forward pass for all of them.

The original transformer's blocks: a norm after each addition, biases everywhere; word, position and type embeddings
under one norm; a head of a dense layer, an activation and a norm before the tied vocabulary projection with its bias.
The head computes logits for all positions. A family whose embeddings, layers or head differ in more than a flag brings
its own part. The families stand in `bert`, `narrow_bert`, `deberta`, `rotary_encoders`, `sparse_encoders`,
`compact_encoders` and `xlnet`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from app.planning.families.decoder import HIDDEN, VOCABULARY, Attention, Block, Dense, decoder_layer
from app.planning.families.family import Family, Reader, Shapes
from app.planning.families.fields import LARGEST_LAYER_COUNT, Fields
from app.planning.families.read import Defaults
from app.planning.ledger import BATCH, Tape, Tensor, Weight
from app.planning.losses import language_model_head
from app.planning.modules import (
    Activation,
    Norm,
    activation,
    embedding,
    idle,
    norm,
    position_embedding,
    rotary_table,
    type_embedding,
)
from app.planning.sizes import named

MASKED = "masked language modelling"
EMBEDDING = named("embedding_size")
POSITIONS = named("position_rows")

BERT_LAYER = (
    ("self_attn", "attention"),
    ("q_proj", "self.query"),
    ("k_proj", "self.key"),
    ("v_proj", "self.value"),
    ("self_attn.o_proj", "output.dense"),
    ("mlp", ""),
    ("mlp.up_proj", "intermediate.dense"),
    ("mlp.down_proj", "output.dense"),
    ("pooler", "pooler.dense"),
)
BERT_MODULES = (*BERT_LAYER, ("transform", "cls.predictions.transform.dense"), ("lm_head", "cls.predictions.decoder"))
ROBERTA_MODULES = (*BERT_LAYER, ("transform", "lm_head.dense"), ("lm_head", "lm_head.decoder"))
ELECTRA_MODULES = (
    *BERT_LAYER,
    ("projection", "embeddings_project"),
    ("transform", "generator_predictions.dense"),
    ("lm_head", "generator_lm_head"),
)


def word_embeddings(tape: Tape, layout: "EncoderLayout") -> tuple[Tensor, Weight]:
    """Word, position and type embeddings under one norm, and a projection to the hidden size where they are narrow."""
    width = EMBEDDING if layout.projection else HIDDEN
    x, table = embedding(tape, "word_embeddings", VOCABULARY, width)
    if layout.positions:
        x = position_embedding(tape, "position_embeddings", POSITIONS, width, x, trainable=not layout.frozen_positions)
    for rows in layout.types:
        x = type_embedding(tape, rows, named(rows), width, x)
    if layout.rotary:
        rotary_table(tape, named("head_dim"))
    if layout.embedding_norm:
        x = norm(tape, layout.norm, "norm", x, width)
    x = tape.dropout(x, layout.dropout)
    if layout.projection:
        with tape.module("projection", "embedding_projection"):
            x = tape.linear(x, width, HIDDEN, bias=True)
    if layout.relative_heads:
        with tape.module("relative_attention_bias", "relative_position"):
            logits = tape.weight("weight", named("relative_attention_num_buckets") * named("num_attention_heads"))
            x = tape.record("relative", (x,), x, weights=(logits,), passes=True)
    return x, table


def masked_head(tape: Tape, layout: "EncoderLayout", x: Tensor, table: Weight) -> None:
    """A dense layer, an activation and a norm before the vocabulary projection and its bias."""
    width = named(layout.head_width)
    if layout.head_dense:
        with tape.releasing():
            with tape.module("transform", "head_other"):
                x = tape.linear(x, HIDDEN, width, bias=layout.head_dense_bias)
                x = activation(tape, layout.head_activation, x)
            x = norm(tape, layout.norm, "transform_norm", x, width)
    if layout.second_bias and not layout.tied:
        with tape.module("idle_bias", "head_other"):
            idle(tape, tape.weight("bias", VOCABULARY))
    language_model_head(
        tape,
        x,
        width,
        VOCABULARY,
        table if layout.tied else None,
        bias=layout.head_bias,
        loss_in_fp32=layout.loss_in_fp32,
    )


@dataclass(frozen=True, slots=True)
class EncoderLayout:
    """Which parts an encoder-only model has."""

    blocks: tuple[Block, ...]
    tied: bool
    norm: Norm
    head_activation: Activation
    positions: bool = True
    types: tuple[str, ...] = ()
    """Tables of types, each by the size that says how many rows it has."""
    rotary: bool = False
    frozen_positions: bool = False
    embedding_norm: bool = True
    projection: bool = False
    """Embeddings of width `embedding_size`, projected to the hidden size."""
    shared_layers: bool = False
    """ALBERT: `num_repeated_layers` more runs through the same weights."""
    relative_heads: bool = False
    """One table of relative positions for all layers: `relative_attention_num_buckets` logits per head (MPNet)."""
    final_norm: bool = False
    pooler: bool = False
    """A dense layer over the first token that the class always has."""
    head_width: str = "hidden_size"
    head_dense: bool = True
    head_bias: bool = True
    head_dense_bias: bool = True
    loss_in_fp32: bool = False
    """The class casts its logits to FP32 for the loss."""
    second_bias: bool = False
    """The class keeps the head's bias twice, as one tensor where the head is tied and as two where it is not."""
    dropout: float = 0.0
    embed: Callable[[Tape, "EncoderLayout"], tuple[Tensor, Weight]] = word_embeddings
    layer: Callable[[Tape, Tensor, Block], Tensor] = decoder_layer
    head: Callable[[Tape, "EncoderLayout", Tensor, Weight], None] = masked_head


def forward(tape: Tape, layout: EncoderLayout) -> None:
    """One forward pass with the loss over all positions."""
    with tape.segment("embedding"), tape.module("embeddings", "residual"):
        x, table = layout.embed(tape, layout)
    for block in layout.blocks:
        with tape.segment("layers" + block.suffix, named(block.repeats)), tape.module("encoder.layer", "residual"):
            x = layout.layer(tape, x, block)
        if layout.shared_layers:
            with (
                tape.segment("repeated layers", named("num_repeated_layers")),
                tape.sharing(),
                tape.module("encoder.layer", "residual"),
            ):
                x = layout.layer(tape, x, block)
    with tape.segment("head"):
        if layout.final_norm:
            x = norm(tape, layout.norm, "final_norm", x, HIDDEN)
        if layout.pooler:
            with tape.module("pooler", "mlp"):
                tape.pointwise("tanh", tape.linear(x, HIDDEN, HIDDEN, bias=True, tokens=BATCH), saves_output=True)
        layout.head(tape, layout, x, table)


def post_norm_layer(
    tape: Tape, x: Tensor, block: Block, attend: Callable[[Tensor], Tensor], feed: Callable[[Tensor], Tensor]
) -> Tensor:
    """A layer with a norm after each addition, around parts of its own."""
    for name, part in (("attention", attend), ("feed_forward", feed)):
        x = norm(tape, block.norm, f"{name}_norm", tape.add(x, tape.dropout(part(x), block.residual_dropout)), HIDDEN)
    return x


def encoder_sizes(
    fields: Fields, defaults: Defaults, names: Mapping[str, str] = MappingProxyType({})
) -> dict[str, int]:
    """The sizes of an encoder's blocks by their common names; `names` says how its config spells them.

    Raises UnsupportedModel at the field that is wrong.
    """

    def size(name: str, default: int | None, most: int = 2**24) -> int:
        return fields.count(names.get(name, name), default, most=most)

    hidden, heads = size("hidden_size", defaults.hidden_size), size("num_attention_heads", defaults.num_attention_heads)
    if hidden % heads:
        name = names.get("num_attention_heads", "num_attention_heads")
        raise fields.refuse(name, f"{name} {heads} does not divide {names.get('hidden_size', 'hidden_size')} {hidden}")
    return {
        "hidden_size": hidden,
        "intermediate_size": size("intermediate_size", defaults.intermediate_size or 4 * hidden),
        "num_hidden_layers": size("num_hidden_layers", defaults.num_hidden_layers, LARGEST_LAYER_COUNT),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "vocab_size": size("vocab_size", defaults.vocab_size),
        "max_position_embeddings": size("max_position_embeddings", defaults.max_position_embeddings),
    }


def bert_block(
    fields: Fields, *, hidden_act: str = "gelu", dropout: float = 0.1, names: Mapping[str, str] = MappingProxyType({})
) -> Block:
    """BERT's block: biases everywhere, a norm after each addition. `names` says how a config spells BERT's fields."""
    return Block(
        Attention(
            grouped=False,
            causal=False,
            bias=True,
            output_bias=True,
            rotary=False,
            dropout=fields.probability(
                names.get("attention_probs_dropout_prob", "attention_probs_dropout_prob"), default=dropout
            ),
            softmax_in_fp32=False,
        ),
        Dense(
            gated=False,
            activation=fields.activation(names.get("hidden_act", "hidden_act"), default=hidden_act),
            bias=True,
        ),
        placement="post",
        norm="layer",
        residual_dropout=fields.probability(names.get("hidden_dropout_prob", "hidden_dropout_prob"), default=dropout),
    )


def bert_layout(fields: Fields, sizes: dict[str, int], block: Block, *, types: int = 0) -> EncoderLayout:
    """BERT's layout around a block; `types` is the class's number of segment types, 0 where it has none."""
    if types:
        sizes["type_vocab_size"] = fields.count("type_vocab_size", types, most=100_000)
    sizes["position_rows"] = sizes["max_position_embeddings"]
    dense = block.feed_forward
    assert isinstance(dense, Dense)  # noqa: S101 - BERT's blocks have no experts; this tells mypy
    return EncoderLayout(
        (block,),
        tied=fields.flag("tie_word_embeddings", default=True),
        norm="layer",
        head_activation=dense.activation,
        types=("type_vocab_size",) if types else (),
        dropout=block.residual_dropout,
    )


def without_cross_attention(fields: Fields) -> None:
    """Refuses what would make BERT's class a decoder or give it other positions, and passes over old neutral fields."""
    fields.must_be("position_embedding_type", "absolute", because="relative positions add parameters")
    fields.must_be("add_cross_attention", False, because="cross-attention adds projections")
    fields.must_be("is_decoder", False, because="its class is another one")
    fields.ignore("classifier_dropout", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")
    fields.ignore("pooler_size_per_head", "pooler_type", "directionality", "output_past", "_num_labels", "num_labels")


def positions_after_padding(fields: Fields, sizes: Mapping[str, int], *, padding: int = 1) -> int:
    """The longest sequence of RoBERTa and its like, whose first position stands behind the padding token's."""
    first = fields.whole("pad_token_id", padding, most=2**31) + 1
    if first >= sizes["position_rows"]:
        raise fields.refuse("max_position_embeddings", f"no position is left behind pad_token_id {first - 1}")
    return sizes["position_rows"] - first


def encoder_family(
    model_type: str,
    class_name: str,
    read: Reader,
    module_names: tuple[tuple[str, str], ...],
    *,
    objective: str = MASKED,
) -> Family:
    """A family with this module's forward pass."""
    return Family(
        model_type,
        class_name,
        read,
        forward,
        module_names,
        family="encoder-only",
        pretraining_objective=objective,
    )


def shapes_of(layout: EncoderLayout, sizes: dict[str, int], longest: int | None = None) -> Shapes:
    """Shapes whose longest sequence is the number of positions unless said otherwise."""
    return Shapes(layout, sizes, sizes["max_position_embeddings"] if longest is None else longest)
