"""Decoders with linear attention in most layers and attention in a few: Qwen3-Next, Qwen3.5, OLMo Hybrid, Kimi Linear,
Ling hybrid (Bailing), MiniMax and LFM.

Source: the modeling files of the same names in transformers.
"""

from collections.abc import Sequence
from dataclasses import replace

from app.planning.families.decoder import Dense, forward
from app.planning.families.deepseek import LatentDefaults, latent_attention
from app.planning.families.expert_layers import (
    attention_of,
    experts_of,
    listed_or_after,
    shared_width,
    silu,
    sparse_after,
    sparse_steps,
)
from app.planning.families.family import Family, Shapes
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
from app.planning.families.lfm import LFM2_MODULES, LFM3_MODULES, read_lfm2, read_lfm2_moe, read_lfm3
from app.planning.families.linear_attention import (
    OLMO_PROJECTIONS,
    QWEN3_5_PROJECTIONS,
    QWEN3_NEXT_PROJECTIONS,
    GatedDelta,
    KimiDelta,
    Lightning,
)
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import Defaults, decoder_sizes

WIDTH = "moe_intermediate_size"
EXPERTS = ("num_experts", "num_local_experts")

QWEN3_NEXT_DEFAULTS = Defaults(151936, 2048, 48, 16, 32768, 5632, 2, 256)
QWEN3_5_DEFAULTS = Defaults(248320, 4096, 32, 16, 32768, 12288, 4, 256)
QWEN3_5_MOE_DEFAULTS = Defaults(248320, 2048, 40, 16, 32768, None, 2, 256)
OLMO_HYBRID_DEFAULTS = Defaults(100352, 3840, 32, 30, 65536, 11008)
KIMI_DEFAULTS = Defaults(163840, 2304, 27, 32, 1048576, 9216, head_dim=64)
BAILING_DEFAULTS = Defaults(157184, 2560, 42, 32, 262144, 6144, head_dim=128)
MINIMAX_DEFAULTS = Defaults(32000, 4096, 32, 32, 131072, 14336, 8)

KIMI_LATENT = LatentDefaults(256, 8, 1024)

KIMI_NAMES = {"max_position_embeddings": "model_max_length"}


def read_qwen3_next(fields: Fields) -> Shapes:
    """Qwen3-Next: three gated delta layers to one with gated attention, many experts and a gated shared one."""
    sizes = decoder_sizes(fields, QWEN3_NEXT_DEFAULTS)
    experts = _qwen_experts(fields, sizes, experts=512, per_token=10)
    sparse = sparse_steps(fields, sizes)
    return _qwen(fields, sizes, GatedDelta(QWEN3_NEXT_PROJECTIONS), experts, sparse)


def read_qwen3_5_text(fields: Fields) -> Shapes:
    """Qwen3.5's text model without experts."""
    sizes = decoder_sizes(fields, QWEN3_5_DEFAULTS)
    dense = Dense(activation=silu(fields))
    return _qwen(fields, sizes, GatedDelta(QWEN3_5_PROJECTIONS), dense, sparse_after(sizes, 0))


def read_qwen3_5_moe_text(fields: Fields) -> Shapes:
    """Qwen3.5's text model with experts in every layer."""
    sizes = decoder_sizes(fields, QWEN3_5_MOE_DEFAULTS)
    experts = _qwen_experts(fields, sizes, experts=256, per_token=8)
    return _qwen(fields, sizes, GatedDelta(QWEN3_5_PROJECTIONS), experts, sparse_after(sizes, 0))


def _qwen_experts(fields: Fields, sizes: dict[str, int], *, experts: int, per_token: int) -> MixtureOfExperts:
    experts_of(fields, sizes, count=EXPERTS, counts=experts, per_token=per_token, inner=512, inner_name=WIDTH)
    sizes["shared_expert_intermediate_size"] = fields.count("shared_expert_intermediate_size", 512)
    return MixtureOfExperts(activation=silu(fields), shared=True, shared_gate=True)


