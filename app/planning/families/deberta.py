"""DeBERTa, first and second version: attention between contents and relative positions.

Queries and keys of positions are made from one table for all layers, by the matrices of the contents or by their own.
Source: transformers modeling_deberta.py, modeling_deberta_v2.py; DeBERTa-v3 is the second version's class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from app.planning.families.decoder import HIDDEN, VOCABULARY, Block, feed_forward_of, heads_of
from app.planning.families.encoder import (
    BERT_MODULES,
    EMBEDDING,
    POSITIONS,
    EncoderLayout,
    bert_block,
    bert_layout,
    encoder_family,
    encoder_sizes,
    post_norm_layer,
    shapes_of,
    without_cross_attention,
)
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults
from app.planning.ledger import BATCH, Tape, Tensor, Weight
from app.planning.modules import (
    activation,
    attention,
    embedding,
    norm,
    position_embedding,
    type_embedding,
)
from app.planning.sizes import named

DEBERTA_MODULES = (
    ("self_attn", "attention"),
    ("qkv_proj", "self.in_proj"),
    ("pos_k_proj", "self.pos_proj"),
    ("pos_q_proj", "self.pos_q_proj"),
    *BERT_MODULES[4:],
)
DEBERTA_V2_MODULES = (
    ("self_attn", "attention"),
    ("q_proj", "self.query_proj"),
    ("k_proj", "self.key_proj"),
    ("v_proj", "self.value_proj"),
    ("pos_k_proj", "self.pos_key_proj"),
    ("pos_q_proj", "self.pos_query_proj"),
    *BERT_MODULES[4:],
)
ROWS = named("relative_rows")


@dataclass(frozen=True, slots=True)
class Embeddings:
    """DeBERTa's embeddings, and its table of relative positions where it has one."""

    narrow: bool
    """Embeddings of width `embedding_size`, projected to the hidden size before the norm."""
    relative: bool
    relative_norm: bool

    def __call__(self, tape: Tape, layout: EncoderLayout) -> tuple[Tensor, Weight]:
        """Records it on the tape."""
        width = EMBEDDING if self.narrow else HIDDEN
        x, table = embedding(tape, "word_embeddings", VOCABULARY, width)
        if layout.positions:
            x = position_embedding(tape, "position_embeddings", POSITIONS, width, x)
        for rows in layout.types:
            x = type_embedding(tape, "token_type_embeddings", named(rows), width, x)
        if self.narrow:
            with tape.module("embed_proj", "other"):
                x = tape.linear(x, width, HIDDEN)
        x = tape.dropout(norm(tape, layout.norm, "norm", x, HIDDEN), layout.dropout)
        if self.relative:
            with tape.module("rel_embeddings", "relative_position"):
                distances = tape.weight("weight", ROWS * HIDDEN)
                x = tape.record("relative", (x,), x, weights=(distances,), passes=True)
        if self.relative_norm:
            with tape.module("rel_norm", "norm"):
                scale = tuple(tape.weight(name, HIDDEN) for name in ("weight", "bias"))
                x = tape.record("relative_norm", (x,), x, weights=scale, passes=True)
        return x, table


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of DeBERTa: which pairs of contents and positions its attention scores, and with which matrices."""

    content_to_position: bool
    position_to_content: bool
    shared: bool
    """Positions go through the matrices of the contents."""
    joint: bool
    """The first version: one matrix for query, key and value, and two biases beside it."""
    talking: bool = False
    """Matrices between the heads, on scores and on weights."""
    convolution: bool = False
    """A convolution beside the first layer, with a norm over both."""

    def __call__(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        """Records it on the tape."""
        out = post_norm_layer(
            tape,
            x,
            block,
            lambda given: self._attend(tape, given, block),
            lambda given: feed_forward_of(tape, given, block),
        )
        return self._convolve(tape, x, out, block) if self.convolution and block.first else out

    def _attend(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        heads = heads_of(block)
        with tape.module("self_attn", "attention"):
            query, key, value = self._joint(tape, x) if self.joint else self._separate(tape, x)
            rate = block.residual_dropout
            found = []
            if self.content_to_position:
                found.append(self._positions(tape, query, "pos_k_proj", rate, bias=not self.joint))
            if self.position_to_content:
                found.append(self._positions(tape, key, "pos_q_proj", rate, bias=True))
            if self.talking:
                self._between_heads(tape, "head_logits_proj")
                self._between_heads(tape, "head_weights_proj")
            bias = tape.add(*found) if len(found) > 1 else found[0] if found else None
            if bias is not None:
                mask = tape.tensor(tape.tokens * tape.sequence, "bool", differentiable=False)
                bias = tape.record("masked_fill", (bias,), tape.tensor(bias.elements, bias.format), saves=(mask,))
            mixed = attention(
                tape,
                query,
                tape.scale(key),
                value,
                heads,
                dropout=block.attention.dropout,
                softmax_in_fp32=False,
                bias=bias,
            )
            with tape.module("o_proj", "attention"):
                return tape.linear(mixed, HIDDEN, HIDDEN, bias=True, split="row")

    def _separate(self, tape: Tape, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = []
        for name in ("q_proj", "k_proj", "v_proj"):
            with tape.module(name, "attention"):
                made.append(tape.linear(x, HIDDEN, HIDDEN, bias=True, split="column"))
        return made[0], made[1], made[2]

    def _joint(self, tape: Tape, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with tape.module("qkv_proj", "attention"):
            joint = tape.linear(x, HIDDEN, HIDDEN * 3, split="column")
        biases = tuple(tape.weight(name, HIDDEN) for name in ("q_bias", "v_bias"))
        width = tape.tokens * HIDDEN
        query = tape.record("add", (joint,), tape.tensor(width, joint.format), weights=biases[:1], passes=True)
        value = tape.record("add", (joint,), tape.tensor(width, joint.format), weights=biases[1:], passes=True)
        return query, tape.record("split", (joint,), tape.tensor(width, joint.format)), value

    def _positions(self, tape: Tape, content: Tensor, name: str, dropout: float, *, bias: bool) -> Tensor:
        """Queries or keys of the relative positions, their products with the contents of all tokens, and of those the
        one that stands for each distance; gathering keeps the products and the distances.
        """
        given = tape.dropout(tape.tensor(ROWS * HIDDEN, tape.parameters), dropout)
        if self.shared:
            given = tape.to(given, tape.compute)
            made = tape.tensor(ROWS * HIDDEN, tape.compute)
            made = tape.record("positions", (given,), made, saves=(given,), multiply_adds=ROWS * HIDDEN * HIDDEN)
        else:
            with tape.module(name, "attention"):
                made = tape.linear(given, HIDDEN, HIDDEN, bias=bias, tokens=ROWS)
        repeated = tape.copy(made, BATCH * ROWS * HIDDEN)
        heads = named("num_attention_heads")
        products = tape.matmul(content, repeated, tape.tokens * heads * ROWS, tape.tokens * HIDDEN * ROWS)
        distances = tape.tensor(tape.sequence * tape.sequence, "int64", differentiable=False)
        scores = tape.tensor(tape.tokens * heads * tape.sequence, products.format)
        return tape.scale(tape.record("gather", (products,), scores, saves=(products, distances)))

    def _between_heads(self, tape: Tape, name: str) -> None:
        heads = named("num_attention_heads")
        with tape.module(name, "attention"):
            pairs = tape.tokens * tape.sequence
            tape.linear(tape.tensor(pairs * heads, tape.compute), heads, heads, tokens=pairs)

    def _convolve(self, tape: Tape, x: Tensor, out: Tensor, block: Block) -> Tensor:
        kernel, per_group = named("conv_kernel_size"), named("conv_group_width")
        with tape.module("conv", "other"):
            weights = (tape.weight("weight", HIDDEN * per_group * kernel), tape.weight("bias", HIDDEN))
            made = tape.record(
                "conv1d",
                (x,),
                tape.tensor(x.elements, tape.compute),
                saves=(x,),
                weights=weights,
                multiply_adds=tape.tokens * HIDDEN * per_group * kernel,
            )
            made = activation(tape, "gelu", tape.dropout(made, block.residual_dropout))
        return norm(tape, block.norm, "conv_norm", tape.add(out, made), HIDDEN)


def read_deberta(fields: Fields) -> Shapes:
    """DeBERTa's first version."""
    sizes = _sizes(fields, Defaults(50265, 768, 12, 12, 512, intermediate_size=3072))
    relative = fields.flag("relative_attention", default=False)
    sizes["relative_rows"] = 2 * _longest_distance(fields, sizes)
    kinds = _kinds(fields) if relative else ()
    fields.ignore("pos_att_type")
    layer = Layer(
        "c2p" in kinds,
        "p2c" in kinds,
        shared=False,
        joint=True,
        talking=fields.flag("talking_head", default=False),
    )
    return _shapes(fields, sizes, layer, relative=relative, relative_norm=False)


