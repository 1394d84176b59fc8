"""Wrappers of a text model and Whisper's encoder: Qwen2-Audio and Voxtral.

Source: transformers modeling_qwen2_audio.py, modeling_voxtral.py.
"""

from typing import Any

from app.planning.families.fields import Fields
from app.planning.families.towers import (
    Part,
    Stack,
    convolution,
    heads_divide,
    linear,
    norm,
    tower_sizes,
    weight,
)
from app.planning.families.wrapper import Wrapper, family
from app.planning.sizes import Size, named

TOWER = "model.audio_tower"
PROJECTOR = "model.multi_modal_projector"
HIDDEN = named("hidden_size")
WHISPER_NAMES = ("d_model", "encoder_ffn_dim", "encoder_layers", "encoder_attention_heads")
HUGGING_FACE_NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
WHISPER_LARGE = (1280, 5120, 32, 20)
VOXTRAL_TEXT: dict[str, Any] = {
    "vocab_size": 131072,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "head_dim": 128,
}


def whisper_encoder(fields: Fields, sizes: dict[str, int], names: tuple[str, ...]) -> tuple[Stack, ...]:
    """Whisper's encoder: two convolutions over the spectrogram, fixed positions. `names` are those of its sizes."""
    fields.ignore("activation_function", "dropout", "attention_dropout", "activation_dropout", "scale_embedding")
    fields.ignore("encoder_layerdrop", "layerdrop", "vocab_size", "head_dim", "init_std", "initializer_factor")
    defaults = dict(zip(names, WHISPER_LARGE, strict=True))
    s = tower_sizes(fields, sizes, {**defaults, "num_mel_bins": 128, "max_source_positions": 1500}, prefix="audio")
    for alias, name in zip(HUGGING_FACE_NAMES, names, strict=True):
        fields.must_be(alias, sizes[f"audio_{name}"], because=f"it says otherwise than {name}")
    fields.ignore("num_key_value_heads")
    heads_divide(fields, sizes, names[3], names[0], prefix="audio")
    width, inner = s[names[0]], s[names[1]]
    kernel = Size.of(3)
    parts = (
        convolution("conv1", kernel, s["num_mel_bins"], width),
        convolution("conv2", kernel, width, width),
        weight("embed_positions", s["max_source_positions"] * width, trainable=False),
        norm("layer_norm", width),
    )
    block: tuple[Part, ...] = (
        norm("self_attn_layer_norm", width),
        linear("self_attn.k_proj", width, width, bias=False),
        linear("self_attn.v_proj", width, width),
        linear("self_attn.q_proj", width, width),
        linear("self_attn.out_proj", width, width),
        linear("fc1", width, inner),
        linear("fc2", inner, width),
        norm("final_layer_norm", width),
    )
    return Stack(TOWER, "audio", parts), Stack(f"{TOWER}.layers", "audio", block, s[names[2]])


def qwen2_audio(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Qwen2-Audio: one linear layer from the encoder to the text model."""
    fields.ignore("audio_token_index", "ignore_index", "vocab_size", "hidden_size")
    stacks = whisper_encoder(fields.section("audio_config"), sizes, WHISPER_NAMES)
    return (*stacks, Stack(PROJECTOR, "projector", (linear("linear", named("audio_d_model"), HIDDEN),)))


def voxtral(fields: Fields, sizes: dict[str, int]) -> tuple[Stack, ...]:
    """Voxtral: frames gathered until they are as wide as the encoder's MLP, then two linear layers."""
    fields.ignore("audio_token_id", "projector_hidden_act", "vocab_size", "hidden_size")
    stacks = whisper_encoder(fields.section("audio_config"), sizes, HUGGING_FACE_NAMES)
    gathered = named("audio_intermediate_size")
    parts = (linear("linear_1", gathered, HIDDEN, bias=False), linear("linear_2", HIDDEN, HIDDEN, bias=False))
    return (*stacks, Stack(PROJECTOR, "projector", parts))


QWEN2_AUDIO = family(Wrapper("qwen2_audio", "Qwen2AudioForConditionalGeneration", qwen2_audio, text="qwen2"))
VOXTRAL = family(
    Wrapper(
        "voxtral",
        "VoxtralForConditionalGeneration",
        voxtral,
        text_default=VOXTRAL_TEXT,
        text_fills=True,
    )
)
