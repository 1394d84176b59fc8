"""Wrappers whose image tower is Qwen-VL's: Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5, and GLM-4.1V, built like them.

Their classes have text models of their own, which differ from Qwen2, Qwen3 and GLM-4 in defaults and in how positions
are made, not in parameters. Source: the modeling files of the same names in transformers.
"""

from dataclasses import replace

from app.planning.families import vision_qwen
from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, forward
from app.planning.families.expert_layers import (
    attention_of,
    expert_decoder,
    experts_of,
    shared_width,
    silu,
    sparse_after,
    sparse_steps,
)
from app.planning.families.family import Family, Reader, Shapes
from app.planning.families.fields import Fields
from app.planning.families.linear_hybrids import QWEN3_5_MOE_TEXT, QWEN3_5_TEXT
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.families.towers import Stack
from app.planning.families.wrapper import Wrapper, family

QWEN2_VL_DEFAULTS = Defaults(152064, 8192, 80, 64, 32768, intermediate_size=29568, num_key_value_heads=8)
QWEN3_VL_DEFAULTS = Defaults(
    151936, 4096, 32, 32, 128000, intermediate_size=22016, num_key_value_heads=32, head_dim=128
)
QWEN3_VL_MOE_DEFAULTS = Defaults(151936, 2048, 24, 16, 128000, intermediate_size=5632, num_key_value_heads=16)
GLM4V_DEFAULTS = Defaults(151552, 4096, 40, 32, 32768, intermediate_size=13696, num_key_value_heads=2)

GLM4V_MOE_DEFAULTS = Defaults(151424, 4096, 46, 96, 65536, intermediate_size=10944, num_key_value_heads=8)


def read_qwen2_vl_text(fields: Fields) -> Shapes:
    """Qwen2-VL and Qwen2.5-VL, text: Qwen2."""
    _no_head_size(fields)
    sizes = decoder_sizes(fields, QWEN2_VL_DEFAULTS)
    return _shapes(
        fields, sizes, attention_of(fields, sizes, bias=True, output_bias=False), Dense(activation=silu(fields))
    )


def read_qwen3_vl_text(fields: Fields) -> Shapes:
    """Qwen3-VL, text: Qwen3."""
    sizes = decoder_sizes(fields, QWEN3_VL_DEFAULTS)
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), head_norms=True)
    return _shapes(fields, sizes, attention, Dense(activation=silu(fields)))


def read_qwen3_vl_moe_text(fields: Fields) -> Shapes:
    """Qwen3-VL-MoE, text: Qwen3-MoE."""
    sizes = decoder_sizes(fields, QWEN3_VL_MOE_DEFAULTS)
    names = ("num_local_experts", "num_experts")
    experts_of(fields, sizes, count=names, counts=60, per_token=4, inner=1408, inner_name="moe_intermediate_size")
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), head_norms=True)
    experts = MixtureOfExperts(activation=silu(fields))
    return expert_decoder(fields, sizes, attention, experts, sparse_steps(fields, sizes))


def read_glm4v_text(fields: Fields) -> Shapes:
    """GLM-4.1V, text: GLM-4 (0414), always with biases on query, key and value."""
    _no_head_size(fields)
    fields.ignore("attention_bias", "partial_rotary_factor")
    sizes = decoder_sizes(fields, GLM4V_DEFAULTS)
    dense = Dense(activation=silu(fields), joint=True)
    return _shapes(fields, sizes, attention_of(fields, sizes, bias=True, output_bias=False), dense, sandwich=True)


def read_glm4v_moe_text(fields: Fields) -> Shapes:
    """GLM-4.5V, text: GLM-4.5 with biases on query, key and value unless said otherwise."""
    head_dim = fields.count("hidden_size", 4096) // fields.count("num_attention_heads", 96)
    sizes = decoder_sizes(fields, replace(GLM4V_MOE_DEFAULTS, head_dim=head_dim or None))
    fields.must_be("use_qk_norm", False, because="the class has no norms of queries and keys")
    names = ("n_routed_experts", "num_local_experts")
    experts_of(fields, sizes, count=names, counts=128, per_token=8, inner=1408, inner_name="moe_intermediate_size")
    shared_width(fields, sizes, "n_shared_experts", 1)
    bias = fields.flag("attention_bias", default=True)
    attention = attention_of(fields, sizes, bias=bias, output_bias=False)
    experts = MixtureOfExperts(activation=silu(fields), shared=True)
    return expert_decoder(
        fields, sizes, attention, experts, sparse_after(sizes, fields.whole("first_k_dense_replace", 1))
    )


