"""Encoders with BERT's blocks that save parameters: ELECTRA, DistilBERT, ALBERT and RemBERT.

Source: the modeling files of the same names in transformers.
"""

from dataclasses import replace

from app.planning.families.encoder import (
    BERT_LAYER,
    ELECTRA_MODULES,
    bert_block,
    bert_layout,
    encoder_family,
    encoder_sizes,
    shapes_of,
    without_cross_attention,
)
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults

DISTILBERT_MODULES = (
    ("self_attn", "attention"),
    ("q_proj", "q_lin"),
    ("k_proj", "k_lin"),
    ("v_proj", "v_lin"),
    ("self_attn.o_proj", "out_lin"),
    ("mlp", "ffn"),
    ("mlp.up_proj", "lin1"),
    ("mlp.down_proj", "lin2"),
    ("transform", "vocab_transform"),
    ("lm_head", "vocab_projector"),
)
ALBERT_MODULES = (
    ("self_attn", "attention"),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("self_attn.o_proj", "dense"),
    ("mlp", ""),
    ("mlp.up_proj", "ffn"),
    ("mlp.down_proj", "ffn_output"),
    ("projection", "embedding_hidden_mapping_in"),
    ("transform", "predictions.dense"),
    ("lm_head", "predictions.decoder"),
)
REMBERT_MODULES = (
    *BERT_LAYER,
    ("projection", "embedding_hidden_mapping_in"),
    ("transform", "cls.predictions.dense"),
    ("lm_head", "cls.predictions.decoder"),
)
DISTILBERT_NAMES = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "attention_probs_dropout_prob": "attention_dropout",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
}


def read_electra(fields: Fields) -> Shapes:
    """ELECTRA's generator: narrow embeddings, projected to the hidden size."""
    sizes = encoder_sizes(fields, Defaults(30522, 256, 12, 4, 512, intermediate_size=1024))
    without_cross_attention(fields)
    fields.ignore("summary_last_dropout", "generator_hidden_size")
    sizes["embedding_size"] = fields.count("embedding_size", 128)
    layout = bert_layout(fields, sizes, bert_block(fields), types=2)
    narrow = sizes["embedding_size"] != sizes["hidden_size"]
    return shapes_of(replace(layout, projection=narrow, head_width="embedding_size"), sizes)


def read_distilbert(fields: Fields) -> Shapes:
    """DistilBERT: BERT without types."""
    sizes = encoder_sizes(fields, Defaults(30522, 768, 6, 12, 512, intermediate_size=3072), DISTILBERT_NAMES)
    fields.ignore("qa_dropout", "seq_classif_dropout", "tie_weights_", "output_past")
    fields.flag("sinusoidal_pos_embds", default=False)
    block = replace(bert_block(fields, names=DISTILBERT_NAMES), feed_dropout_only=True)
    layout = bert_layout(fields, sizes, block)
    return shapes_of(layout, sizes)


def read_albert(fields: Fields) -> Shapes:
    """ALBERT: narrow embeddings, and groups of layers that run many times."""
    sizes = encoder_sizes(fields, Defaults(30000, 4096, 12, 64, 512, intermediate_size=16384))
    without_cross_attention(fields)
    fields.ignore("classifier_dropout_prob", "net_structure_type", "gap_size", "num_memory_blocks", "down_scale_factor")
    fields.ignore("layers_to_keep")
    sizes["embedding_size"] = fields.count("embedding_size", 128)
    runs = sizes["num_hidden_layers"]
    groups = fields.count("num_hidden_groups", 1, most=runs)
    inner = fields.count("inner_group_num", 1, most=1000)
    sizes["num_hidden_layers"] = groups * inner
    sizes["num_repeated_layers"] = (runs - groups) * inner
    block = bert_block(fields, hidden_act="gelu_new", dropout=0.0)
    layout = bert_layout(fields, sizes, block, types=2)
    layout = replace(
        layout,
        projection=True,
        head_width="embedding_size",
        shared_layers=runs > groups,
        second_bias=True,
    )
    return shapes_of(layout, sizes)


def read_rembert(fields: Fields) -> Shapes:
    """RemBERT: narrow embeddings, and a head of its own that is wider than they are."""
    sizes = encoder_sizes(fields, Defaults(250300, 1152, 32, 18, 512, intermediate_size=4608))
    without_cross_attention(fields)
    fields.ignore("classifier_dropout_prob", "embedding_size")
    fields.must_be("tie_word_embeddings", False, because="its head has another width than its embeddings")
    sizes["embedding_size"] = fields.count("input_embedding_size", 256)
    sizes["output_embedding_size"] = fields.count("output_embedding_size", 1664)
    layout = bert_layout(fields, sizes, bert_block(fields, dropout=0.0), types=2)
    return shapes_of(replace(layout, tied=False, projection=True, head_width="output_embedding_size"), sizes)


ELECTRA = encoder_family("electra", "ElectraForMaskedLM", read_electra, ELECTRA_MODULES)
DISTILBERT = encoder_family("distilbert", "DistilBertForMaskedLM", read_distilbert, DISTILBERT_MODULES)
ALBERT = encoder_family("albert", "AlbertForMaskedLM", read_albert, ALBERT_MODULES)
REMBERT = encoder_family("rembert", "RemBertForMaskedLM", read_rembert, REMBERT_MODULES)
