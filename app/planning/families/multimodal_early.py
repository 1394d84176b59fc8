"""Wrappers whose text models are older: BLIP-2 around OPT, Florence-2 around BART.

Source: transformers modeling_blip_2.py, modeling_florence2.py.
"""

from app.planning.families.bart import BART
from app.planning.families.fields import LARGEST_LAYER_COUNT, Fields
from app.planning.families.towers import (
    Part,
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

HIDDEN = named("hidden_size")
MOST_STAGES = 16
DEPTHS = (1, 1, 9, 1)
WIDTHS = (128, 256, 512, 1024)
PATCHES = (7, 3, 3, 3)
NORM_FIRST = (False, True, True, True)


def blip_2(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """BLIP-2: a vision transformer whose features a Q-Former reads with learned queries."""
    fields.ignore("image_token_index", "image_token_id", "image_text_hidden_size", "initializer_factor")
    fields.ignore("use_decoder_only_language_model", "is_encoder_decoder", "num_query_tokens")
    tower = _blip_2_tower(fields.section("vision_config"), sizes)
    nested = fields.section("qformer_config")
    reader = _q_former(nested, sizes)
    width = named("qformer_hidden_size")
    queries = put(sizes, "num_query_tokens", fields.count("num_query_tokens", 32))
    parts = (weight("query_tokens", queries * width), linear("language_projection", width, HIDDEN))
    return (*tower, *reader, Stack("", "projector", parts))


def _blip_2_tower(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    fields.ignore("hidden_act", "attention_dropout", "dropout", "projection_dim", "initializer_factor")
    fields.must_be("num_channels", 3, because="its class reads images in three colours")
    s = tower_sizes(
        fields,
        sizes,
        {
            "hidden_size": 1408,
            "intermediate_size": 6144,
            "num_hidden_layers": 39,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
        },
    )
    heads_divide(fields, sizes, "num_attention_heads", "hidden_size")
    width = s["hidden_size"]
    side = sizes["vision_image_size"] // sizes["vision_patch_size"]
    positions = put(sizes, "vision_positions", side * side + 1)
    parts = (
        weight("embeddings.class_embedding", width),
        weight("embeddings.position_embedding", positions * width),
        convolution("embeddings.patch_embedding", s["patch_size"] * s["patch_size"], Size.of(3), width),
        norm("post_layernorm", width),
    )
    block = layer(
        width,
        s["intermediate_size"],
        attention=("self_attn.qkv",),
        output="self_attn.projection",
        bias=fields.flag("qkv_bias", default=True),
    )
    path = "vision_model"
    return Stack(path, "vision", parts), Stack(f"{path}.encoder.layers", "vision", block, s["num_hidden_layers"])


def _q_former(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    fields.must_be("use_qformer_text_input", False, because="text of its own adds embeddings and an MLP")
    fields.ignore("vocab_size", "max_position_embeddings", "hidden_act", "hidden_dropout_prob", "classifier_dropout")
    fields.ignore(
        "attention_probs_dropout_prob", "encoder_hidden_size", "position_embedding_type", "qformer_text_input"
    )
    defaults = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    s = tower_sizes(fields, sizes, {**defaults, "cross_attention_frequency": 2}, prefix="qformer")
    heads_divide(fields, sizes, "num_attention_heads", "hidden_size", prefix="qformer")
    layers, step = sizes["qformer_num_hidden_layers"], sizes["qformer_cross_attention_frequency"]
    crossing = put(sizes, "qformer_cross_attention_layers", -(-layers // step))
    width, inner = s["hidden_size"], s["intermediate_size"]
    block = (
        *_attention("attention", width, width),
        linear("intermediate_query.dense", width, inner),
        linear("output_query.dense", inner, width),
        norm("output_query.LayerNorm", width),
    )
    path = "qformer"
    return (
        Stack(path, "projector", (norm("layernorm", width),)),
        Stack(f"{path}.encoder.layer", "projector", block, s["num_hidden_layers"]),
        Stack(
            f"{path}.encoder.layer",
            "projector",
            _attention("crossattention", width, named("vision_hidden_size")),
            crossing,
        ),
    )


def _attention(name: str, width: Size, source: Size) -> tuple[Part, ...]:
    return (
        linear(f"{name}.attention.query", width, width),
        linear(f"{name}.attention.key", source, width),
        linear(f"{name}.attention.value", source, width),
        linear(f"{name}.output.dense", width, width),
        norm(f"{name}.output.LayerNorm", width),
    )


def florence2(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Florence-2: DaViT, whose stages attend over windows and over channels in turn."""
    fields.ignore("image_token_id", "vocab_size", "projection_dim", "is_encoder_decoder")
    nested = fields.section("vision_config")
    nested.ignore("patch_stride", "patch_padding", "num_heads", "num_groups", "window_size", "drop_path_rate")
    nested.ignore("activation_function", "max_temporal_embeddings", "model_type")
    s = tower_sizes(nested, sizes, {"in_channels": 3, "projection_dim": 1024, "max_position_embeddings": 50})
    widths, depths, patches, first = _stages(nested)
    ratio = nested.get("mlp_ratio")
    ratio = 4.0 if ratio is None else ratio
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0.01 <= ratio <= 1000:
        raise nested.refuse("mlp_ratio", "mlp_ratio must be a number from 0.01 to 1,000")
    bias = nested.flag("qkv_bias", default=True)
    stacks = []
    entering = s["in_channels"]
    for stage, amount in enumerate(widths):
        width = put(sizes, f"vision_width_{stage}", amount)
        inner = put(sizes, f"vision_inner_{stage}", int(amount * ratio))
        kernel = put(sizes, f"vision_patch_area_{stage}", patches[stage] * patches[stage])
        parts = (
            convolution("conv", kernel, entering, width),
            norm("norm", entering if first[stage] else width),
        )
        blocks = (*_block("spatial_block", "window_attn", width, inner, bias=bias),)
        blocks += _block("channel_block", "channel_attn", width, inner, bias=bias)
        repeats = put(sizes, f"vision_depth_{stage}", depths[stage])
        stacks.append(Stack(f"model.vision_tower.convs.{stage}", "vision", parts))
        stacks.append(Stack(f"model.vision_tower.blocks.{stage}", "vision", blocks, repeats))
        entering = width
    projected = s["projection_dim"]
    projector = (
        linear("image_projection", entering, projected, bias=False),
        norm("image_proj_norm", projected),
        weight("image_position_embed", s["max_position_embeddings"] * entering, component="position_embedding"),
    )
    return (*stacks, Stack("model.multi_modal_projector", "projector", projector))


def _stages(fields: Fields) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """Width, depth and patch side of each stage, and whether its norm comes first."""
    widths = fields.integers("embed_dim") or WIDTHS
    depths = fields.integers("depths") or DEPTHS
    patches = fields.integers("patch_size") or PATCHES
    given = fields.get("patch_prenorm")
    first = NORM_FIRST if given is None else given
    if not 1 <= len(widths) <= MOST_STAGES or not all(1 <= width <= 2**20 for width in widths):
        raise fields.refuse("embed_dim", f"embed_dim must list the widths of 1 to {MOST_STAGES} stages")
    if len(depths) != len(widths) or not all(1 <= depth <= LARGEST_LAYER_COUNT for depth in depths):
        raise fields.refuse("depths", "depths must list how many blocks each stage has")
    if len(patches) != len(widths) or not all(1 <= side <= 2**12 for side in patches):
        raise fields.refuse("patch_size", "patch_size must list one size for each stage")
    if (
        not isinstance(first, list | tuple)
        or len(first) != len(widths)
        or not all(one in (True, False) for one in first)
    ):
        raise fields.refuse("patch_prenorm", "patch_prenorm must say true or false for each stage")
    return widths, depths, patches, tuple(bool(one) for one in first)


def _block(name: str, attention: str, width: Size, inner: Size, *, bias: bool) -> tuple[Part, ...]:
    kernel = Size.of(3 * 3)
    return (
        convolution(f"{name}.conv1", kernel, Size.of(1), width),
        convolution(f"{name}.conv2", kernel, Size.of(1), width),
        norm(f"{name}.norm1", width),
        norm(f"{name}.norm2", width),
        linear(f"{name}.{attention}.qkv", width, width * 3, bias=bias),
        linear(f"{name}.{attention}.proj", width, width),
        linear(f"{name}.ffn.fc1", width, inner),
        linear(f"{name}.ffn.fc2", inner, width),
    )


BLIP_2 = family(
    Wrapper(
        "blip-2",
        "Blip2ForConditionalGeneration",
        blip_2,
        text="opt",
        tied_by="text",
        text_path="language_model.model",
        own_head=False,
    )
)
FLORENCE2 = family(
    Wrapper(
        "florence2",
        "Florence2ForConditionalGeneration",
        florence2,
        text=BART,
        tied=True,
        kind="encoder-decoder",
    )
)
