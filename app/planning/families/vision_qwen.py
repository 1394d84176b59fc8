"""Qwen-VL's image towers and GLM's, which is built like them: the merger that makes patches as wide as the text model
belongs to the tower.

Source: transformers modeling_qwen2_vl.py, modeling_qwen2_5_vl.py, modeling_qwen3_vl.py, modeling_glm4v.py.
"""

from collections.abc import Mapping

from app.planning.families.fields import Fields
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
from app.planning.families.vision import ignore_common, square_patches
from app.planning.sizes import Size, named

VISUAL = "model.visual"
_SHARED = {
    "depth": 32,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}


def qwen2_vl(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Qwen2-VL: layers of width `embed_dim`, merged into `hidden_size`, the width of the text model."""
    fields.ignore("in_chans", "spatial_patch_size")
    s = _qwen(fields, sizes, {"embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4})
    heads_divide(fields, sizes, "num_heads", "embed_dim")
    width, merged = s["embed_dim"], _merged(s["embed_dim"])
    parts = (
        convolution("patch_embed.proj", _voxel(s), s["in_channels"], width, bias=False),
        norm("merger.ln_q", width),
        linear("merger.mlp.0", merged, merged),
        linear("merger.mlp.2", merged, s["hidden_size"]),
    )
    block = _qwen_layer(width, width * s["mlp_ratio"], mlp=("mlp.fc1", "mlp.fc2"))
    return Stack(VISUAL, "vision", parts), Stack(f"{VISUAL}.blocks", "vision", block, s["depth"])


def qwen2_5_vl(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Qwen2.5-VL: RMSNorm and a gated MLP; most layers attend inside windows."""
    fields.ignore("in_chans", "spatial_patch_size", "window_size", "fullatt_block_indexes", "tokens_per_second")
    s = _qwen(fields, sizes, {"hidden_size": 3584, "intermediate_size": 3420, "out_hidden_size": 3584})
    heads_divide(fields, sizes, "num_heads", "hidden_size")
    width, merged = s["hidden_size"], _merged(s["hidden_size"])
    parts = (
        convolution("patch_embed.proj", _voxel(s), s["in_channels"], width, bias=False),
        norm("merger.ln_q", width, bias=False),
        linear("merger.mlp.0", merged, merged),
        linear("merger.mlp.2", merged, s["out_hidden_size"]),
    )
    gated = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    block = _qwen_layer(width, s["intermediate_size"], mlp=gated, norm_bias=False)
    return Stack(VISUAL, "vision", parts), Stack(f"{VISUAL}.blocks", "vision", block, s["depth"])


def qwen3_vl(fields: Fields, sizes: dict[str, int], *, deepstack: bool = True) -> tuple[Stack, ...]:
    """Qwen3-VL: learned positions, and a merger of its own for each of the layers that feed the text model's layers."""
    s = _qwen(
        fields,
        sizes,
        {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "out_hidden_size": 3584,
            "num_position_embeddings": 2304,
            "patch_size": 16,
        },
    )
    heads_divide(fields, sizes, "num_heads", "hidden_size")
    width, merged = s["hidden_size"], _merged(s["hidden_size"])
    parts = (
        convolution("patch_embed.proj", _voxel(s), s["in_channels"], width),
        weight("pos_embed", s["num_position_embeddings"] * width),
        norm("merger.norm", width),
        linear("merger.linear_fc1", merged, merged),
        linear("merger.linear_fc2", merged, s["out_hidden_size"]),
    )
    block = _qwen_layer(width, s["intermediate_size"], mlp=("mlp.linear_fc1", "mlp.linear_fc2"))
    stacks = [Stack(VISUAL, "vision", parts), Stack(f"{VISUAL}.blocks", "vision", block, s["depth"])]
    feeding = fields.integers("deepstack_visual_indexes")
    if deepstack:
        count = 3 if fields.get("deepstack_visual_indexes") is None else len(feeding)
        if count > sizes["vision_depth"]:
            raise fields.refuse("deepstack_visual_indexes", f"deepstack_visual_indexes names {count} layers of fewer")
        if count:
            merger = (
                norm("norm", merged),
                linear("linear_fc1", merged, merged),
                linear("linear_fc2", merged, s["out_hidden_size"]),
            )
            repeats = put(sizes, "vision_deepstack_mergers", count)
            stacks.append(Stack(f"{VISUAL}.deepstack_merger_list", "vision", merger, repeats))
    return tuple(stacks)


def glm4v(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """GLM-4.1V: RMSNorm and a gated MLP, a convolution that merges patches, a gated merger."""
    fields.ignore("hidden_dropout_prob", "attention_dropout")
    defaults = {"depth": 24, "hidden_size": 1536, "num_heads": 12, "image_size": 336}
    s = _qwen(fields, sizes, defaults | {"intermediate_size": 13696, "out_hidden_size": 4096})
    heads_divide(fields, sizes, "num_heads", "hidden_size")
    width, out, inner = s["hidden_size"], s["out_hidden_size"], s["intermediate_size"]
    merge = named("vision_spatial_merge_size")
    parts = (
        convolution("patch_embed.proj", _voxel(s), s["in_channels"], width),
        weight("embeddings.position_embedding", square_patches(sizes) * width),
        norm("post_conv_layernorm", width, bias=False),
        convolution("downsample", merge * merge, width, out),
        norm("post_layernorm", width, bias=False),
        linear("merger.proj", out, out, bias=False),
        norm("merger.post_projection_norm", out),
        linear("merger.gate_proj", out, inner, bias=False),
        linear("merger.up_proj", out, inner, bias=False),
        linear("merger.down_proj", inner, out, bias=False),
    )
    block = layer(
        width,
        out,
        attention=("attn.qkv",),
        output="attn.proj",
        mlp=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        norms=("norm1", "norm2"),
        bias=fields.flag("attention_bias", default=False),
        output_bias=False,
        mlp_bias=False,
        norm_bias=False,
    )
    return Stack(VISUAL, "vision", parts), Stack(f"{VISUAL}.blocks", "vision", block, s["depth"])


def _qwen(fields: Fields, sizes: dict[str, int], defaults: Mapping[str, int]) -> dict[str, Size]:
    ignore_common(fields)
    return tower_sizes(fields, sizes, {**_SHARED, **defaults})


def _merged(width: Size) -> Size:
    merge = named("vision_spatial_merge_size")
    return width * merge * merge


def _voxel(s: dict[str, Size]) -> Size:
    return s["temporal_patch_size"] * s["patch_size"] * s["patch_size"]


def _qwen_layer(width: Size, inner: Size, *, mlp: tuple[str, ...], norm_bias: bool = True) -> tuple[Part, ...]:
    return layer(
        width,
        inner,
        attention=("attn.qkv",),
        output="attn.proj",
        mlp=mlp,
        norms=("norm1", "norm2"),
        norm_bias=norm_bias,
    )
