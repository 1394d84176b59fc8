"""Encoders for small machines, whose layers have parts of their own: MobileBERT and ConvBERT.

Source: transformers modeling_mobilebert.py, modeling_convbert.py.
"""

from dataclasses import dataclass, replace

from app.planning.families.decoder import HIDDEN, VOCABULARY, Block, Dense
from app.planning.families.encoder import (
    BERT_MODULES,
    ELECTRA_MODULES,
    EMBEDDING,
    POSITIONS,
    EncoderLayout,
    bert_block,
    bert_layout,
    encoder_family,
    encoder_sizes,
    masked_head,
    post_norm_layer,
    shapes_of,
    without_cross_attention,
)
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults
from app.planning.ledger import Tape, Tensor, Weight
from app.planning.modules import (
    Activation,
    Heads,
    activation,
    attention,
    bare_matrix,
    embedding,
    feed_forward,
    norm,
    position_embedding,
    type_embedding,
)
from app.planning.sizes import Size, named

INNER = named("intermediate_size")
TRUE = named("true_hidden_size")
HEADS, HEAD_DIM, KERNEL = named("num_attention_heads"), named("head_dim"), named("conv_kernel_size")
MOBILEBERT_MODULES = (("up_proj", "intermediate.dense"), ("down_proj", "output.dense"), *BERT_MODULES[-2:])


