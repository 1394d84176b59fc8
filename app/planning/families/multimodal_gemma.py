"""Gemma 4 with its towers for images and for sound, either of which a model may lack.

Source: transformers modeling_gemma4.py.
"""

from app.planning.families.fields import Fields
from app.planning.families.gemma4 import GEMMA4_TEXT
from app.planning.families.towers import (
    Part,
    Stack,
    convolution,
    heads_divide,
    linear,
    norm,
    put,
    tower_sizes,
    weight,
)
from app.planning.families.wrapper import Wrapper, family
from app.planning.sizes import Size, named

HIDDEN = named("hidden_size")
KERNEL = 3 * 3
DEFAULT_CHANNELS = (128, 32)


def gemma4(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Gemma 4's towers, each with a matrix into the text model."""
    fields.ignore("image_token_id", "video_token_id", "audio_token_id", "boi_token_id", "eoi_token_id", "boa_token_id")
    fields.ignore("eoa_token_index", "eoa_token_id", "vision_soft_tokens_per_image", "audio_ms_per_token")
    stacks: tuple[Stack, ...] = ()
    if fields.get("vision_config") is not None:
        stacks += _vision(fields.section("vision_config"), sizes)
        stacks += (_projector("vision", named("vision_hidden_size")),)
    if fields.get("audio_config") is not None:
        stacks += _audio(fields.section("audio_config"), sizes)
        stacks += (_projector("audio", named("audio_output_proj_dims")),)
    return stacks


def _projector(kind: str, width: Size) -> Stack:
    return Stack(f"model.embed_{kind}", "projector", (linear("embedding_projection", width, HIDDEN, bias=False),))


def _vision(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    fields.ignore("hidden_activation", "attention_dropout", "pooling_kernel_size", "max_position_embeddings")
    fields.ignore("use_clipped_linears", "standardize", "default_output_length", "attention_bias", "global_head_dim")
    s = tower_sizes(
        fields,
        sizes,
        {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 16,
            "num_attention_heads": 12,
            "num_key_value_heads": 12,
            "head_dim": 64,
            "patch_size": 16,
            "position_embedding_size": 10240,
        },
    )
    heads_divide(fields, sizes, "num_key_value_heads", "num_attention_heads")
    width, inner, size = s["hidden_size"], s["intermediate_size"], s["head_dim"]
    query, shared = s["num_attention_heads"] * size, s["num_key_value_heads"] * size
    parts = (
        weight("patch_embedder.position_embedding_table", s["position_embedding_size"] * width * 2),
        linear("patch_embedder.input_proj", s["patch_size"] * s["patch_size"] * 3, width, bias=False),
    )
    block = (
        *(_norm(name, width) for name in ("input_layernorm", "post_attention_layernorm")),
        *(_norm(name, width) for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm")),
        *(_norm(f"self_attn.{name}", size) for name in ("q_norm", "k_norm")),
        _clippable("self_attn.q_proj", width, query),
        _clippable("self_attn.k_proj", width, shared),
        _clippable("self_attn.v_proj", width, shared),
        _clippable("self_attn.o_proj", query, width),
        _clippable("mlp.gate_proj", width, inner),
        _clippable("mlp.up_proj", width, inner),
        _clippable("mlp.down_proj", inner, width),
    )
    path = "model.vision_tower"
    return Stack(path, "vision", parts), Stack(f"{path}.encoder.layers", "vision", block, s["num_hidden_layers"])


def _audio(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """A conformer behind two convolutions over the spectrogram."""
    fields.ignore("hidden_act", "residual_weight", "gradient_clipping", "use_clipped_linears", "attention_logit_cap")
    fields.ignore("attention_chunk_size", "attention_context_left", "attention_context_right")
    fields.ignore("attention_invalid_logits_value")
    defaults = {"hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 8}
    s = tower_sizes(fields, sizes, {**defaults, "conv_kernel_size": 5, "output_proj_dims": 1536}, prefix="audio")
    heads_divide(fields, sizes, "num_attention_heads", "hidden_size", prefix="audio")
    first, second = _channels(fields, sizes)
    width = s["hidden_size"]
    head = put(sizes, "audio_head_dim", sizes["audio_hidden_size"] // sizes["audio_num_attention_heads"])
    flat = put(sizes, "audio_subsampled_size", sizes["audio_first_channels"] // 4 * sizes["audio_second_channels"])
    kernel = Size.of(KERNEL)
    parts = (
        convolution("subsample_conv_projection.layer0.conv", kernel, Size.of(1), first, bias=False),
        convolution("subsample_conv_projection.layer1.conv", kernel, first, second, bias=False),
        _norm("subsample_conv_projection.layer0.norm", first),
        _norm("subsample_conv_projection.layer1.norm", second),
        linear("subsample_conv_projection.input_proj_linear", flat, width, bias=False),
        linear("output_proj", width, s["output_proj_dims"]),
    )
    block = (
        *_feed_forward("feed_forward1", width),
        *_feed_forward("feed_forward2", width),
        *(_clippable(f"self_attn.{name}", width, width) for name in ("q_proj", "k_proj", "v_proj", "post")),
        linear("self_attn.relative_k_proj", width, width, bias=False),
        weight("self_attn.per_dim_scale", head),
        _clippable("lconv1d.linear_start", width, width * 2),
        _clippable("lconv1d.linear_end", width, width),
        convolution("lconv1d.depthwise_conv1d", s["conv_kernel_size"], Size.of(1), width, bias=False),
        *(_norm(f"lconv1d.{name}", width) for name in ("pre_layer_norm", "conv_norm")),
        *(_norm(name, width) for name in ("norm_pre_attn", "norm_post_attn", "norm_out")),
    )
    path = "model.audio_tower"
    return Stack(path, "audio", parts), Stack(f"{path}.layers", "audio", block, s["num_hidden_layers"])


def _channels(fields: Fields, sizes: dict[str, int]) -> tuple[Size, Size]:
    given = fields.integers("subsampling_conv_channels") or DEFAULT_CHANNELS
    if len(given) != 2 or not all(4 <= channels <= 2**20 for channels in given):
        raise fields.refuse("subsampling_conv_channels", "subsampling_conv_channels must be two numbers from 4")
    return put(sizes, "audio_first_channels", given[0]), put(sizes, "audio_second_channels", given[1])


def _feed_forward(name: str, width: Size) -> tuple[Part, ...]:
    return (
        _clippable(f"{name}.ffw_layer_1", width, width * 4),
        _clippable(f"{name}.ffw_layer_2", width * 4, width),
        _norm(f"{name}.pre_layer_norm", width),
        _norm(f"{name}.post_layer_norm", width),
    )


def _clippable(name: str, into: Size, out: Size) -> Part:
    """A linear layer inside a module that may clip what goes in and out."""
    return linear(f"{name}.linear", into, out, bias=False)


def _norm(name: str, width: Size) -> Part:
    return norm(name, width, bias=False)


GEMMA4 = family(Wrapper("gemma4", "Gemma4ForConditionalGeneration", gemma4, text=GEMMA4_TEXT, tied=True))
