"""Image towers that wrappers share: SigLIP, SigLIP 2, CLIP, Pixtral and InternViT.

Each reader takes the `vision_config`, adds sizes with the prefix `vision_`, and gives the stacks of the tower;
`vision_hidden_size` is the width that comes out. Source: transformers modeling_siglip.py, modeling_siglip2.py,
modeling_clip.py, modeling_pixtral.py, modeling_internvl.py.
"""

from collections.abc import Mapping
from types import MappingProxyType

from app.planning.families.fields import Fields
from app.planning.families.towers import (
    Part,
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
from app.planning.sizes import Size

TOWER = "model.vision_tower"
_VIT: dict[str, int] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "patch_size": 16,
    "image_size": 224,
}


def siglip(
    fields: Fields,
    sizes: dict[str, int],
    path: str = TOWER,
    *,
    defaults: Mapping[str, int] = MappingProxyType({}),
    head: bool | None = None,
) -> tuple[Stack, ...]:
    """SigLIP; with a pooling head unless `vision_use_head` is false, or `head` says that the class never has one.

    `defaults` are those in which a class of its own differs from SigLIP's.
    """
    s = _vit(fields, sizes, {**_VIT, **defaults})
    width, inner = s["hidden_size"], s["intermediate_size"]
    parts = [
        convolution("embeddings.patch_embedding", s["patch_size"] * s["patch_size"], s["num_channels"], width),
        weight("embeddings.position_embedding", square_patches(sizes) * width),
        norm("post_layernorm", width),
    ]
    if fields.flag("vision_use_head", default=True) if head is None else head:
        parts += _siglip_head(width, inner)
    return (
        Stack(path, "vision", tuple(parts)),
        Stack(f"{path}.encoder.layers", "vision", layer(width, inner), s["num_hidden_layers"]),
    )


def _siglip_head(width: Size, inner: Size) -> list[Part]:
    return [
        weight("head.probe", width),
        weight("head.attention.in_proj", width * width * 3 + width * 3),
        linear("head.attention.out_proj", width, width),
        norm("head.layernorm", width),
        linear("head.mlp.fc1", width, inner),
        linear("head.mlp.fc2", inner, width),
    ]


def siglip2(fields: Fields, sizes: dict[str, int], path: str = TOWER) -> tuple[Stack, ...]:
    """SigLIP 2 for images of any shape: patches through a linear layer, `num_patches` positions."""
    defaults = {name: default for name, default in _VIT.items() if name != "image_size"} | {"num_patches": 256}
    s = _vit(fields, sizes, defaults)
    width, inner = s["hidden_size"], s["intermediate_size"]
    pixels = s["num_channels"] * s["patch_size"] * s["patch_size"]
    head = _siglip_head(width, inner) if fields.flag("vision_use_head", default=True) else []
    parts = (
        linear("embeddings.patch_embedding", pixels, width),
        weight("embeddings.position_embedding", s["num_patches"] * width),
        norm("post_layernorm", width),
        *head,
    )
    return (
        Stack(path, "vision", parts),
        Stack(f"{path}.encoder.layers", "vision", layer(width, inner), s["num_hidden_layers"]),
    )


def clip(fields: Fields, sizes: dict[str, int], path: str = TOWER) -> tuple[Stack, ...]:
    """CLIP: a class token, a norm before the layers."""
    s = _vit(fields, sizes, _VIT | {"patch_size": 32})
    width, inner = s["hidden_size"], s["intermediate_size"]
    kernel = s["patch_size"] * s["patch_size"]
    parts = (
        weight("embeddings.class_embedding", width),
        convolution("embeddings.patch_embedding", kernel, s["num_channels"], width, bias=False),
        weight("embeddings.position_embedding", (square_patches(sizes) + 1) * width),
        norm("pre_layrnorm", width),
        norm("post_layernorm", width),
    )
    return (
        Stack(path, "vision", parts),
        Stack(f"{path}.encoder.layers", "vision", layer(width, inner), s["num_hidden_layers"]),
    )