def qwen2_vl(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Qwen2-VL's tower."""
    _tokens(fields)
    return vision_qwen.qwen2_vl(fields.section("vision_config"), sizes)


def qwen2_5_vl(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Qwen2.5-VL's tower."""
    _tokens(fields)
    return vision_qwen.qwen2_5_vl(fields.section("vision_config"), sizes)


def qwen3_vl(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Qwen3-VL's tower."""
    _tokens(fields)
    return vision_qwen.qwen3_vl(fields.section("vision_config"), sizes)


def qwen3_5(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Qwen3.5's tower: Qwen3-VL's, of which only the last layer feeds the text model."""
    _tokens(fields)
    return vision_qwen.qwen3_vl(fields.section("vision_config"), sizes, deepstack=False)


def glm4v(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """GLM-4.1V's tower."""
    _tokens(fields)
    return vision_qwen.glm4v(fields.section("vision_config"), sizes)


def _shapes(
    fields: Fields, sizes: dict[str, int], attention: Attention, dense: Dense, *, sandwich: bool = False
) -> Shapes:
    block = Block(attention, dense, placement="sandwich" if sandwich else "pre")
    layout = DecoderLayout((block,), tied=fields.flag("tie_word_embeddings", default=False))
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def _no_head_size(fields: Fields) -> None:
    fields.must_be("head_dim", None, because="the class has no head size of its own")


def _tokens(fields: Fields) -> None:
    fields.ignore(*(f"{kind}_token_id" for kind in ("image", "video", "vision", "vision_start", "vision_end")))
    fields.ignore(*(f"{kind}_{end}_token_id" for kind in ("image", "video") for end in ("start", "end")))
    fields.ignore("vision_token_id")


def _text(model_type: str, class_name: str, read: Reader) -> Family:
    return Family(model_type, class_name, read, forward)


QWEN2_VL = family(
    Wrapper(
        "qwen2_vl",
        "Qwen2VLForConditionalGeneration",
        qwen2_vl,
        text=_text("qwen2_vl_text", "Qwen2VLTextModel", read_qwen2_vl_text),
        flat=True,
        tied_by="either",
    )
)
QWEN2_5_VL = family(
    Wrapper(
        "qwen2_5_vl",
        "Qwen2_5_VLForConditionalGeneration",
        qwen2_5_vl,
        text=_text("qwen2_5_vl_text", "Qwen2_5_VLTextModel", read_qwen2_vl_text),
        flat=True,
        tied_by="either",
    )
)
QWEN3_VL = family(
    Wrapper(
        "qwen3_vl",
        "Qwen3VLForConditionalGeneration",
        qwen3_vl,
        text=_text("qwen3_vl_text", "Qwen3VLTextModel", read_qwen3_vl_text),
    )
)
QWEN3_VL_MOE = family(
    Wrapper(
        "qwen3_vl_moe",
        "Qwen3VLMoeForConditionalGeneration",
        qwen3_vl,
        text=_text("qwen3_vl_moe_text", "Qwen3VLMoeTextModel", read_qwen3_vl_moe_text),
    )
)
QWEN3_5 = family(Wrapper("qwen3_5", "Qwen3_5ForConditionalGeneration", qwen3_5, text=QWEN3_5_TEXT))
QWEN3_5_MOE = family(Wrapper("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration", qwen3_5, text=QWEN3_5_MOE_TEXT))
GLM46V = family(
    Wrapper(
        "glm46v",
        "Glm46VForConditionalGeneration",
        glm4v,
        text=_text("glm4v_text", "Glm4vTextModel", read_glm4v_text),
    )
)
GLM4V_MOE = family(
    Wrapper(
        "glm4v_moe",
        "Glm4vMoeForConditionalGeneration",
        glm4v,
        text=_text("glm4v_moe_text", "Glm4vMoeTextModel", read_glm4v_moe_text),
        tied_by="either",
    )
)
GLM4V = family(
    Wrapper(
        "glm4v",
        "Glm4vForConditionalGeneration",
        glm4v,
        text=_text("glm4v_text", "Glm4vTextModel", read_glm4v_text),
        tied_by="either",
    )
)
