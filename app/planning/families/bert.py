"""BERT and the families with its blocks: RoBERTa and its like, ERNIE, MPNet, Megatron-BERT and others.

They differ in their positions, their types, and where norms stand. Source: the modeling files of the same names in
transformers.
"""

from dataclasses import replace

from app.planning.families.encoder import (
    BERT_LAYER,
    BERT_MODULES,
    ROBERTA_MODULES,
    EncoderLayout,
    bert_block,
    bert_layout,
    encoder_family,
    encoder_sizes,
    positions_after_padding,
    shapes_of,
    without_cross_attention,
)
from app.planning.families.family import Reader, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults

MPNET_MODULES = (
    ("self_attn", "attention"),
    ("q_proj", "attn.q"),
    ("k_proj", "attn.k"),
    ("v_proj", "attn.v"),
    ("self_attn.o_proj", "attn.o"),
    *ROBERTA_MODULES[5:],
)
TAPAS_TYPES = (3, 256, 256, 2, 256, 256, 10)


def read_bert(fields: Fields) -> Shapes:
    """BERT."""
    layout, sizes = bert_parts(fields, 30522)
    return shapes_of(layout, sizes)


def bert_parts(
    fields: Fields, vocabulary: int, *, positions: int = 512, types: int = 2, hidden_act: str = "gelu"
) -> tuple[EncoderLayout, dict[str, int]]:
    """BERT's layout and sizes, with these defaults of a class."""
    sizes = encoder_sizes(fields, Defaults(vocabulary, 768, 12, 12, positions, intermediate_size=3072))
    without_cross_attention(fields)
    layout = bert_layout(fields, sizes, bert_block(fields, hidden_act=hidden_act), types=types)
    return replace(layout, second_bias=True), sizes


def roberta_reader(vocabulary: int = 30522) -> Reader:
    """A reader of the configs of RoBERTa and its like, which count more positions than tokens fit."""

    def read(fields: Fields) -> Shapes:
        layout, sizes = bert_parts(fields, vocabulary)
        return shapes_of(layout, sizes, positions_after_padding(fields, sizes))

    return read


def read_ernie(fields: Fields) -> Shapes:
    """ERNIE: a table of tasks beside the types, where the config says so."""
    layout, sizes = bert_parts(fields, 30522)
    sizes["task_type_vocab_size"] = fields.count("task_type_vocab_size", 3, most=100_000)
    if fields.flag("use_task_id", default=False):
        layout = replace(layout, types=("type_vocab_size", "task_type_vocab_size"))
    return shapes_of(layout, sizes)


def read_xlm_roberta_xl(fields: Fields) -> Shapes:
    """XLM-RoBERTa XL: norms before each part and at the end, none over the embeddings."""
    return _pre_norm(fields, Defaults(250880, 2560, 36, 32, 514, intermediate_size=10240), types=1, padding=1)


def read_roberta_prelayernorm(fields: Fields) -> Shapes:
    """RoBERTa with norms before each part and at the end."""
    defaults = Defaults(50265, 768, 12, 12, 512, intermediate_size=3072)
    return _pre_norm(fields, defaults, types=2, embedding_norm=True, padding=1)


def read_megatron_bert(fields: Fields) -> Shapes:
    """Megatron-LM's BERT: norms before each part and at the end, none over the embeddings."""
    return _pre_norm(fields, Defaults(29056, 1024, 24, 16, 512, intermediate_size=4096), types=2)


def _pre_norm(
    fields: Fields, defaults: Defaults, *, types: int, embedding_norm: bool = False, padding: int | None = None
) -> Shapes:
    sizes = encoder_sizes(fields, defaults)
    without_cross_attention(fields)
    layout = bert_layout(fields, sizes, replace(bert_block(fields), placement="pre"), types=types)
    layout = replace(layout, embedding_norm=embedding_norm, final_norm=True, second_bias=True)
    longest = None if padding is None else positions_after_padding(fields, sizes, padding=padding)
    return shapes_of(layout, sizes, longest)


def read_mpnet(fields: Fields) -> Shapes:
    """MPNet: no types, one table of relative positions for all layers."""
    layout, sizes = bert_parts(fields, 30527, types=0)
    sizes["relative_attention_num_buckets"] = fields.count("relative_attention_num_buckets", 32)
    fields.ignore("type_vocab_size")
    return shapes_of(replace(layout, relative_heads=True), sizes, positions_after_padding(fields, sizes))


def read_bert_generation(fields: Fields) -> Shapes:
    """BERT for generation: no types, and a head without a dense layer."""
    sizes = encoder_sizes(fields, Defaults(50358, 1024, 24, 16, 512, intermediate_size=4096))
    without_cross_attention(fields)
    layout = bert_layout(fields, sizes, bert_block(fields))
    return shapes_of(replace(layout, head_dense=False, second_bias=True), sizes)


def read_tapas(fields: Fields) -> Shapes:
    """TAPAS: a table of types for each of the things a cell's place says."""
    layout, sizes = bert_parts(fields, 30522, positions=1024, types=0)
    fields.ignore("type_vocab_size", "num_aggregation_labels", "max_num_rows", "max_num_columns")
    fields.ignore("use_normalized_answer_loss")
    rows = fields.integers("type_vocab_sizes") or TAPAS_TYPES
    if len(rows) > 100 or not all(1 <= row <= 100_000 for row in rows):
        raise fields.refuse("type_vocab_sizes", "type_vocab_sizes must be at most 100 numbers from 1 to 100,000")
    types = tuple(f"type_vocab_size_{index}" for index in range(len(rows)))
    sizes |= dict(zip(types, rows, strict=True))
    return shapes_of(replace(layout, types=types), sizes)


BERT = encoder_family("bert", "BertForMaskedLM", read_bert, BERT_MODULES)
ROBERTA = encoder_family("roberta", "RobertaForMaskedLM", roberta_reader(50265), ROBERTA_MODULES)
XLM_ROBERTA = encoder_family("xlm-roberta", "XLMRobertaForMaskedLM", roberta_reader(), ROBERTA_MODULES)
CAMEMBERT = encoder_family("camembert", "CamembertForMaskedLM", roberta_reader(), ROBERTA_MODULES)
DATA2VEC_TEXT = encoder_family(
    "data2vec-text",
    "Data2VecTextForMaskedLM",
    roberta_reader(),
    ROBERTA_MODULES,
)
ERNIE = encoder_family("ernie", "ErnieForMaskedLM", read_ernie, BERT_MODULES)
XLM_ROBERTA_XL = encoder_family("xlm-roberta-xl", "XLMRobertaXLForMaskedLM", read_xlm_roberta_xl, ROBERTA_MODULES)
ROBERTA_PRELAYERNORM = encoder_family(
    "roberta-prelayernorm", "RobertaPreLayerNormForMaskedLM", read_roberta_prelayernorm, ROBERTA_MODULES
)
MEGATRON_BERT = encoder_family("megatron-bert", "MegatronBertForMaskedLM", read_megatron_bert, BERT_MODULES)
MPNET = encoder_family(
    "mpnet",
    "MPNetForMaskedLM",
    read_mpnet,
    MPNET_MODULES,
    objective="masked and permuted language modelling",
)
BERT_GENERATION = encoder_family(
    "bert-generation",
    "BertGenerationDecoder",
    read_bert_generation,
    (*BERT_LAYER, ("lm_head", "lm_head.decoder")),
    objective="causal language modelling",
)
TAPAS = encoder_family("tapas", "TapasForMaskedLM", read_tapas, BERT_MODULES)
