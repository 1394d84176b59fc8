"""Meta's wrappers: Llama 3.2 Vision (mllama), whose text model attends to images in layers of their own, and Llama 4.

Source: transformers modeling_mllama.py, modeling_llama4.py.
"""

from app.planning.families.decoder import Block, DecoderLayout, Dense, forward
from app.planning.families.expert_layers import attention_of, silu
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.multimodal import PROJECTOR
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.families.shared_experts import LLAMA4_TEXT
from app.planning.families.towers import (
    Stack,
    convolution,
    heads_divide,
    layer,
    linear,
    norm,
    put,
    tower_sizes,
    weight,
)
from app.planning.families.wrapper import Wrapper, family
from app.planning.sizes import Size, named

MLLAMA_DEFAULTS = Defaults(128256, 4096, 40, 32, 131072, intermediate_size=14336, num_key_value_heads=8)
EXTRA_ROWS = 8
"""Rows of Llama 3.2 Vision's word embeddings that its head does not have."""
ASPECT_RATIOS = 8
HIDDEN = named("hidden_size")
_TEXT = "model.language_model"


def read_mllama_text(fields: Fields) -> Shapes:
    """Llama 3.2 Vision's text model: Llama, some of whose layers attend to an image instead of to the text.

    Without an image those layers are passed over, so that they belong to the towers.
    """
    fields.must_be("head_dim", None, because="the class has no head size of its own")
    fields.ignore("dropout")
    sizes = decoder_sizes(fields, MLLAMA_DEFAULTS)
    listed = fields.integers("cross_attention_layers")
    if fields.get("cross_attention_layers") is None:
        listed = (3, 8, 13, 18, 23, 28, 33, 38)
    crossing = sum(1 for index in set(listed) if 0 <= index < sizes["num_hidden_layers"])
    sizes["num_cross_attention_layers"] = crossing
    sizes["num_self_attention_layers"] = sizes["num_hidden_layers"] - crossing
    if not sizes["num_self_attention_layers"]:
        raise fields.refuse("cross_attention_layers", "cross_attention_layers leaves no layer for the text")
    block = Block(attention_of(fields, sizes), Dense(activation=silu(fields)), repeats="num_self_attention_layers")
    layout = DecoderLayout((block,), tied=fields.flag("tie_word_embeddings", default=False))
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def mllama(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Llama 3.2 Vision's tower, and what its text model has for images."""
    fields.ignore("image_token_index")
    fields.must_be("tie_word_embeddings", False, because="its word embeddings have more rows than its head")
    nested = fields.section("vision_config")
    tower = _mllama_tower(nested, sizes)
    out = put(sizes, "vision_output_dim", nested.count("vision_output_dim", 7680))
    rows = Stack(f"{_TEXT}.embed_tokens", "word_embedding", (weight("image_rows", HIDDEN * EXTRA_ROWS),))
    stacks = (*tower, Stack("model", "projector", (linear("multi_modal_projector", out, HIDDEN),)), rows)
    if not sizes["num_cross_attention_layers"]:
        return stacks
    return (*stacks, _cross_attention_layers())


def _mllama_tower(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    fields.ignore("hidden_act", "norm_eps", "intermediate_layers_indices", "attention_dropout", "max_aspect_ratio_id")
    s = tower_sizes(
        fields,
        sizes,
        {
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": 32,
            "num_global_layers": 8,
            "attention_heads": 16,
            "num_channels": 3,
            "image_size": 448,
            "patch_size": 14,
            "max_num_tiles": 4,
        },
    )
    heads_divide(fields, sizes, "attention_heads", "hidden_size")
    ratios = fields.get("supported_aspect_ratios")
    if ratios is not None and (not isinstance(ratios, list) or not 1 <= len(ratios) <= 1000):
        raise fields.refuse("supported_aspect_ratios", "supported_aspect_ratios must be a list of 1 to 1,000 ratios")
    kinds = put(sizes, "vision_aspect_ratios", (ASPECT_RATIOS if ratios is None else len(ratios)) + 1)
    width, tile = s["hidden_size"], s["max_num_tiles"] * s["hidden_size"]
    side = sizes["vision_image_size"] // sizes["vision_patch_size"]
    patches = put(sizes, "vision_patches", side * side + 1)
    parts = (
        weight("class_embedding", width),
        convolution("patch_embedding", s["patch_size"] * s["patch_size"], s["num_channels"], width, bias=False),
        weight("gated_positional_embedding.embedding", patches * width),
        weight("gated_positional_embedding.tile_embedding", kinds * patches * tile),
        weight("pre_tile_positional_embedding.embedding", kinds * tile),
        weight("post_tile_positional_embedding.embedding", kinds * tile),
        weight("gates", Size.of(3)),
        norm("layernorm_pre", width),
        norm("layernorm_post", width),
    )
    block = layer(
        width,
        s["intermediate_size"],
        output="self_attn.o_proj",
        norms=("input_layernorm", "post_attention_layernorm"),
        bias=False,
        output_bias=False,
    )
    gates = (weight("gate_attn", Size.of(1)), weight("gate_ffn", Size.of(1)))
    path = "model.vision_model"
    return (
        Stack(path, "vision", parts),
        Stack(f"{path}.transformer.layers", "vision", block, s["num_hidden_layers"]),
        Stack(f"{path}.global_transformer.layers", "vision", (*block, *gates), s["num_global_layers"]),
    )


def _cross_attention_layers() -> Stack:
    query = named("num_attention_heads") * named("head_dim")
    shared = named("num_key_value_heads") * named("head_dim")
    inner = named("intermediate_size")
    parts = (
        norm("input_layernorm", HIDDEN, bias=False, component="norm"),
        norm("post_attention_layernorm", HIDDEN, bias=False, component="norm"),
        norm("cross_attn.q_norm", named("head_dim"), bias=False, component="norm"),
        norm("cross_attn.k_norm", named("head_dim"), bias=False, component="norm"),
        linear("cross_attn.q_proj", HIDDEN, query, bias=False),
        linear("cross_attn.k_proj", HIDDEN, shared, bias=False),
        linear("cross_attn.v_proj", HIDDEN, shared, bias=False),
        linear("cross_attn.o_proj", query, HIDDEN, bias=False),
        weight("cross_attn_attn_gate", Size.of(1)),
        weight("cross_attn_mlp_gate", Size.of(1)),
        linear("mlp.gate_proj", HIDDEN, inner, bias=False, component="mlp"),
        linear("mlp.up_proj", HIDDEN, inner, bias=False, component="mlp"),
        linear("mlp.down_proj", inner, HIDDEN, bias=False, component="mlp"),
    )
    return Stack(f"{_TEXT}.layers", "attention", parts, named("num_cross_attention_layers"))


def llama4(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Llama 4's tower: patches through a linear layer, an adapter that shuffles them together, and the projector."""
    fields.ignore("boi_token_index", "eoi_token_index", "image_token_index")
    nested = fields.section("vision_config")
    nested.ignore("hidden_act", "norm_eps", "vision_feature_select_strategy", "vision_feature_layer", "rope_theta")
    nested.ignore("pixel_shuffle_ratio", "projector_dropout", "attention_dropout", "multi_modal_projector_bias")
    s = tower_sizes(
        nested,
        sizes,
        {
            "hidden_size": 768,
            "intermediate_size": 5632,
            "num_hidden_layers": 34,
            "num_attention_heads": 16,
            "num_channels": 3,
            "image_size": 448,
            "patch_size": 14,
            "vision_output_dim": 7680,
            "projector_input_dim": 4096,
            "projector_output_dim": 4096,
        },
    )
    heads_divide(nested, sizes, "num_attention_heads", "hidden_size")
    width, inner, out = s["hidden_size"], s["intermediate_size"], s["projector_output_dim"]
    side = sizes["vision_image_size"] // sizes["vision_patch_size"]
    patches = put(sizes, "vision_patches", side * side + 1)
    pixels = s["num_channels"] * s["patch_size"] * s["patch_size"]
    parts = (
        weight("class_embedding", width),
        weight("positional_embedding_vlm", patches * width),
        linear("patch_embedding.linear", pixels, width, bias=False),
        norm("layernorm_pre", width),
        norm("layernorm_post", width),
        linear("vision_adapter.mlp.fc1", inner, s["projector_input_dim"], bias=False),
        linear("vision_adapter.mlp.fc2", out, out, bias=False),
    )
    norms = ("input_layernorm", "post_attention_layernorm")
    block = layer(width, inner, output="self_attn.o_proj", norms=norms)
    projector = (linear("linear_1", s["vision_output_dim"], HIDDEN, bias=False),)
    return (
        Stack("vision_model", "vision", parts),
        Stack("vision_model.model.layers", "vision", block, s["num_hidden_layers"]),
        Stack(PROJECTOR.removeprefix("model."), "projector", projector),
    )


MLLAMA = family(
    Wrapper(
        "mllama",
        "MllamaForConditionalGeneration",
        mllama,
        text=Family("mllama_text_model", "MllamaTextModel", read_mllama_text, forward),
    )
)
LLAMA4 = family(
    Wrapper(
        "llama4",
        "Llama4ForConditionalGeneration",
        llama4,
        text=LLAMA4_TEXT,
        tied_by="text",
        text_path="language_model.model",
    )
)
