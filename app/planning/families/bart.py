"""BART and its like: tables of positions, LayerNorm, biases. mBART, PLBART, MVP, Marian, Pegasus, Blenderbot, FSMT,
M2M-100 and NLLB.

Source: the modeling files of the same names in transformers.
"""

from dataclasses import dataclass, replace
from typing import Literal

from app.planning.families.aliases import spelling
from app.planning.families.encoder_decoder import (
    DENOISING,
    EncoderDecoderLayout,
    dense_and_sparse,
    encoder_decoder_family,
)
from app.planning.families.family import Family, Reader, Shapes
from app.planning.families.fields import LARGEST_EXPERT_COUNT, LARGEST_LAYER_COUNT, Fields
from app.planning.families.prompts import prompts

TRANSLATION = "translation"
BART_MODULES = (
    ("q", "q_proj"),
    ("k", "k_proj"),
    ("v", "v_proj"),
    ("o", "out_proj"),
    ("cross_attn", "encoder_attn"),
    ("mlp", ""),
    ("mlp.up_proj", "fc1"),
    ("mlp.down_proj", "fc2"),
)
FSMT_MODULES = (*BART_MODULES, ("lm_head", "output_projection"))
NLLB_MOE_MODULES = (
    *BART_MODULES[:4],
    ("cross_attn", "cross_attention"),
    ("mlp", "ffn"),
    *BART_MODULES[6:],
    ("experts_mlp", "ffn"),
    ("experts_mlp.router", "router.classifier"),
    ("experts_mlp.up_proj", "experts.fc1"),
    ("experts_mlp.down_proj", "experts.fc2"),
)


@dataclass(frozen=True, slots=True)
class BartKind:
    """How a family differs from BART, and what its class assumes."""

    vocabulary: int = 50265
    positions: int = 1024
    layers: tuple[int, int] = (12, 12)
    heads: int = 16
    inner: int = 4096
    hidden: int = 1024
    activation: str = "gelu"
    attention_dropout: float = 0.0
    before: bool = False
    embedding_norm: bool = True
    final_norm: bool = False
    table: Literal["none", "learned", "fixed"] = "learned"
    offset: int = 2
    """Rows of the table of positions beyond the longest sequence."""
    positions_name: str = "max_position_embeddings"
    vocabulary_name: str = "vocab_size"
    tied: bool = True
    head_offset: bool = True


BART_KIND = BartKind()


def bart_reader(kind: BartKind) -> Reader:
    """A reader of BART-like configs."""

    def read(fields: Fields) -> Shapes:
        layout, sizes = bart_parts(fields, kind)
        return Shapes(layout, sizes, sizes["max_position_embeddings"])

    return read


def bart_parts(fields: Fields, kind: BartKind) -> tuple[EncoderDecoderLayout, dict[str, int]]:
    """The layout and sizes of a BART-like config."""
    ignore_neutral(fields)
    hidden_name = spelling(fields, "hidden_size", "d_model")
    hidden = fields.count(hidden_name, kind.hidden)
    longest = fields.count(kind.positions_name, kind.positions)
    sizes = {
        "hidden_size": hidden,
        "vocab_size": fields.count(kind.vocabulary_name, kind.vocabulary),
        "max_position_embeddings": longest,
    }
    if kind.table != "none":
        sizes["position_rows"] = longest + kind.offset
    names = {
        "encoder_layers": spelling(fields, "num_hidden_layers", "encoder_layers"),
        "encoder_attention_heads": spelling(fields, "num_attention_heads", "encoder_attention_heads"),
    }
    for side, layers in zip(("encoder", "decoder"), kind.layers, strict=True):
        name = names.get(f"{side}_attention_heads", f"{side}_attention_heads")
        heads = fields.count(name, kind.heads)
        if hidden % heads:
            raise fields.refuse(name, f"{name} {heads} does not divide {hidden_name} {hidden}")
        sizes |= {
            f"{side}_layers": fields.count(
                names.get(f"{side}_layers", f"{side}_layers"), layers, most=LARGEST_LAYER_COUNT
            ),
            f"{side}_attention_heads": heads,
            f"{side}_head_dim": hidden // heads,
            f"{side}_ffn_dim": fields.count(f"{side}_ffn_dim", kind.inner),
        }
    sizes |= {
        "num_hidden_layers": sizes["encoder_layers"],
        "num_attention_heads": sizes["encoder_attention_heads"],
        "num_key_value_heads": sizes["encoder_attention_heads"],
    }
    tied = fields.flag("tie_word_embeddings", default=kind.tied)
    layout = EncoderDecoderLayout(
        tied=tied,
        norm="layer",
        before=kind.before,
        bias=True,
        gated=False,
        activation=fields.activation("activation_function", default=kind.activation),
        relative="none",
        positions=kind.table,
        embedding_norm=kind.embedding_norm,
        final_norm=kind.final_norm,
        residual_dropout=fields.probability("dropout", default=0.1),
        attention_dropout=fields.probability(
            spelling(fields, "attention_probs_dropout_prob", "attention_dropout"), default=kind.attention_dropout
        ),
        inner_dropout=fields.probability("activation_dropout", default=0.0),
        head_offset=kind.head_offset,
        idle_embedding=not tied,
    )
    return layout, sizes