def read_deberta_v2(fields: Fields) -> Shapes:
    """DeBERTa-v2 and v3: buckets of positions, shared matrices, and in the large ones a convolution."""
    sizes = _sizes(fields, Defaults(128100, 1536, 24, 24, 512, intermediate_size=6144))
    fields.must_be("attention_head_size", sizes["head_dim"], because="its heads have another width")
    relative = fields.flag("relative_attention", default=False)
    buckets = fields.get("position_buckets")
    usable = isinstance(buckets, int) and not isinstance(buckets, bool) and buckets > 0
    rows = fields.count("position_buckets", None) if usable else _longest_distance(fields, sizes)
    sizes["relative_rows"] = 2 * rows
    shared = fields.flag("share_att_key", default=False)
    kinds = _kinds(fields) if relative else ()
    fields.ignore("pos_att_type", "max_relative_positions", "conv_act")
    sizes["conv_kernel_size"] = fields.whole("conv_kernel_size", 0, most=1024)
    groups = fields.count("conv_groups", 1, most=sizes["hidden_size"])
    if sizes["hidden_size"] % groups:
        raise fields.refuse("conv_groups", f"conv_groups {groups} does not divide hidden_size {sizes['hidden_size']}")
    sizes["conv_group_width"] = sizes["hidden_size"] // groups
    layer = Layer("c2p" in kinds, "p2c" in kinds, shared=shared, joint=False, convolution=sizes["conv_kernel_size"] > 0)
    norms = fields.get("norm_rel_ebd")
    normed = isinstance(norms, str) and "layer_norm" in [kind.strip() for kind in norms.lower().split("|")]
    return _shapes(fields, sizes, layer, relative=relative, relative_norm=normed)