def _qwen(
    fields: Fields, sizes: dict[str, int], mixer: GatedDelta, sparse_part: AnyPart, sparse: Sequence[bool]
) -> Shapes:
    """`sparse_part` in the layers that are `sparse`, a dense MLP in the others."""
    _delta_sizes(fields, sizes, heads=(16, 32), head_sizes=(128, 128))
    every = fields.count("full_attention_interval", 4)
    kinds = read_pattern(
        fields,
        "layer_types",
        sizes["num_hidden_layers"],
        LAYER_TYPES,
        lambda layer: "linear" if (layer + 1) % every else "attention",
    )
    fields.ignore(
        "partial_rotary_factor", "attn_output_gate", "mtp_num_hidden_layers", "mamba_ssm_dtype", "mlp_only_layers"
    )
    fields.ignore("mtp_use_dedicated_embeddings", "output_gate_type")
    bias = fields.flag("attention_bias", default=False)
    attention = replace(attention_of(fields, sizes, bias=bias, head_norms=True), gate="joint")
    return dense_or_sparse(
        fields, sizes, kinds, (mixer, attention), sparse, (sparse_part, Dense(activation=silu(fields)))
    )


def _delta_sizes(
    fields: Fields, sizes: dict[str, int], *, heads: tuple[int, int], head_sizes: tuple[int, int | None]
) -> None:
    sizes["linear_num_key_heads"] = fields.count("linear_num_key_heads", heads[0])
    sizes["linear_num_value_heads"] = fields.count("linear_num_value_heads", heads[1])
    sizes["linear_key_head_dim"] = fields.count("linear_key_head_dim", head_sizes[0])
    value = head_sizes[1] or 2 * sizes["linear_key_head_dim"]
    sizes["linear_value_head_dim"] = fields.count("linear_value_head_dim", value)
    sizes["linear_conv_kernel_dim"] = fields.count("linear_conv_kernel_dim", 4, most=1024)


def read_olmo_hybrid(fields: Fields) -> Shapes:
    """OLMo Hybrid: gated delta layers with norms before each part, attention layers with norms after, as OLMo 2."""
    sizes = decoder_sizes(fields, OLMO_HYBRID_DEFAULTS)
    heads = sizes["num_attention_heads"]
    key_heads = fields.count("linear_num_key_heads", heads)
    key_head = max(1, int(0.75 * sizes["hidden_size"] / key_heads))
    _delta_sizes(fields, sizes, heads=(heads, heads), head_sizes=(key_head, None))
    for name in ("a_log_min", "a_log_max", "dt_min", "dt_max", "dt_init_floor", "allow_neg_eigval"):
        fields.ignore(f"linear_{name}")
    layers = sizes["num_hidden_layers"]

    def usual(layer: int) -> str:
        last = layers < 4 and layer == layers - 1
        return "attention" if layer % 4 == 3 or last else "linear"

    kinds = read_pattern(fields, "layer_types", layers, LAYER_TYPES, usual)
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), full_norms=True)
    dense = Dense(activation=silu(fields))

    def make(kind: tuple[str]) -> MixedLayer:
        if kind[0] == "attention":
            return MixedLayer(attention, dense, placement="output")
        return MixedLayer(GatedDelta(OLMO_PROJECTIONS, output="o_proj"), dense)

    return mixed_decoder(fields, sizes, ((kind,) for kind in kinds), make)


def read_kimi_linear(fields: Fields) -> Shapes:
    """Kimi Linear: delta layers, and latent attention without positions in every fourth."""
    sizes = decoder_sizes(fields, KIMI_DEFAULTS, KIMI_NAMES)
    nested = fields.section("linear_attn_config")
    head = nested.count("head_dim", fields.count("linear_head_dim", 128))
    heads = nested.count("num_heads", fields.count("linear_num_heads", 32))
    kernel = nested.count("short_conv_kernel_size", fields.count("linear_conv_kernel_dim", 4, most=1024), most=1024)
    full, linear = listed(nested, "full_attn_layers"), listed(nested, "kda_layers")
    _kimi_sizes(sizes, head, heads, kernel)

    def usual(layer: int) -> str:
        if full is None or linear is None:
            return "attention" if layer and layer % 4 == 0 else "linear"
        return "attention" if layer + 1 in full else "linear"

    kinds = read_pattern(fields, "layer_types", sizes["num_hidden_layers"], LAYER_TYPES, usual)
    fields.ignore(
        "mla_use_nope", "moe_router_activation_func", "use_grouped_topk", "moe_renormalize", "num_expert_group"
    )
    attention = latent_attention(fields, sizes, KIMI_LATENT, latent_queries=fields.get("q_lora_rank") is not None)
    sparse = listed_or_after(fields, sizes, fields.whole("first_k_dense_replace", 1))
    mlps = _kimi_experts(fields, sizes, experts=256, inner=1024)
    return dense_or_sparse(fields, sizes, kinds, (KimiDelta(narrow=True), attention), sparse, mlps, tied=None)


