"""Wrappers with a tower or a projector of their own: Video-LLaVA, LightOnOCR, DeepSeek-VL, Kimi K2.5, Molmo 2, Ovis 2.

Source: the modeling files of the same names in transformers.
"""

from typing import Any

from app.planning.families.decoder import Block, DecoderLayout, Dense, Placement, forward
from app.planning.families.expert_layers import attention_of, silu
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.multimodal import CLIP_LARGE, PROJECTOR, llava_projector
from app.planning.families.plain_mlp import PERSIMMON
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.families.towers import (
    Stack,
    convolution,
    heads_divide,
    layer,
    linear,
    norm,
    pair,
    put,
    tower_sizes,
    weight,
)
from app.planning.families.vision import clip, pixtral, siglip
from app.planning.families.wrapper import Wrapper, family
from app.planning.sizes import named

HIDDEN = named("hidden_size")
WIDTH = named("vision_hidden_size")
MOLMO2_DEFAULTS = Defaults(151936, 4096, 36, 32, 36864, intermediate_size=12288, num_key_value_heads=8, head_dim=128)
LIGHTON_TEXT: dict[str, Any] = {
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "vocab_size": 151936,
}


def video_llava(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Video-LLaVA: LLaVA with one CLIP tower for images and one for videos."""
    fields.ignore("video_token_index", "video_seq_length")
    nested = fields.section("vision_config", CLIP_LARGE | {"image_size": 224})
    towers = [clip(nested, sizes, f"model.{kind}_tower") for kind in ("image", "video")]
    return (*towers[0], *towers[1], Stack(PROJECTOR, "projector", llava_projector(fields, sizes)))


def lighton_ocr(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """LightOnOCR: Mistral 3's wrapper around Qwen3, with a tower that has another name."""
    fields.ignore("image_token_id", "eos_token_id")
    nested = fields.section("vision_config", {"patch_size": 14, "image_size": 1540})
    merge = put(sizes, "spatial_merge_size", fields.count("spatial_merge_size", 2))
    parts = (
        norm("norm", WIDTH, bias=False),
        linear("patch_merger.merging_layer", WIDTH * merge * merge, WIDTH, bias=False),
        linear("linear_1", WIDTH, HIDDEN, bias=False),
        linear("linear_2", HIDDEN, HIDDEN, bias=False),
    )
    stacks = pixtral(nested, sizes, "model.vision_encoder")
    return (*stacks, Stack("model.vision_projection", "projector", parts))


def deepseek_vl(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """DeepSeek-VL: a SigLIP tower and two linear layers."""
    fields.ignore("image_token_id")
    stacks = siglip(fields.section("vision_config"), sizes, "model.vision_model")
    parts = (linear("linear1", WIDTH, HIDDEN), linear("linear2", HIDDEN, HIDDEN))
    return (*stacks, Stack("model.aligner", "projector", parts))


def kimi_k25(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Kimi K2.5: MoonViT, whose patches are gathered in squares, and a projector of two linear layers."""
    fields.ignore("projection_layer_norm_eps", "media_placeholder_token_id", "ignore_index", "use_unified_vision_chunk")
    fields.ignore("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    nested = fields.section("vision_config")
    nested.ignore("hidden_act", "pos_emb_time")
    defaults = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    s = tower_sizes(nested, sizes, {**defaults, "patch_size": 14, "pos_emb_height": 64, "pos_emb_width": 64})
    heads_divide(nested, sizes, "num_attention_heads", "hidden_size")
    merge = pair(nested, "merge_kernel_size", 2)
    width = s["hidden_size"]
    gathered = put(sizes, "vision_merged_patches", merge[0] * merge[1]) * width
    normed = put(sizes, "projection_hidden_size", fields.count("projection_hidden_size", 1152))
    parts = (
        convolution("patch_embed.proj", s["patch_size"] * s["patch_size"], put(sizes, "vision_channels", 3), width),
        weight("patch_embed.pos_emb", s["pos_emb_height"] * s["pos_emb_width"] * width),
        norm("final_layernorm", width),
    )
    attention = ("attn.q_proj", "attn.k_proj", "attn.v_proj")
    block = layer(width, s["intermediate_size"], attention=attention, output="attn.proj", norms=("norm1", "norm2"))
    projector = (
        norm("pre_norm", normed),
        linear("in_proj", gathered, gathered),
        linear("out_proj", gathered, HIDDEN),
    )
    path = "model.vision_tower"
    return (
        Stack(path, "vision", parts),
        Stack(f"{path}.layers", "vision", block, s["num_hidden_layers"]),
        Stack("model.mm_projector", "projector", projector),
    )


def read_molmo2_text(fields: Fields) -> Shapes:
    """Molmo 2's text model: Qwen3 or, by `qk_norm_type`, with OLMo's norms over all queries and all keys."""
    sizes = decoder_sizes(fields, MOLMO2_DEFAULTS)
    fields.ignore("rope_scaling_layers")
    sizes["additional_vocab_size"] = fields.whole("additional_vocab_size", 128, most=2**24)
    alias = fields.flag("qkv_bias", default=False)
    bias = fields.flag("attention_bias", default=alias)
    full = fields.one_of("qk_norm_type", ("qwen3", "olmo"), default="qwen3") == "olmo"
    attention = attention_of(fields, sizes, bias=bias, output_bias=False, head_norms=not full, full_norms=full)
    placement: Placement = "output" if fields.flag("norm_after", default=False) else "pre"
    block = Block(attention, Dense(activation=silu(fields)), placement=placement)
    layout = DecoderLayout((block,), tied=fields.flag("tie_word_embeddings", default=False))
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def molmo2(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Molmo 2: features of two layers of the tower, pooled by attention, then a gated projector."""
    fields.ignore(*(f"{name}_token_id" for name in ("image_start", "low_res_image_start", "image_end")))
    fields.ignore("frame_start_token_id", "frame_end_token_id", "image_patch_id")
    fields.must_be("tie_word_embeddings", False, because="its word embeddings have more rows than its head")
    stacks = _molmo2_tower(fields.section("vision_config"), sizes)
    nested = fields.section("adapter_config")
    nested.ignore("hidden_act", "attention_dropout")
    listed = nested.get("vision_feature_layer")
    layers = put(sizes, "num_feature_layers", 2 if listed is None else len(nested.integers("vision_feature_layer")))
    if not 1 <= sizes["num_feature_layers"] <= 1000:
        raise nested.refuse("vision_feature_layer", "vision_feature_layer must name from 1 to 1,000 layers")
    defaults = {"hidden_size": 1152, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72}
    s = tower_sizes(nested, sizes, {**defaults, "intermediate_size": 18944, "text_hidden_size": 3584}, prefix="adapter")
    bias, mlp_bias = nested.flag("attention_bias", default=True), nested.flag("mlp_bias", default=False)
    query, shared = (s[name] * s["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    features = WIDTH * layers
    parts = (
        linear("image_pooling_2d.q_proj", features, query, bias=bias),
        linear("image_pooling_2d.k_proj", features, shared, bias=bias),
        linear("image_pooling_2d.v_proj", features, shared, bias=bias),
        linear("image_pooling_2d.o_proj", query, s["hidden_size"], bias=bias),
        linear("image_projector.gate_proj", s["hidden_size"], s["intermediate_size"], bias=mlp_bias),
        linear("image_projector.up_proj", s["hidden_size"], s["intermediate_size"], bias=mlp_bias),
        linear("image_projector.down_proj", s["intermediate_size"], s["text_hidden_size"], bias=False),
    )
    rows = weight("image_rows", named("additional_vocab_size") * HIDDEN)
    return (
        *stacks,
        Stack(PROJECTOR, "projector", parts),
        Stack("model.language_model.embed_tokens", "word_embedding", (rows,)),
    )


def _molmo2_tower(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    fields.ignore("hidden_act", "attention_dropout")
    defaults = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 25, "num_attention_heads": 16}
    s = tower_sizes(fields, sizes, {**defaults, "patch_size": 14, "num_channels": 3, "head_dim": 72})
    fields.must_be(
        "num_key_value_heads", sizes["vision_num_attention_heads"], because="its towers never share key/value heads"
    )
    image = pair(fields, "image_size", 378)
    side = sizes["vision_patch_size"]
    default = (image[0] // side) * (image[1] // side)
    rows = put(sizes, "vision_positions", fields.count("num_position_embeddings", default))
    width, bias = s["hidden_size"], fields.flag("attention_bias", default=True)
    parts = (
        weight("positional_embedding", rows * width),
        linear("patch_embedding", s["num_channels"] * s["patch_size"] * s["patch_size"], width),
    )
    block = layer(
        width,
        s["intermediate_size"],
        output="self_attn.o_proj",
        bias=bias,
        output_bias=bias,
        heads_width=s["num_attention_heads"] * s["head_dim"],
    )
    path = "model.vision_tower"
    return Stack(path, "vision", parts), Stack(f"{path}.layers", "vision", block, s["num_hidden_layers"])


def ovis2(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Ovis 2: an image becomes a mixture of words of a visual vocabulary, which has embeddings of its own."""
    fields.ignore("image_token_id", "visual_indicator_token_ids", "vocab_size")
    nested = fields.section("vision_config")
    nested.ignore("hidden_act", "attention_dropout", "tokenize_function")
    s = tower_sizes(
        nested,
        sizes,
        {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 24,
            "num_attention_heads": 8,
            "num_channels": 3,
            "image_size": 224,
            "patch_size": 14,
            "vocab_size": 16384,
            "hidden_stride": 1,
            "num_visual_indicator_tokens": 5,
        },
    )
    heads_divide(nested, sizes, "num_attention_heads", "hidden_size")
    if sizes["vision_vocab_size"] <= sizes["vision_num_visual_indicator_tokens"]:
        raise nested.refuse("vocab_size", "vocab_size must exceed num_visual_indicator_tokens")
    width = s["hidden_size"]
    words = s["vocab_size"] - s["num_visual_indicator_tokens"]
    side = sizes["vision_image_size"] // sizes["vision_patch_size"]
    embedded = put(sizes, "visual_embedding_size", fields.count("hidden_size", 1536))
    kernel = s["patch_size"] * s["patch_size"]
    parts = (
        convolution("transformer.embeddings.patch_embedding", kernel, s["num_channels"], width),
        weight("transformer.embeddings.position_embedding", put(sizes, "vision_patches", side * side) * width),
        norm("transformer.embeddings.rms_norm", width, bias=False),
        norm("transformer.rms_norm", width, bias=False),
        linear("head_linear", width * s["hidden_stride"] * s["hidden_stride"], words, bias=False),
        norm("head_norm", words),
    )
    bias = nested.flag("qkv_bias", default=False)
    block = layer(
        width,
        s["intermediate_size"],
        attention=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        output="attention.out_proj",
        mlp=("ffn.gate_proj", "ffn.up_proj", "ffn.down_proj"),
        norms=("rms_norm1", "rms_norm2"),
        bias=bias,
        output_bias=bias,
        mlp_bias=nested.flag("mlp_bias", default=False),
        norm_bias=False,
    )
    path = "model.vision_tower"
    return (
        Stack(path, "vision", parts),
        Stack(f"{path}.transformer.encoder.layers", "vision", block, s["num_hidden_layers"]),
        Stack("model", "vision", (weight("visual_embeddings_table", s["vocab_size"] * embedded),)),
    )


def fuyu(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Fuyu: no tower; patches go through one linear layer into Persimmon."""
    fields.ignore("image_token_id", "image_size")
    s = tower_sizes(fields, sizes, {"patch_size": 30, "num_channels": 3})
    pixels = s["patch_size"] * s["patch_size"] * s["num_channels"]
    return (Stack("model", "vision", (linear("vision_embed_tokens", pixels, HIDDEN),)),)


VIDEO_LLAVA = family(Wrapper("video_llava", "VideoLlavaForConditionalGeneration", video_llava))
LIGHTON_OCR = family(
    Wrapper(
        "lighton_ocr",
        "LightOnOcrForConditionalGeneration",
        lighton_ocr,
        text="qwen3",
        tied=True,
        text_default=LIGHTON_TEXT,
    )
)
DEEPSEEK_VL = family(Wrapper("deepseek_vl", "DeepseekVLForConditionalGeneration", deepseek_vl, tied=True))
KIMI_K25 = family(
    Wrapper(
        "kimi_k25",
        "Kimi_K25ForConditionalGeneration",
        kimi_k25,
        text="deepseek_v3",
        text_names=(("kimi_k2", "deepseek_v3"),),
        tied=True,
    )
)
MOLMO2 = family(
    Wrapper(
        "molmo2",
        "Molmo2ForConditionalGeneration",
        molmo2,
        text=Family("molmo2_text", "Molmo2TextModel", read_molmo2_text, forward),
    )
)
OVIS2 = family(Wrapper("ovis2", "Ovis2ForConditionalGeneration", ovis2, text="qwen2", tied=True))
FUYU = family(Wrapper("fuyu", "FuyuForCausalLM", fuyu, text=PERSIMMON, flat=True))
