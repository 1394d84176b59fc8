"""Wrappers of a text model and an image tower: Gemma 3, LLaVA and its like, PaliGemma, Mistral 3, InternVL,
LFM2-VL, Idefics.

A wrapper reads `text_config` as the text model's own family does, and `vision_config` as the tower's reader does; its
class puts a head of its own on the text model. Source: the modeling files of the same names in transformers.
"""

from collections.abc import Mapping
from typing import Any

from app.planning.families.fields import Fields
from app.planning.families.towers import Part, Stack, linear, norm, put, tower_sizes, weight
from app.planning.families.vision import TOWER, clip, internvit, pixtral, siglip, siglip2
from app.planning.families.wrapper import Wrapper, family, feature_layers
from app.planning.sizes import named

PROJECTOR = "model.multi_modal_projector"
HIDDEN = named("hidden_size")
WIDTH = named("vision_hidden_size")
CLIP_LARGE: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
SIGLIP_SO400M: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "patch_size": 14,
    "image_size": 384,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "vision_use_head": False,
}
_TOWERS = {"siglip_vision_model": siglip, "clip_vision_model": clip, "pixtral": pixtral}


def tower(fields: Fields, sizes: dict[str, int], default: Mapping[str, Any]) -> tuple[Stack, ...]:
    """The tower of a wrapper that takes any of those known, by the `model_type` of its `vision_config`."""
    nested = fields.section("vision_config", default)
    kind = nested.one_of("model_type", tuple(_TOWERS), default=str(default["model_type"]))
    return _TOWERS[kind](nested, sizes, TOWER)