@dataclass(frozen=True, slots=True)
class MobileLayer:
    """MobileBERT's layer: narrow attention and several narrow feed-forward networks between two bottlenecks."""

    bottleneck: bool
    narrow_values: bool
    """Values come from the narrow stream too."""
    shared: bool
    """Queries and keys have a bottleneck of their own."""
    networks: int
    kind: Activation

    def __call__(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        """Records it on the tape."""
        stream, query_input = x, x
        if self.bottleneck:
            stream = query_input = self._narrow(tape, x, "bottleneck.input")
            if self.shared:
                with tape.module("for_attention", "attention"):
                    shared = self._narrow(tape, x, "bottleneck.attention")
                query_input = stream if self.narrow_values else shared
        values = stream if self.narrow_values else x
        out = self._attend(tape, query_input, values, block)
        stream = norm(tape, "layer", "attention_norm", tape.add(stream, out), TRUE)
        for index in range(self.networks - 1):
            stream = self._network(tape, stream, f"ffn.{index}")
        stream = self._network(tape, stream, "")
        if not self.bottleneck:
            return stream
        with tape.module("output.bottleneck.dense", "mlp"):
            wide = tape.dropout(tape.linear(stream, TRUE, HIDDEN, bias=True), block.residual_dropout)
        return norm(tape, "layer", "bottleneck_norm", tape.add(x, wide), HIDDEN)

    def _narrow(self, tape: Tape, x: Tensor, name: str) -> Tensor:
        with tape.module(f"{name}.dense", "attention" if "attention" in name else "mlp"):
            narrow = tape.linear(x, HIDDEN, TRUE, bias=True)
        return norm(tape, "layer", f"{name}.norm", narrow, TRUE)

    def _attend(self, tape: Tape, x: Tensor, values: Tensor, block: Block) -> Tensor:
        heads = Heads(HEADS, HEADS, HEAD_DIM, HEAD_DIM, grouped=False)
        made = []
        for name, given in (("query", x), ("key", x), ("value", values)):
            width = HIDDEN if name == "value" and not self.narrow_values else TRUE
            with tape.module(f"attention.self.{name}", "attention"):
                made.append(tape.linear(given, width, TRUE, bias=True))
        mixed = attention(
            tape, made[0], made[1], made[2], heads, dropout=block.attention.dropout, softmax_in_fp32=False
        )
        with tape.module("attention.output.dense", "attention"):
            return tape.linear(mixed, TRUE, TRUE, bias=True)

    def _network(self, tape: Tape, x: Tensor, name: str) -> Tensor:
        with tape.module(name or "main_network", "mlp"):
            out = feed_forward(tape, x, TRUE, INNER, gated=False, kind=self.kind, bias=True)
        return norm(tape, "layer", "network_norm", tape.add(x, out), TRUE)


@dataclass(frozen=True, slots=True)
class MobileEmbeddings:
    """Narrow word embeddings, three neighbours side by side, made as wide as positions and types."""

    trigram: bool

    def __call__(self, tape: Tape, layout: EncoderLayout) -> tuple[Tensor, Weight]:
        """Records it on the tape."""
        x, table = embedding(tape, "word_embeddings", VOCABULARY, EMBEDDING)
        width = EMBEDDING * (3 if self.trigram else 1)
        if self.trigram:
            x = tape.copy(x, tape.tokens * width)
        with tape.module("embedding_transformation", "other"):
            x = tape.linear(x, width, HIDDEN, bias=True)
        x = position_embedding(tape, "position_embeddings", POSITIONS, HIDDEN, x)
        for rows in layout.types:
            x = type_embedding(tape, "token_type_embeddings", named(rows), HIDDEN, x)
        return tape.dropout(norm(tape, "layer", "norm", x, HIDDEN), layout.dropout), table


def mobile_head(tape: Tape, layout: EncoderLayout, x: Tensor, table: Weight) -> None:
    """BERT's head, whose vocabulary projection is the narrow embeddings and more columns beside them."""
    with tape.module("transform", "head_other"):
        x = activation(tape, layout.head_activation, tape.linear(x, HIDDEN, HIDDEN, bias=True))
    x = norm(tape, "layer", "transform_norm", x, HIDDEN)
    with tape.module("cls.predictions.dense", "head_other"):
        more = named("columns_beside_embedding")
        tape.linear(x, VOCABULARY, more)
    masked_head(tape, replace(layout, head_dense=False, head_width="embedding_size"), x, table)


def read_mobilebert(fields: Fields) -> Shapes:
    """MobileBERT."""
    sizes = encoder_sizes(fields, Defaults(30522, 512, 24, 4, 512, intermediate_size=512))
    without_cross_attention(fields)
    fields.ignore("classifier_activation", "normalization_type")
    bottleneck = fields.flag("use_bottleneck", default=True)
    narrow = fields.count("intra_bottleneck_size", 128)
    sizes["true_hidden_size"] = narrow if bottleneck else sizes["hidden_size"]
    fields.must_be("true_hidden_size", sizes["true_hidden_size"], because="its streams have another width")
    sizes["embedding_size"] = fields.count("embedding_size", 128)
    if sizes["embedding_size"] >= sizes["hidden_size"]:
        raise fields.refuse("embedding_size", "embedding_size must be below hidden_size")
    sizes["columns_beside_embedding"] = sizes["hidden_size"] - sizes["embedding_size"]
    if sizes["true_hidden_size"] % sizes["num_attention_heads"]:
        raise fields.refuse("num_attention_heads", "num_attention_heads does not divide the width of attention")
    sizes["head_dim"] = sizes["true_hidden_size"] // sizes["num_attention_heads"]
    block = replace(bert_block(fields, hidden_act="relu"), residual_dropout=0.0)
    dropout = fields.probability("hidden_dropout_prob", default=0.0)
    layout = bert_layout(fields, sizes, replace(block, residual_dropout=dropout), types=2)
    layer = MobileLayer(
        bottleneck,
        narrow_values=fields.flag("use_bottleneck_attention", default=False) or not bottleneck,
        shared=fields.flag("key_query_shared_bottleneck", default=True),
        networks=fields.count("num_feedforward_networks", 4, most=100),
        kind=layout.head_activation,
    )
    embed = MobileEmbeddings(fields.flag("trigram_input", default=True))
    return shapes_of(replace(layout, second_bias=True, embed=embed, layer=layer, head=mobile_head), sizes)


@dataclass(frozen=True, slots=True)
class ConvLayer:
    """ConvBERT's layer: fewer heads of attention beside a convolution whose kernel each token makes."""

    groups: int
    """Diagonal blocks of the matrices of the feed-forward network."""

    def __call__(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        """Records it on the tape."""
        return post_norm_layer(
            tape, x, block, lambda given: self._attend(tape, given, block), lambda given: self._feed(tape, given, block)
        )

    def _attend(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        heads, width = Heads(HEADS, HEADS, HEAD_DIM, HEAD_DIM, grouped=False), HEADS * HEAD_DIM
        with tape.module("self_attn", "attention"):
            made = []
            for name in ("q_proj", "k_proj", "v_proj"):
                with tape.module(name, "attention"):
                    made.append(tape.linear(x, HIDDEN, width, bias=True, split="column"))
            with tape.module("self.key_conv_attn_layer", "attention"):
                weights = (tape.weight("depthwise.weight", HIDDEN * KERNEL), tape.weight("bias", width))
                along = tape.record(
                    "conv1d",
                    (x,),
                    tape.tensor(tape.tokens * HIDDEN, tape.compute),
                    saves=(x,),
                    weights=weights,
                    multiply_adds=tape.tokens * HIDDEN * KERNEL,
                )
                keys = bare_matrix(tape, "pointwise.weight", along, HIDDEN, width)
            with tape.module("self.conv_kernel_layer", "attention"):
                kernels = tape.linear(tape.multiply(keys, made[0]), width, HEADS * KERNEL, bias=True)
            with tape.module("self.conv_out_layer", "attention"):
                out = tape.linear(x, HIDDEN, width, bias=True)
            spread = tape.tensor(tape.tokens * width * KERNEL, out.format)
            out = tape.record("unfold", (out,), spread)
            tape.matmul(out, kernels, tape.tokens * width, tape.tokens * width * KERNEL)
            mixed = attention(
                tape, made[0], made[1], made[2], heads, dropout=block.attention.dropout, softmax_in_fp32=False
            )
            both = tape.copy(mixed, tape.tokens * HIDDEN)
            with tape.module("o_proj", "attention"):
                return tape.linear(both, HIDDEN, HIDDEN, bias=True, split="row")

    def _feed(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        dense = block.feed_forward
        assert isinstance(dense, Dense)  # noqa: S101 - BERT's blocks have no experts; this tells mypy
        with tape.module("mlp", "mlp"):
            if self.groups == 1:
                return feed_forward(tape, x, HIDDEN, INNER, gated=False, kind=dense.activation, bias=True)
            with tape.module("up_proj", "mlp"):
                inner = self._grouped(tape, x, HIDDEN, INNER)
            with tape.module("down_proj", "mlp"):
                return self._grouped(tape, activation(tape, dense.activation, inner), INNER, HIDDEN)

    def _grouped(self, tape: Tape, x: Tensor, into: Size, out: Size) -> Tensor:
        made = bare_matrix(tape, "weight", x, into, out, groups=self.groups)
        bias = tape.weight("bias", out)
        return tape.record("add", (made,), tape.tensor(made.elements, made.format), weights=(bias,), passes=True)


def read_convbert(fields: Fields) -> Shapes:
    """ConvBERT: a part of the heads is replaced by convolutions."""
    sizes = encoder_sizes(fields, Defaults(30522, 768, 12, 12, 512, intermediate_size=3072))
    without_cross_attention(fields)
    fields.ignore("summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj")
    sizes["embedding_size"] = fields.count("embedding_size", 768)
    sizes["conv_kernel_size"] = fields.count("conv_kernel_size", 9, most=4096)
    heads = max(1, sizes["num_attention_heads"] // fields.count("head_ratio", 2))
    if sizes["hidden_size"] % (heads * 2):
        raise fields.refuse("head_ratio", f"{heads} heads and as many convolutions do not divide hidden_size")
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    sizes["head_dim"] = sizes["hidden_size"] // heads // 2
    groups = fields.count("num_groups", 1, most=4096)
    for name in ("hidden_size", "intermediate_size"):
        if sizes[name] % groups:
            raise fields.refuse("num_groups", f"num_groups {groups} does not divide {name} {sizes[name]}")
    layout = bert_layout(fields, sizes, bert_block(fields), types=2)
    narrow = sizes["embedding_size"] != sizes["hidden_size"]
    layout = replace(layout, projection=narrow, head_width="embedding_size", layer=ConvLayer(groups))
    return shapes_of(layout, sizes)


MOBILEBERT = encoder_family("mobilebert", "MobileBertForMaskedLM", read_mobilebert, MOBILEBERT_MODULES)
CONVBERT = encoder_family("convbert", "ConvBertForMaskedLM", read_convbert, ELECTRA_MODULES)