def read_bailing_hybrid(fields: Fields) -> Shapes:
    """Ling hybrid: delta layers in groups that end with latent attention, which has a gate per head."""
    sizes = decoder_sizes(fields, BAILING_DEFAULTS, KIMI_NAMES)
    kernel = fields.count("short_conv_kernel_size", 4, most=1024)
    head = fields.count("linear_head_dim", sizes["head_dim"])
    heads = fields.count("linear_num_heads", sizes["num_attention_heads"])
    _kimi_sizes(sizes, head, heads, fields.count("linear_conv_kernel_dim", kernel, most=1024))
    every = fields.count("layer_group_size", 6)
    layers = sizes["num_hidden_layers"]
    kinds = read_pattern(
        fields, "layer_types", layers, LAYER_TYPES, lambda layer: "linear" if (layer + 1) % every else "attention"
    )
    fields.ignore("kda_safe_gate", "kda_lower_bound", "mtp_loss_scaling_factor", "moe_renormalize", "num_expert_group")
    attention = replace(latent_attention(fields, sizes, KIMI_LATENT, latent_queries=False), gate="heads")
    fields.ignore("q_lora_rank")
    sparse = listed_or_after(fields, sizes, fields.whole("first_k_dense_replace", 2))
    mlps = _kimi_experts(fields, sizes, experts=512, inner=768)
    return dense_or_sparse(fields, sizes, kinds, (KimiDelta(narrow=False), attention), sparse, mlps, tied=None)


def _kimi_sizes(sizes: dict[str, int], head: int, heads: int, kernel: int) -> None:
    sizes |= {"linear_num_value_heads": heads, "linear_value_head_dim": head, "linear_conv_kernel_dim": kernel}


def _kimi_experts(fields: Fields, sizes: dict[str, int], *, experts: int, inner: int) -> tuple[MixtureOfExperts, Dense]:
    experts_of(
        fields,
        sizes,
        count=EXPERTS,
        counts=experts,
        per_token=8,
        inner=inner,
        inner_name=WIDTH,
        active_name=("num_experts_per_token", "num_experts_per_tok"),
    )
    shared_width(fields, sizes, named_field(fields, ("num_shared_experts", "n_shared_experts")), 1)
    activation = silu(fields)
    return MixtureOfExperts(activation=activation, shared=True), Dense(activation=activation)


def read_minimax(fields: Fields) -> Shapes:
    """MiniMax-01: attention in every second layer unless a list says otherwise, lightning attention in the others."""
    sizes = decoder_sizes(fields, MINIMAX_DEFAULTS)
    experts_of(fields, sizes, count=("num_local_experts", "num_experts"), counts=8, per_token=2, inner=None)
    layers = sizes["num_hidden_layers"]
    kinds = read_pattern(
        fields, "layer_types", layers, LAYER_TYPES, lambda layer: "linear" if layer % 2 else "attention"
    )
    for name in ("full_attn", "linear_attn", "mlp"):
        fields.ignore(f"{name}_alpha_factor", f"{name}_beta_factor")
    fields.ignore("block_size", "rotary_dim", "postnorm", "shared_intermediate_size", "shared_moe_mode")
    experts = MixtureOfExperts(activation=silu(fields))
    mixers = (Lightning(), attention_of(fields, sizes))
    return dense_or_sparse(fields, sizes, kinds, mixers, sparse_after(sizes, 0), (experts, experts))


QWEN3_NEXT = Family("qwen3_next", "Qwen3NextForCausalLM", read_qwen3_next, forward)
QWEN3_5_TEXT = Family("qwen3_5_text", "Qwen3_5ForCausalLM", read_qwen3_5_text, forward)
QWEN3_5_MOE_TEXT = Family("qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", read_qwen3_5_moe_text, forward)
OLMO_HYBRID = Family("olmo_hybrid", "OlmoHybridForCausalLM", read_olmo_hybrid, forward)
KIMI_LINEAR = Family("kimi_linear", "KimiLinearForCausalLM", read_kimi_linear, forward)
BAILING_HYBRID = Family(
    "bailing_hybrid", "BailingHybridForCausalLM", read_bailing_hybrid, forward, (("output_gate", "g_proj"),)
)
MINIMAX = Family("minimax", "MiniMaxForCausalLM", read_minimax, forward)
LFM2 = Family("lfm2", "Lfm2ForCausalLM", read_lfm2, forward, LFM2_MODULES)
LFM2_MOE = Family("lfm2_moe", "Lfm2MoeForCausalLM", read_lfm2_moe, forward, LFM2_MODULES)
LFM3 = Family("lfm3", "Lfm3ForCausalLM", read_lfm3, forward, LFM3_MODULES)
