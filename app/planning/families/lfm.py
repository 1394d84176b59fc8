"""Liquid's LFM2, LFM2 MoE and LFM3: gated short convolutions in most layers, attention with norms per head in others.

Source: transformers modeling_lfm2.py, modeling_lfm2_moe.py, modeling_lfm3.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from app.planning.families.decoder import Attention, Dense
from app.planning.families.expert_layers import attention_of, experts_of, sparse_after
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.hybrid import (
    LAYER_TYPES,
    AnyPart,
    MixedLayer,
    dense_or_sparse,
    listed,
    mixed_decoder,
    named_field,
    read_pattern,
)
from app.planning.families.linear_attention import ShortConvolution
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import Defaults, decoder_sizes

LFM2_DEFAULTS = Defaults(65536, 2560, 32, 32, 128000, 12288, 8)
LFM2_MOE_DEFAULTS = Defaults(65536, 2048, 32, 32, 128000, 7168, 8)
LFM3_DEFAULTS = Defaults(128000, 2048, 24, 16, 128000, 7680, 4, 128)
LARGEST_FACTOR = 64
WIDTH = "moe_intermediate_size"
EXPERTS = ("num_experts", "num_local_experts")

MLP_MODULES = (
    ("mlp", "feed_forward"),
    ("gate_proj", "w1"),
    ("up_proj", "w3"),
    ("down_proj", "w2"),
    ("model.norm", "embedding_norm"),
)
LFM2_MODULES = (*MLP_MODULES, ("o_proj", "out_proj"))
LFM3_MODULES = (*MLP_MODULES, ("output_gate", "g_proj"))


def read_lfm2(fields: Fields) -> Shapes:
    """LFM2: gated short convolutions, attention in the layers that are listed, an MLP whose width is rounded."""
    name = named_field(fields, ("block_ff_dim", "intermediate_size"))
    sizes = decoder_sizes(fields, LFM2_DEFAULTS, {"intermediate_size": name})
    sizes["intermediate_size"] = _rounded(fields, sizes["intermediate_size"])
    attended = listed(fields, "full_attn_idxs")
    kinds = _lfm2_kinds(fields, sizes, lambda layer: attended is None or layer in attended)
    return _lfm2(fields, sizes, kinds, sparse_after(sizes, sizes["num_hidden_layers"]), Dense())


def read_lfm2_moe(fields: Fields) -> Shapes:
    """LFM2 with experts behind a few dense layers."""
    sizes = decoder_sizes(fields, LFM2_MOE_DEFAULTS)
    experts_of(fields, sizes, count=EXPERTS, counts=32, per_token=4, inner=1792, inner_name=WIDTH)
    if fields.get("layer_types") is None:
        raise fields.refuse("layer_types", "layer_types is missing, and lfm2_moe has no default for it")
    fields.ignore("use_expert_bias")
    kinds = _lfm2_kinds(fields, sizes, lambda _: True)
    sparse = sparse_after(sizes, fields.whole("num_dense_layers", 2))
    return _lfm2(fields, sizes, kinds, sparse, MixtureOfExperts())


def _lfm2_kinds(fields: Fields, sizes: dict[str, int], attends: Callable[[int], bool]) -> tuple[str, ...]:
    layers = sizes["num_hidden_layers"]
    return read_pattern(
        fields, "layer_types", layers, LAYER_TYPES, lambda layer: "attention" if attends(layer) else "linear"
    )


def _lfm2(fields: Fields, sizes: dict[str, int], kinds: Sequence[str], sparse: Sequence[bool], part: AnyPart) -> Shapes:
    sizes["linear_conv_kernel_dim"] = fields.count("conv_L_cache", 3, most=1024)
    fields.ignore(
        "norm_eps", "block_dim", "block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "num_heads"
    )
    fields.ignore(
        "block_use_swiglu", "block_use_xavier_init", "conv_dim", "conv_dim_out", "conv_use_xavier_init", "theta"
    )
    fields.ignore("use_pos_enc", "full_attn_idxs")
    mixers = (
        ShortConvolution(bias=fields.flag("conv_bias", default=False)),
        Attention(sizes["num_key_value_heads"] != sizes["num_attention_heads"], query_key_norm="head"),
    )
    names = ("tie_embedding", "tie_word_embeddings")
    return dense_or_sparse(fields, sizes, kinds, mixers, sparse, (part, Dense()), tied=True, tied_name=names)


def _rounded(fields: Fields, width: int) -> int:
    """LFM2's MLP: two thirds of the width in the file, times a factor, rounded up to a multiple."""
    multiple = fields.count("block_multiple_of", 256)
    factor = fields.get("block_ffn_dim_multiplier")
    if factor is None:
        factor = 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= LARGEST_FACTOR:
        raise fields.refuse("block_ffn_dim_multiplier", f"it must be a number above 0 and up to {LARGEST_FACTOR}")
    if not fields.flag("block_auto_adjust_ff_dim", default=True):
        return width
    scaled = int(2 * width / 3)
    if fields.is_null("block_ffn_dim_multiplier"):
        return scaled
    return -(-int(factor * scaled) // multiple) * multiple


def read_lfm3(fields: Fields) -> Shapes:
    """LFM3: a gate per head on what attention gives, and norms before and after each part, unless said otherwise."""
    sizes = decoder_sizes(fields, LFM3_DEFAULTS)
    sizes["linear_conv_kernel_dim"] = fields.count("conv_L_cache", 7, most=1024)
    fields.ignore("norm_eps")

    def usual(layer: int) -> str:
        return "attention" if layer % 4 == 2 or (layer % 4 == 0 and layer) else "linear"

    kinds = read_pattern(fields, "layer_types", sizes["num_hidden_layers"], LAYER_TYPES, usual)
    bias = fields.flag("attention_bias", default=False)
    gated = fields.flag("use_attention_gate", default=True)
    attention = replace(attention_of(fields, sizes, bias=bias, head_norms=True), gate="heads" if gated else "none")
    convolution = ShortConvolution(bias=fields.flag("conv_bias", default=False))
    sandwich = fields.flag("use_sandwich_norm", default=True)

    def make(kind: tuple[str]) -> MixedLayer:
        mixer: AnyPart = attention if kind[0] == "attention" else convolution
        return MixedLayer(mixer, Dense(), placement="sandwich" if sandwich else "pre")

    return mixed_decoder(fields, sizes, ((kind,) for kind in kinds), make, tied=True)
