"""Mixtures of experts whose layers with a sliding window have other heads than those without: MiMo-V2-Flash, Laguna.

Sizes of such layers have a suffix. Source: transformers modeling_mimo_v2_flash.py, modeling_laguna.py.
"""

from dataclasses import replace
from typing import Literal

from app.planning.families.decoder import Dense, forward
from app.planning.families.expert_layers import attention_of, experts_of, listed_or_after, silu
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.hybrid import MixedLayer, mixed_decoder, read_pattern
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import Defaults, decoder_sizes

MIMO_DEFAULTS = Defaults(152576, 4096, 48, 64, 131072, 16384, 4, 192)
LAGUNA_DEFAULTS = Defaults(100352, 2048, 40, 48, 131072, 8192, 8, 128)
MOST_KINDS_OF_HEADS = 16
WIDTH = "moe_intermediate_size"
WINDOWS = {"full_attention": "full", "attention": "full", "sliding_attention": "sliding"}


def read_mimo_v2_flash(fields: Fields) -> Shapes:
    """MiMo-V2-Flash: sliding layers have attention sinks and twice the key/value heads; values have their own size."""
    sizes = decoder_sizes(fields, MIMO_DEFAULTS)
    sizes["v_head_dim"] = fields.count("v_head_dim", 128)
    names = ("n_routed_experts", "num_local_experts")
    experts_of(fields, sizes, count=names, counts=256, per_token=8, inner=2048, inner_name=WIDTH)
    fields.ignore("attention_value_scale", "sliding_window_size", "hybrid_layer_pattern", "hybrid_block_size")
    fields.ignore(
        "swa_num_key_value_heads", "swa_num_attention_heads", "swa_head_dim", "swa_v_head_dim", "swa_rope_theta"
    )
    fields.ignore(
        "add_full_attention_sink_bias", "add_swa_attention_sink_bias", "n_shared_experts", "layernorm_epsilon"
    )
    fields.ignore("attention_chunk_size", "attention_projection_layout")
    layers = sizes["num_hidden_layers"]
    windows = read_pattern(
        fields,
        "layer_types",
        layers,
        WINDOWS,
        lambda layer: "full" if layer == 0 or (layer + 1) % 6 == 0 else "sliding",
    )
    sparse = listed_or_after(fields, sizes, 1)
    for name in ("num_attention_heads", "head_dim", "v_head_dim", "intermediate_size"):
        sizes[f"{name}_sliding"] = sizes[name]
    sizes["num_key_value_heads_sliding"] = 2 * sizes["num_key_value_heads"]
    bias = fields.flag("attention_bias", default=False)
    full = replace(attention_of(fields, sizes, bias=bias, output_bias=False), value_head=True)
    grouped = sizes["num_key_value_heads_sliding"] != sizes["num_attention_heads"]
    sliding = replace(full, sinks=True, grouped=grouped)
    experts = MixtureOfExperts(activation=silu(fields))

    def make(kind: tuple[str, str]) -> MixedLayer:
        mlp = experts if kind[1] == "moe" else Dense(activation=experts.activation)
        return MixedLayer(sliding, mlp, suffix="_sliding") if kind[0] == "sliding" else MixedLayer(full, mlp)

    mlps = ("moe" if is_sparse else "dense" for is_sparse in sparse)
    return mixed_decoder(fields, sizes, zip(windows, mlps, strict=True), make)


def read_laguna(fields: Fields) -> Shapes:
    """Laguna: a gate on what attention gives, norms per head, and a number of query heads for each layer."""
    sizes = decoder_sizes(fields, LAGUNA_DEFAULTS)
    experts_of(fields, sizes, count="num_experts", counts=256, per_token=8, inner=512, inner_name=WIDTH)
    sizes["shared_expert_intermediate_size"] = fields.count("shared_expert_intermediate_size", 512)
    fields.ignore("moe_routed_scaling_factor", "moe_router_logit_softcapping", "moe_apply_router_weight_on_input")
    heads = (
        fields.integers("num_attention_heads_per_layer") or (sizes["num_attention_heads"],) * sizes["num_hidden_layers"]
    )
    _check_heads(fields, sizes, heads)
    bias = fields.flag("attention_bias", default=False)
    attention = replace(attention_of(fields, sizes, bias=bias, head_norms=True), gate=_gate(fields))
    experts = MixtureOfExperts(activation=silu(fields), shared=True, correction="router")

    def make(kind: tuple[str, str]) -> MixedLayer:
        mlp = experts if kind[1] == "moe" else Dense(activation=experts.activation)
        grouped = int(kind[0]) != sizes["num_key_value_heads"]
        return MixedLayer(replace(attention, grouped=grouped), mlp, suffix=f"_{kind[0]}")

    mlps = ("moe" if is_sparse else "dense" for is_sparse in listed_or_after(fields, sizes, 1))
    return mixed_decoder(fields, sizes, zip(map(str, heads), mlps, strict=True), make)


def _check_heads(fields: Fields, sizes: dict[str, int], heads: tuple[int, ...]) -> None:
    name = "num_attention_heads_per_layer"
    if len(heads) != sizes["num_hidden_layers"]:
        raise fields.refuse(name, f"{name} must have one entry for each of the {sizes['num_hidden_layers']} layers")
    kinds = set(heads)
    if len(kinds) > MOST_KINDS_OF_HEADS:
        raise fields.refuse(name, f"{name} has more than {MOST_KINDS_OF_HEADS} different numbers of heads")
    for count in kinds:
        if (
            not sizes["num_key_value_heads"] <= count <= sizes["hidden_size"] * 64
            or count % sizes["num_key_value_heads"]
        ):
            raise fields.refuse(name, f"{name} has {count} heads, no multiple of the key/value heads")
        sizes[f"num_attention_heads_{count}"] = count
        for size in ("num_key_value_heads", "head_dim", "intermediate_size"):
            sizes[f"{size}_{count}"] = sizes[size]


def _gate(fields: Fields) -> Literal["heads", "elements"]:
    given = fields.get("gating")
    if given not in (None, True, "per-head", "per-element", False):
        raise fields.refuse("gating", "gating must be true, false, 'per-head' or 'per-element'")
    return "heads" if given in (None, True, "per-head") else "elements"


MIMO_V2_FLASH = Family("mimo_v2_flash", "MiMoV2FlashForCausalLM", read_mimo_v2_flash, forward)
LAGUNA = Family("laguna", "LagunaForCausalLM", read_laguna, forward, (("output_gate", "g_proj"),))