def pixtral(fields: Fields, sizes: dict[str, int], path: str = TOWER) -> tuple[Stack, ...]:
    """Pixtral: Llama's layers without a causal mask, rotary positions."""
    fields.ignore("head_dim")
    defaults = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    s = _vit(fields, sizes, _VIT | defaults | {"image_size": 1024})
    width = s["hidden_size"]
    kernel = s["patch_size"] * s["patch_size"]
    parts = (
        convolution("patch_conv", kernel, s["num_channels"], width, bias=False),
        norm("ln_pre", width, bias=False),
    )
    block = layer(
        width,
        s["intermediate_size"],
        attention=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        output="attention.o_proj",
        mlp=("feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"),
        norms=("attention_norm", "ffn_norm"),
        bias=False,
        output_bias=False,
        mlp_bias=False,
        norm_bias=False,
    )
    return (
        Stack(path, "vision", parts),
        Stack(f"{path}.transformer.layers", "vision", block, s["num_hidden_layers"]),
    )


def internvit(fields: Fields, sizes: dict[str, int], path: str = TOWER) -> tuple[Stack, ...]:
    """InternViT: a class token, scales on what each layer adds, optional norms over all queries and keys."""
    defaults = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    ignore_common(fields)
    fields.ignore("hidden_dropout_prob", "projection_dropout", "layer_scale_init_value", "shape", "norm_eps")
    s = tower_sizes(fields, sizes, defaults | {"num_channels": 3})
    heads_divide(fields, sizes, "num_attention_heads", "hidden_size")
    height, across = pair(fields, "patch_size", 14)
    image = pair(fields, "image_size", 448)
    patches = put(sizes, "vision_patches", (image[0] // height) * (image[1] // across))
    kernel = put(sizes, "vision_patch_area", height * across)
    width = s["hidden_size"]
    rms = fields.one_of("norm_type", ("layer_norm", "rms_norm"), default="layer_norm") == "rms_norm"
    parts = [
        weight("embeddings.cls_token", width),
        convolution("embeddings.patch_embeddings.projection", kernel, s["num_channels"], width),
    ]
    if fields.flag("use_mask_token", default=False):
        parts.append(weight("embeddings.mask_token", width))
    if fields.flag("use_absolute_position_embeddings", default=True):
        parts.append(weight("embeddings.position_embeddings", (patches + 1) * width))
    if not fields.flag("use_mean_pooling", default=True):
        parts.append(norm("layernorm", width))
    head_norms = fields.flag("use_qk_norm", default=False)
    block = (
        *layer(
            width,
            s["intermediate_size"],
            attention=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            output="attention.projection_layer",
            norms=("layernorm_before", "layernorm_after"),
            bias=fields.flag("attention_bias", default=False),
            norm_bias=not rms,
        ),
        weight("lambda_1", width),
        weight("lambda_2", width),
        *(norm(f"attention.{name}", width, bias=False) for name in ("q_norm", "k_norm") if head_norms),
    )
    return (
        Stack(path, "vision", tuple(parts)),
        Stack(f"{path}.encoder.layer", "vision", block, s["num_hidden_layers"]),
    )


def _vit(fields: Fields, sizes: dict[str, int], defaults: Mapping[str, int]) -> dict[str, Size]:
    ignore_common(fields)
    found = tower_sizes(fields, sizes, defaults)
    heads_divide(fields, sizes, "num_attention_heads", "hidden_size")
    return found


def ignore_common(fields: Fields) -> None:
    """Fields of image towers that change no count."""
    fields.ignore("hidden_act", "attention_dropout", "projection_dim", "projector_hidden_act", "num_image_tokens")
    fields.ignore("vocab_size", "initializer_factor", "tie_word_embeddings", "dropout", "is_composition")
    fields.ignore("max_image_size", "size", "use_base_siglip", "num_positions")


def square_patches(sizes: dict[str, int]) -> Size:
    """Patches of a square image."""
    side = sizes["vision_image_size"] // sizes["vision_patch_size"]
    return put(sizes, "vision_patches", side * side)
