"""Encoders with rotary positions: NomicBERT, EuroBERT, Jina embeddings v3, GTE, ESM C, RoFormer and ESM.

Source: the modeling files of the same names in transformers.
"""

from dataclasses import replace

from app.planning.families.decoder import HIDDEN, Attention, Block, Dense, feed_forward_of, self_attention
from app.planning.families.encoder import (
    BERT_MODULES,
    POSITIONS,
    ROBERTA_MODULES,
    EncoderLayout,
    bert_block,
    bert_layout,
    encoder_family,
    encoder_sizes,
    masked_head,
    positions_after_padding,
    post_norm_layer,
    shapes_of,
    without_cross_attention,
    word_embeddings,
)
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, is_grouped
from app.planning.ledger import Tape, Tensor, Weight
from app.planning.modules import idle_linear
from app.planning.sizes import Size, named

NOMIC_MODULES = BERT_MODULES[-2:]
JINA_MODULES = (("mlp.up_proj", "fc1"), ("mlp.down_proj", "fc2"), *ROBERTA_MODULES[-2:])
GTE_MODULES = ROBERTA_MODULES[-2:]
ROFORMER_MODULES = (*BERT_MODULES, ("projection", "embeddings_project"))


def read_nomic_bert(fields: Fields) -> Shapes:
    """NomicBERT: BERT with rotary positions, a gated MLP and no biases in its layers."""
    defaults = Defaults(30528, 768, 12, 12, 2048, intermediate_size=3072)
    layout, sizes = _rotary_bert(fields, defaults, hidden_act="silu", dropout=0.0)
    return shapes_of(layout, sizes)


def read_jina_embeddings_v3(fields: Fields) -> Shapes:
    """Jina embeddings v3: XLM-RoBERTa with rotary positions."""
    defaults = Defaults(250002, 1024, 24, 16, 8194, intermediate_size=4096)
    layout, sizes = _rotary_bert(fields, defaults, types=1, bias=True, gated=False)
    return shapes_of(layout, sizes)


def read_gte(fields: Fields) -> Shapes:
    """GTE: BERT with rotary positions and a gated MLP, of which only the matrix down has a bias."""
    defaults = Defaults(250048, 768, 12, 12, 8192, intermediate_size=3072)
    layout, sizes = _rotary_bert(fields, defaults, types=1, bias=True)
    return shapes_of(replace(layout, second_bias=False, layer=gte_layer), sizes)


def gte_layer(tape: Tape, x: Tensor, block: Block) -> Tensor:
    """BERT's layer with a bias on the matrix down alone."""

    def feed(given: Tensor) -> Tensor:
        out = feed_forward_of(tape, given, block)
        with tape.module("mlp", "mlp"), tape.module("down_proj", "mlp"):
            bias = tape.weight("bias", HIDDEN)
            return tape.record("bias", (out,), tape.tensor(out.elements, out.format), weights=(bias,), passes=True)

    return post_norm_layer(tape, x, block, lambda given: self_attention(tape, given, block), feed)


def _rotary_bert(
    fields: Fields,
    defaults: Defaults,
    *,
    types: int = 2,
    bias: bool = False,
    gated: bool = True,
    hidden_act: str = "gelu",
    dropout: float = 0.1,
) -> tuple[EncoderLayout, dict[str, int]]:
    sizes = decoder_sizes(fields, replace(defaults, num_key_value_heads=None))
    without_cross_attention(fields)
    block = bert_block(fields, hidden_act=hidden_act, dropout=dropout)
    attention = replace(block.attention, bias=bias, output_bias=bias, rotary=True)
    dense = block.feed_forward
    assert isinstance(dense, Dense)  # noqa: S101 - BERT's blocks have no experts; this tells mypy
    dense = replace(dense, gated=gated, bias=bias and not gated)
    layout = bert_layout(fields, sizes, replace(block, attention=attention, feed_forward=dense), types=types)
    del sizes["position_rows"]
    return replace(layout, positions=False, rotary=True, second_bias=True), sizes


def read_eurobert(fields: Fields) -> Shapes:
    """EuroBERT: Llama's blocks without a causal mask."""
    sizes = decoder_sizes(fields, Defaults(128256, 768, 12, 12, 8192, intermediate_size=3072))
    fields.ignore(
        "auto_map",
        "hidden_dropout",
        "mask_token_id",
        "classifier_pooling",
        "clf_pooling",
        "mask_token",
        "bos_token",
        "eos_token",
        "pad_token",
    )
    return _llama_like(fields, sizes)