def ignore_neutral(fields: Fields) -> None:
    """Passes over what BART-like files hold without an effect on the class, much of it from fairseq."""
    fields.ignore("scale_embedding", "init_std", "classifier_dropout", "classif_dropout")
    fields.ignore("encoder_layerdrop", "decoder_layerdrop", "static_position_embeddings", "normalize_before")
    fields.ignore("normalize_embedding", "add_final_layer_norm", "add_bias_logits", "extra_pos_embeddings")
    fields.ignore("extra_layer_norm", "layernorm_variant", "do_blenderbot_90_layernorm", "output_past", "save_step")
    fields.ignore("_num_labels", "num_labels", "force_bos_token_to_be_generated", "hidden_act", "hidden_dropout")


def read_marian(fields: Fields) -> Shapes:
    """Marian: fixed positions, and perhaps a vocabulary of its own on each side."""
    kind = BartKind(vocabulary=58101, embedding_norm=False, table="fixed", offset=0)
    layout, sizes = bart_parts(fields, kind)
    sizes["decoder_vocab_size"] = fields.count("decoder_vocab_size", sizes["vocab_size"])
    separate = not fields.flag("share_encoder_decoder_embeddings", default=True)
    if not separate and sizes["decoder_vocab_size"] != sizes["vocab_size"]:
        raise fields.refuse("decoder_vocab_size", "both sides share one table, so decoder_vocab_size is vocab_size")
    layout = replace(layout, separate_embeddings=separate, idle_embedding=layout.idle_embedding and not separate)
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_m2m_100(fields: Fields) -> Shapes:
    """M2M-100 and NLLB: positions are computed."""
    layout, sizes = bart_parts(fields, M2M_100_KIND)
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_nllb_moe(fields: Fields) -> Shapes:
    """NLLB's mixture: M2M-100 with experts in every so many layers; a token takes two."""
    layout, sizes = bart_parts(fields, M2M_100_KIND)
    sizes["num_experts"] = fields.count("num_experts", 128, most=LARGEST_EXPERT_COUNT)
    sizes["num_experts_per_tok"] = 2
    if sizes["num_experts"] < 2:
        raise fields.refuse("num_experts", "a token takes two experts, so there must be at least two")
    fields.ignore(
        "expert_capacity", "router_dtype", "router_ignore_padding_tokens", "router_type", "router_jitter_noise"
    )
    fields.ignore("router_z_loss_coef", "router_aux_loss_coef", "output_router_logits", "second_expert_policy")
    fields.ignore("normalize_router_prob_before_dropping", "batch_prioritized_routing", "moe_token_dropout")
    fields.ignore("moe_eval_capacity_token_fraction", "add_router_probs", "model_dim", "moe_eval_capacity_length")
    sparse = {}
    for side in ("encoder", "decoder"):
        step = fields.whole(f"{side}_sparse_step", 4)
        sparse[side] = sizes[f"{side}_layers"] // step if step else 0
    stacks = dense_and_sparse(sizes, sparse)
    layout = replace(layout, stacks=stacks, router_bias=fields.flag("router_bias", default=False))
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_fsmt(fields: Fields) -> Shapes:
    """FSMT: a vocabulary on each side, and sinusoidal positions that the class holds as parameters."""
    padding = fields.whole("pad_token_id", 1, most=2**20)
    kind = BartKind(
        vocabulary=42024,
        activation="relu",
        embedding_norm=False,
        offset=padding + 1,
        vocabulary_name=spelling(fields, "vocab_size", "tgt_vocab_size"),
        tied=False,
        head_offset=False,
    )
    layout, sizes = bart_parts(fields, kind)
    fields.ignore("langs", "decoder", "adaptive_softmax_cutoff", "adaptive_softmax_dropout")
    sizes["decoder_vocab_size"] = sizes["vocab_size"]
    sizes["vocab_size"] = fields.count("src_vocab_size", 42024)
    if layout.tied and sizes["decoder_vocab_size"] != sizes["vocab_size"]:
        raise fields.refuse("tie_word_embeddings", "vocabularies of different size cannot be tied")
    layout = replace(layout, separate_embeddings=not layout.tied, idle_embedding=False, head_component="other")
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_mvp(fields: Fields) -> Shapes:
    """MVP: BART, and where the config says so prompts for every attention layer."""
    layout, sizes = bart_parts(fields, BartKind(vocabulary=50267))
    sizes["prompt_length"] = fields.count("prompt_length", 100)
    sizes["prompt_mid_dim"] = fields.count("prompt_mid_dim", 800)
    if fields.flag("use_prompt", default=False):
        layout = replace(layout, beside_embeddings=prompts)
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