def gemma3(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Gemma 3: a SigLIP tower, its patches averaged, normed and projected by one matrix."""
    fields.ignore("mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index")
    stacks = tower(fields, sizes, {"model_type": "siglip_vision_model"})
    parts = (weight("mm_input_projection", WIDTH * HIDDEN), norm("mm_soft_emb_norm", WIDTH, bias=False))
    return (*stacks, Stack(PROJECTOR, "projector", parts))


def paligemma(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """PaliGemma: a SigLIP tower and one linear layer into `projection_dim`."""
    fields.ignore("vocab_size", "_vocab_size", "hidden_size", "num_hidden_layers", "image_token_index", "ignore_index")
    stacks = tower(
        fields, sizes, SIGLIP_SO400M | {"intermediate_size": 4096, "image_size": 224, "num_hidden_layers": 27}
    )
    out = put(sizes, "projection_dim", fields.count("projection_dim", 2048))
    return (*stacks, Stack(PROJECTOR, "projector", (linear("linear", WIDTH, out),)))


def llava(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """LLaVA: a CLIP tower and an MLP of two linear layers."""
    return (*tower(fields, sizes, CLIP_LARGE), Stack(PROJECTOR, "projector", llava_projector(fields, sizes)))


def llava_next(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """LLaVA-NeXT: LLaVA with a learned vector at the end of each row of an image."""
    return (*llava(fields, sizes), NEWLINE)


def llava_onevision(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """LLaVA-OneVision: LLaVA-NeXT with a SigLIP tower."""
    fields.ignore("vision_aspect_ratio", "video_token_index")
    stacks = tower(fields, sizes, SIGLIP_SO400M)
    return (*stacks, Stack(PROJECTOR, "projector", llava_projector(fields, sizes)), NEWLINE)


def vipllava(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """ViP-LLaVA: features of several layers side by side, normed before the projector."""
    _llava_fields(fields)
    fields.ignore("projector_layernorm_eps", "vision_feature_layers")
    stacks = tower(fields, sizes, CLIP_LARGE)
    features = WIDTH * feature_layers(fields, sizes, default=5)
    parts = (
        norm("projector_layernorm", features),
        linear("linear_1", features, HIDDEN),
        linear("linear_2", HIDDEN, HIDDEN),
    )
    return (*stacks, Stack(PROJECTOR, "projector", parts))


def mistral3(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Mistral Small 3.1 and its like: a Pixtral tower, patches merged four to one, then LLaVA's projector."""
    default = {"model_type": "pixtral", "patch_size": 14, "image_size": 1540}
    stacks = tower(fields, sizes, default)
    merge = put(sizes, "spatial_merge_size", fields.count("spatial_merge_size", 2))
    parts = (
        norm("norm", WIDTH, bias=False),
        linear("patch_merger.merging_layer", WIDTH * merge * merge, WIDTH, bias=False),
        *llava_projector(fields, sizes, bias=False),
    )
    return (*stacks, Stack(PROJECTOR, "projector", parts))


def aya_vision(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Aya Vision: SigLIP patches gathered in squares, normed, and a gated projector."""
    fields.ignore(
        "vision_feature_layer", "vision_feature_select_strategy", "adapter_layer_norm_eps", "image_token_index"
    )
    stacks = tower(fields, sizes, SIGLIP_SO400M | {"num_attention_heads": 14})
    return (*stacks, Stack(PROJECTOR, "projector", _gated_projector(fields, sizes, normed=True)))


def cohere2_vision(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Command A Vision: Aya Vision's projector without the norm."""
    shape = {"hidden_size": 1152, "num_hidden_layers": 27, "image_size": 512}
    stacks = tower(fields, sizes, {"model_type": "siglip_vision_model", **shape})
    return (*stacks, Stack(PROJECTOR, "projector", _gated_projector(fields, sizes, normed=False)))


def lfm2_vl(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """LFM2-VL: SigLIP 2 patches gathered in squares, a norm and two linear layers of a width of their own."""
    fields.ignore("image_token_id", "image_token_index", "projector_hidden_act", "vision_feature_layer", "max_tiles")
    fields.ignore("do_image_splitting", "encoder_patch_size", "max_image_tokens", "min_image_tokens", "min_tiles")
    fields.ignore("max_num_patches", "tile_size", "use_image_special_tokens", "use_thumbnail", "max_pixels_tolerance")
    nested = fields.section("vision_config")
    nested.must_be("model_type", "siglip2_vision_model", because="another tower is built otherwise")
    stacks = siglip2(nested, sizes)
    factor = put(sizes, "downsample_factor", fields.count("downsample_factor", 2, most=100))
    inner = put(sizes, "projector_hidden_size", fields.count("projector_hidden_size", 2560))
    bias = fields.flag("projector_bias", default=True)
    gathered = WIDTH * factor * factor
    parts = (
        *((norm("layer_norm", gathered),) if fields.flag("projector_use_layernorm", default=True) else ()),
        linear("linear_1", gathered, inner, bias=bias),
        linear("linear_2", inner, HIDDEN, bias=bias),
    )
    return (*stacks, Stack(PROJECTOR, "projector", parts))


def internvl(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """InternVL: an InternViT tower, patches gathered in squares, a norm and two linear layers."""
    _llava_fields(fields)
    fields.ignore("vision_feature_layer")
    stacks = internvit(fields.section("vision_config"), sizes)
    ratio = fields.get("downsample_ratio")
    ratio = 0.5 if ratio is None else ratio
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0.01 <= ratio <= 1:
        raise fields.refuse("downsample_ratio", "downsample_ratio must be a number from 0.01 to 1")
    factor = put(sizes, "vision_downsample_factor", int(1 / ratio))
    gathered = WIDTH * factor * factor
    parts = (norm("layer_norm", gathered), linear("linear_1", gathered, HIDDEN), linear("linear_2", HIDDEN, HIDDEN))
    return (*stacks, Stack(PROJECTOR, "projector", parts))


def idefics2(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Idefics2: a SigLIP-like tower, a gated MLP into the text width, and a perceiver that makes latents of it."""
    fields.ignore("image_token_id")
    stacks = siglip(
        fields.section("vision_config"), sizes, "model.vision_model", defaults={"patch_size": 32}, head=False
    )
    nested = fields.section("perceiver_config")
    nested.ignore("hidden_act", "hidden_size", "attention_dropout")
    defaults = {"resampler_n_latents": 64, "resampler_depth": 3, "resampler_n_heads": 16, "resampler_head_dim": 96}
    s = tower_sizes(nested, sizes, defaults | {"num_key_value_heads": 4}, prefix="perceiver")
    query, inner = s["resampler_n_heads"] * s["resampler_head_dim"], named("intermediate_size")
    shared = s["num_key_value_heads"] * s["resampler_head_dim"]
    resampler = "model.connector.perceiver_resampler"
    parts = (
        linear("gate_proj", WIDTH, inner, bias=False),
        linear("up_proj", WIDTH, inner, bias=False),
        linear("down_proj", inner, HIDDEN, bias=False),
    )
    block = (
        *(
            norm(name, HIDDEN, bias=False)
            for name in ("input_latents_norm", "input_context_norm", "post_attention_layernorm")
        ),
        linear("self_attn.q_proj", HIDDEN, query, bias=False),
        linear("self_attn.k_proj", HIDDEN, shared, bias=False),
        linear("self_attn.v_proj", HIDDEN, shared, bias=False),
        linear("self_attn.o_proj", query, HIDDEN, bias=False),
        linear("mlp.gate_proj", HIDDEN, HIDDEN * 4, bias=False),
        linear("mlp.up_proj", HIDDEN, HIDDEN * 4, bias=False),
        linear("mlp.down_proj", HIDDEN * 4, HIDDEN, bias=False),
    )
    return (
        *stacks,
        Stack("model.connector.modality_projection", "projector", parts),
        Stack(
            resampler,
            "projector",
            (weight("latents", s["resampler_n_latents"] * HIDDEN), norm("norm", HIDDEN, bias=False)),
        ),
        Stack(f"{resampler}.layers", "projector", block, s["resampler_depth"]),
    )


def idefics3(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Idefics3 and SmolVLM: patches gathered in squares and projected by one linear layer."""
    defaults = {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
    fields.ignore("image_token_id", "image_seq_len")
    nested = fields.section("vision_config")
    stacks = siglip(nested, sizes, "model.vision_model", defaults=defaults, head=False)
    factor = put(sizes, "scale_factor", fields.count("scale_factor", 2))
    projection = linear("modality_projection.proj", WIDTH * factor * factor, HIDDEN, bias=False)
    return (*stacks, Stack("model.connector", "projector", (projection,)))


NEWLINE = Stack("model", "projector", (weight("image_newline", HIDDEN),))


def llava_projector(fields: Fields, sizes: dict[str, int], *, bias: bool = True) -> tuple[Part, ...]:
    """LLaVA's projector: two linear layers, with or without biases."""
    _llava_fields(fields)
    fields.ignore("image_grid_pinpoints")
    features = WIDTH * feature_layers(fields, sizes, default=1)
    bias = fields.flag("multimodal_projector_bias", default=bias)
    return linear("linear_1", features, HIDDEN, bias=bias), linear("linear_2", HIDDEN, HIDDEN, bias=bias)


def _llava_fields(fields: Fields) -> None:
    fields.ignore("image_token_index", "image_token_id", "image_seq_length", "projector_hidden_act", "ignore_index")
    fields.ignore("vocab_size")
    fields.ignore("vision_feature_select_strategy", "use_image_newline_parameter")


def _gated_projector(fields: Fields, sizes: dict[str, int], *, normed: bool) -> tuple[Part, ...]:
    factor = put(sizes, "downsample_factor", fields.count("downsample_factor", 2, most=100))
    default = sizes["hidden_size"] if normed else 36864
    inner = put(sizes, "alignment_intermediate_size", fields.count("alignment_intermediate_size", default))
    half = put(sizes, "alignment_half_size", sizes["alignment_intermediate_size"] // 2)
    gathered = WIDTH * factor * factor
    return (
        *((norm("layernorm", gathered),) if normed else ()),
        linear("linear_1", gathered, inner),
        linear("linear_2", half, HIDDEN),
    )


GEMMA3 = family(Wrapper("gemma3", "Gemma3ForConditionalGeneration", gemma3, text="gemma3_text", only=True, tied=True))
PALIGEMMA = family(
    Wrapper(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        paligemma,
        text="gemma",
        tied=True,
        text_default={
            "hidden_size": 2048,
            "num_hidden_layers": 18,
            "intermediate_size": 16384,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "vocab_size": 257152,
        },
    )
)
LLAVA = family(Wrapper("llava", "LlavaForConditionalGeneration", llava, tied_by="either"))
LLAVA_NEXT = family(Wrapper("llava_next", "LlavaNextForConditionalGeneration", llava_next))
LLAVA_ONEVISION = family(
    Wrapper(
        "llava_onevision", "LlavaOnevisionForConditionalGeneration", llava_onevision, text="qwen2", tied_by="either"
    )
)
VIPLLAVA = family(Wrapper("vipllava", "VipLlavaForConditionalGeneration", vipllava))
MISTRAL3 = family(
    Wrapper(
        "mistral3",
        "Mistral3ForConditionalGeneration",
        mistral3,
        text="mistral",
        tied=True,
        text_default={
            "head_dim": 128,
            "hidden_size": 5120,
            "intermediate_size": 32768,
            "max_position_embeddings": 131072,
            "num_attention_heads": 32,
            "num_hidden_layers": 40,
            "num_key_value_heads": 8,
            "vocab_size": 131072,
        },
    )
)
AYA_VISION = family(Wrapper("aya_vision", "AyaVisionForConditionalGeneration", aya_vision, text="cohere2", tied=True))
COHERE2_VISION = family(
    Wrapper("cohere2_vision", "Cohere2VisionForConditionalGeneration", cohere2_vision, text="cohere2", tied=True)
)
LFM2_VL = family(
    Wrapper("lfm2_vl", "Lfm2VlForConditionalGeneration", lfm2_vl, text="lfm2", tied=True, tied_alias="tie_embedding")
)
INTERNVL = family(Wrapper("internvl", "InternVLForConditionalGeneration", internvl, text="qwen2", tied=True))
IDEFICS2 = family(Wrapper("idefics2", "Idefics2ForConditionalGeneration", idefics2, text="mistral"))
IDEFICS3 = family(Wrapper("idefics3", "Idefics3ForConditionalGeneration", idefics3))
SMOLVLM = family(Wrapper("smolvlm", "SmolVLMForConditionalGeneration", idefics3))