def _llama_like(fields: Fields, sizes: dict[str, int]) -> Shapes:
    bias = fields.flag("attention_bias", default=False)
    attention = Attention(
        is_grouped(sizes),
        causal=False,
        bias=bias,
        output_bias=bias,
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    dense = Dense(
        activation=fields.activation("hidden_act", default="silu"), bias=fields.flag("mlp_bias", default=False)
    )
    layout = EncoderLayout(
        (Block(attention, dense),),
        tied=fields.flag("tie_word_embeddings", default=False),
        norm="rms",
        head_activation=dense.activation,
        positions=False,
        rotary=True,
        embedding_norm=False,
        final_norm=True,
        head_dense=False,
        head_bias=dense.bias,
    )
    return shapes_of(layout, sizes)


def read_roformer(fields: Fields) -> Shapes:
    """RoFormer: BERT with rotary positions from a fixed table."""
    sizes = encoder_sizes(fields, Defaults(50000, 768, 12, 12, 1536, intermediate_size=3072))
    without_cross_attention(fields)
    fields.ignore("rotary_value")
    sizes["embedding_size"] = fields.count("embedding_size", sizes["hidden_size"])
    layout = bert_layout(fields, sizes, bert_block(fields), types=2)
    narrow = sizes["embedding_size"] != sizes["hidden_size"]
    block = replace(layout.blocks[0], attention=replace(layout.blocks[0].attention, rotary=True))
    layout = replace(
        layout,
        blocks=(block,),
        positions=False,
        projection=narrow,
        head_width="embedding_size",
        second_bias=True,
        embed=roformer_embeddings,
    )
    return shapes_of(layout, sizes)


def roformer_embeddings(tape: Tape, layout: EncoderLayout) -> tuple[Tensor, Weight]:
    """The embeddings, and the fixed table of sines and cosines that the class holds as a parameter."""
    x, table = word_embeddings(tape, layout)
    with tape.module("embed_positions", "position_embedding"):
        waves = tape.weight("weight", POSITIONS * named("head_dim"), trainable=False)
        return tape.record("rotary_table", (x,), x, weights=(waves,), passes=True), table


def read_esm(fields: Fields) -> Shapes:
    """ESM-2 and ESM-1: proteins; norms before each part, and a regression of contacts beside the head."""
    sizes = encoder_sizes(fields, Defaults(33, 768, 12, 12, 1026, intermediate_size=3072))
    fields.count("vocab_size", None)
    rotary = fields.one_of("position_embedding_type", ("absolute", "rotary"), default="absolute") == "rotary"
    fields.must_be("add_cross_attention", False, because="cross-attention adds projections")
    fields.must_be("is_folding_model", False, because="its class is another one")
    fields.ignore("esmfold_config", "vocab_list", "token_dropout", "mask_token_id", "classifier_dropout")
    block = replace(bert_block(fields), placement="pre")
    block = replace(block, attention=replace(block.attention, rotary=rotary))
    layout = bert_layout(fields, sizes, block)
    longest = None if rotary else positions_after_padding(fields, sizes)
    if rotary:
        del sizes["position_rows"]
    layout = replace(
        layout,
        positions=not rotary,
        rotary=rotary,
        embedding_norm=fields.flag("emb_layer_norm_before", default=False),
        final_norm=True,
        head=esm_head,
    )
    return shapes_of(layout, sizes, longest)


def esm_head(tape: Tape, layout: EncoderLayout, x: Tensor, table: Weight) -> None:
    """The head, and the regression of contacts from all attention maps, which training by masking does not run."""
    with tape.module("contact_head.regression", "other"):
        idle_linear(tape, named("num_hidden_layers") * named("num_attention_heads"), Size.of(1))
    masked_head(tape, layout, x, table)


NOMIC_BERT = encoder_family("nomic_bert", "NomicBertForMaskedLM", read_nomic_bert, NOMIC_MODULES)
EUROBERT = encoder_family("eurobert", "EuroBertForMaskedLM", read_eurobert, ())
JINA_EMBEDDINGS_V3 = encoder_family(
    "jina_embeddings_v3", "JinaEmbeddingsV3ForMaskedLM", read_jina_embeddings_v3, JINA_MODULES
)
GTE = encoder_family("gte", "GteForMaskedLM", read_gte, GTE_MODULES)
ROFORMER = encoder_family("roformer", "RoFormerForMaskedLM", read_roformer, ROFORMER_MODULES)
ESM = encoder_family("esm", "EsmForMaskedLM", read_esm, ROBERTA_MODULES)