M2M_100_KIND = BartKind(
    vocabulary=128112,
    activation="relu",
    attention_dropout=0.1,
    before=True,
    embedding_norm=False,
    final_norm=True,
    table="none",
    head_offset=False,
)
PEGASUS_KIND = BartKind(before=True, embedding_norm=False, final_norm=True, table="fixed", offset=0)
BLENDERBOT_KIND = BartKind(
    vocabulary=8008,
    positions=128,
    layers=(2, 24),
    heads=32,
    inner=10240,
    hidden=2560,
    before=True,
    embedding_norm=False,
    final_norm=True,
    offset=0,
)
BLENDERBOT_SMALL_KIND = BartKind(positions=512, layers=(8, 8), inner=2048, hidden=512, offset=0)
PLBART_KIND = BartKind(vocabulary=50005, layers=(6, 6), heads=12, inner=3072, hidden=768, attention_dropout=0.1)


def _family(
    model_type: str,
    class_name: str,
    read: Reader,
    *,
    objective: str = DENOISING,
    modules: tuple[tuple[str, str], ...] = BART_MODULES,
) -> Family:
    return encoder_decoder_family(model_type, class_name, read, modules, objective=objective)


BART = _family("bart", "BartForConditionalGeneration", bart_reader(BART_KIND))
MBART = _family("mbart", "MBartForConditionalGeneration", bart_reader(BartKind(before=True, final_norm=True)))
PLBART = _family("plbart", "PLBartForConditionalGeneration", bart_reader(PLBART_KIND))
MVP = _family("mvp", "MvpForConditionalGeneration", read_mvp, objective="supervised text generation")
MARIAN = _family("marian", "MarianMTModel", read_marian, objective=TRANSLATION)
PEGASUS = _family(
    "pegasus", "PegasusForConditionalGeneration", bart_reader(PEGASUS_KIND), objective="gap sentence generation"
)
BLENDERBOT = _family(
    "blenderbot", "BlenderbotForConditionalGeneration", bart_reader(BLENDERBOT_KIND), objective="dialogue"
)
BLENDERBOT_SMALL = _family(
    "blenderbot-small",
    "BlenderbotSmallForConditionalGeneration",
    bart_reader(BLENDERBOT_SMALL_KIND),
    objective="dialogue",
)
M2M_100 = _family("m2m_100", "M2M100ForConditionalGeneration", read_m2m_100, objective=TRANSLATION)
NLLB_MOE = _family(
    "nllb-moe",
    "NllbMoeForConditionalGeneration",
    read_nllb_moe,
    objective=TRANSLATION,
    modules=NLLB_MOE_MODULES,
)
FSMT = _family("fsmt", "FSMTForConditionalGeneration", read_fsmt, objective=TRANSLATION, modules=FSMT_MODULES)
