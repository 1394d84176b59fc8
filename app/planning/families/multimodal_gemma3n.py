"""Gemma 3n with its towers: MobileNetV5 for images, a conformer for sound, and a few embeddings for each of both.

Source: transformers modeling_gemma3n.py; the image tower is timm's `mobilenetv5_300m_enc`.
"""

from app.planning.families.fields import Fields
from app.planning.families.gemma3n import GEMMA3N_TEXT
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
MOBILENET = "mobilenetv5_300m_enc"
MOBILENET_PARAMETERS = 294_126_912
"""All of them in convolutions and norms: nothing in this tower is an `nn.Linear`."""
KERNEL = [[3, 3], [3, 3]]
STRIDE = [[2, 2], [2, 2]]
DEFAULT_CHANNELS = (128, 32)


def gemma3n(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Gemma 3n's towers, which every model has."""
    fields.ignore("image_token_id", "audio_token_id", "boi_token_id", "eoi_token_id", "boa_token_id", "eoa_token_id")
    fields.ignore("vision_soft_tokens_per_image", "audio_soft_tokens_per_image")
    vision = fields.section("vision_config")
    vision.must_be("architecture", MOBILENET, because="another tower has other parameters")
    vision.must_be("model_args", None, because="they change the tower")
    vision.ignore("do_pooling", "num_classes", "label_names", "num_labels", "vocab_offset", "pretrained_cfg")
    tower_sizes(vision, sizes, {"hidden_size": 2048, "vocab_size": 128})
    mobilenet = weight("timm_model", put(sizes, "vision_tower_parameters", MOBILENET_PARAMETERS))
    return (
        Stack("model.vision_tower", "vision", (mobilenet,)),
        _embedder("vision"),
        *_audio(fields.section("audio_config"), sizes),
        _embedder("audio"),
    )


def _embedder(kind: str) -> Stack:
    width = named(f"{kind}_hidden_size")
    parts = (
        weight("embedding", named(f"{kind}_vocab_size") * width, component="word_embedding"),
        norm("hard_embedding_norm", width, bias=False),
        norm("soft_embedding_norm", width, bias=False),
        linear("embedding_projection", width, HIDDEN, bias=False),
    )
    return Stack(f"model.embed_{kind}", "projector", parts)


def _audio(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    fields.ignore("conf_attention_chunk_size", "conf_attention_context_left", "conf_attention_context_right")
    fields.ignore("conf_attention_logit_cap", "conf_reduction_factor", "conf_residual_weight", "gradient_clipping")
    fields.ignore("sscp_conv_group_norm_eps", "vocab_offset")
    fields.must_be("sscp_conv_kernel_size", KERNEL, because="other kernels leave other numbers of frequencies")
    fields.must_be("sscp_conv_stride_size", STRIDE, because="other strides leave other numbers of frequencies")
    s = tower_sizes(
        fields,
        sizes,
        {
            "hidden_size": 1536,
            "conf_num_hidden_layers": 12,
            "conf_num_attention_heads": 8,
            "conf_conv_kernel_size": 5,
            "input_feat_size": 128,
            "vocab_size": 128,
        },
        prefix="audio",
    )
    heads_divide(fields, sizes, "conf_num_attention_heads", "hidden_size", prefix="audio")
    channels = fields.integers("sscp_conv_channel_size") or DEFAULT_CHANNELS
    if len(channels) != 2 or not all(1 <= amount <= 2**20 for amount in channels):
        raise fields.refuse("sscp_conv_channel_size", "sscp_conv_channel_size must be two numbers from 1")
    first, second = (put(sizes, f"audio_channels_{i}", amount) for i, amount in enumerate(channels))
    frequencies = sizes["audio_input_feat_size"]
    for _ in channels:
        frequencies = (frequencies - 1) // 2 + 1
    width, kernel = s["hidden_size"], Size.of(3 * 3)
    head = put(sizes, "audio_head_dim", sizes["audio_hidden_size"] // sizes["audio_conf_num_attention_heads"])
    flat = second * put(sizes, "audio_frequencies", frequencies)
    parts = (
        convolution("conv_0.conv", kernel, Size.of(1), first, bias=False),
        convolution("conv_1.conv", kernel, first, second, bias=False),
        norm("conv_0.norm", first, bias=False),
        norm("conv_1.norm", second, bias=False),
        linear("input_proj_linear", flat, width, bias=False),
    )
    path = "model.audio_tower"
    return (
        Stack(f"{path}.subsample_conv_projection", "audio", parts),
        Stack(f"{path}.conformer", "audio", _conformer(width, head, s), s["conf_num_hidden_layers"]),
    )


def _conformer(width: Size, head: Size, s: dict[str, Size]) -> tuple[Part, ...]:
    square = ("q_proj", "k_proj", "v_proj", "relative_position_embedding.pos_proj")
    norms = ("attention.pre_attn_norm", "attention.post_norm", "lconv1d.pre_layer_norm", "lconv1d.conv_norm", "norm")
    return (
        *_feed_forward("ffw_layer_start", width),
        *_feed_forward("ffw_layer_end", width),
        *(linear(f"attention.attn.{name}", width, width, bias=False) for name in square),
        linear("attention.post", width, width, bias=False),
        weight("attention.attn.per_dim_scale", head),
        linear("lconv1d.linear_start", width, width * 2, bias=False),
        linear("lconv1d.linear_end", width, width, bias=False),
        convolution("lconv1d.depthwise_conv1d", s["conf_conv_kernel_size"], Size.of(1), width, bias=False),
        *(norm(name, width, bias=False) for name in norms),
    )


def _feed_forward(name: str, width: Size) -> tuple[Part, ...]:
    return (
        linear(f"{name}.ffw_layer_1", width, width * 4, bias=False),
        linear(f"{name}.ffw_layer_2", width * 4, width, bias=False),
        norm(f"{name}.pre_layer_norm", width, bias=False),
        norm(f"{name}.post_layer_norm", width, bias=False),
    )


GEMMA3N = family(Wrapper("gemma3n", "Gemma3nForConditionalGeneration", gemma3n, text=GEMMA3N_TEXT, tied=True))