def _sizes(fields: Fields, defaults: Defaults) -> dict[str, int]:
    sizes = encoder_sizes(fields, defaults)
    without_cross_attention(fields)
    fields.must_be("legacy", True, because="its head has another form")
    fields.ignore("pooler_dropout", "pooler_hidden_act", "pooler_hidden_size", "padding_idx")
    sizes["embedding_size"] = fields.count("embedding_size", sizes["hidden_size"])
    return sizes


def _longest_distance(fields: Fields, sizes: Mapping[str, int]) -> int:
    longest = fields.get("max_relative_positions")
    if isinstance(longest, int) and longest < 1:
        return sizes["max_position_embeddings"]
    return fields.count("max_relative_positions", sizes["max_position_embeddings"])


def _kinds(fields: Fields) -> tuple[str, ...]:
    """Which pairs are scored: `p2c|c2p` in old files, a list in newer ones."""
    given = fields.get("pos_att_type")
    kinds = given.lower().split("|") if isinstance(given, str) else given or []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise fields.refuse("pos_att_type", "pos_att_type must be a list of c2p and p2c")
    return tuple(kind.strip() for kind in kinds)


def _shapes(fields: Fields, sizes: dict[str, int], layer: Layer, *, relative: bool, relative_norm: bool) -> Shapes:
    positions = fields.flag("position_biased_input", default=True)
    types = fields.whole("type_vocab_size", 0, most=100_000)
    layout = bert_layout(fields, sizes, bert_block(fields), types=types)
    if not positions:
        del sizes["position_rows"]
    narrow = sizes["embedding_size"] != sizes["hidden_size"]
    blocks = layout.blocks
    if layer.convolution:
        sizes["num_first_layers"] = 1
        sizes["num_later_layers"] = sizes["num_hidden_layers"] - 1
        later = replace(blocks[0], repeats="num_later_layers")
        first = replace(blocks[0], repeats="num_first_layers", first=True)
        blocks = (first, later) if sizes["num_later_layers"] else (first,)
    layout = replace(
        layout,
        blocks=blocks,
        positions=positions,
        head_width="embedding_size" if narrow else "hidden_size",
        second_bias=True,
        embed=Embeddings(narrow, relative, relative_norm),
        layer=layer,
    )
    return shapes_of(layout, sizes)


DEBERTA = encoder_family("deberta", "DebertaForMaskedLM", read_deberta, DEBERTA_MODULES)
DEBERTA_V2 = encoder_family("deberta-v2", "DebertaV2ForMaskedLM", read_deberta_v2, DEBERTA_V2_MODULES)
