"""Mixtures of routed experts beside shared ones that every token takes, after a few dense layers: GLM-4.5, dots.llm1,
AFMoE, ERNIE 4.5, EXAONE MoE, Hunyuan, Hy3, Solar Open, Flint, Kolibri, Aria, Llama 4 and Command A.

Source: the modeling files of the same names in transformers. Layers for predicting more than the next token are not
part of these classes, nor of the counts.
"""

from dataclasses import replace

from app.planning.families.decoder import Dense, forward
from app.planning.families.expert_layers import (
    attention_of,
    expert_decoder,
    experts_of,
    listed_or_after,
    shared_width,
    silu,
    sparse_after,
    sparse_steps,
)
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.hybrid import listed
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.modules import Norm

WIDTH = "moe_intermediate_size"
ROUTED = ("n_routed_experts", "num_local_experts")
EXPERTS = ("num_experts", "num_local_experts")

GLM4_MOE_DEFAULTS = Defaults(151552, 4096, 46, 96, 131072, intermediate_size=10944, num_key_value_heads=8)
SOLAR_OPEN_DEFAULTS = Defaults(196608, 4096, 48, 64, 131072, num_key_value_heads=8, head_dim=128)
DOTS1_DEFAULTS = Defaults(152064, 4608, 62, 32, 2048, intermediate_size=10944, num_key_value_heads=32)
AFMOE_DEFAULTS = Defaults(200192, 2048, 32, 16, 16384, intermediate_size=6144, head_dim=128)
ERNIE_DEFAULTS = Defaults(103424, 2560, 28, 20, 131072, intermediate_size=12288, num_key_value_heads=4)
EXAONE_DEFAULTS = Defaults(102400, 4096, 32, 32, 2048, intermediate_size=16384, num_key_value_heads=32)
HUNYUAN_DEFAULTS = Defaults(290943, 4096, 32, 32, 2048, intermediate_size=11008)
HY3_DEFAULTS = Defaults(120832, 4096, 80, 64, 131072, intermediate_size=13312, num_key_value_heads=8, head_dim=128)
LAGUNA_DEFAULTS = Defaults(100352, 2048, 40, 48, 131072, intermediate_size=8192, num_key_value_heads=8, head_dim=128)
FLINT_DEFAULTS = Defaults(150144, 2048, 49, 32, 262144, intermediate_size=6144, num_key_value_heads=4, head_dim=128)
KOLIBRI_DEFAULTS = Defaults(128000, 2560, 50, 48, 262144, num_key_value_heads=4, head_dim=128)
ARIA_DEFAULTS = Defaults(32000, 4096, 32, 32, 2048, intermediate_size=4096)
LLAMA4_DEFAULTS = Defaults(202048, 5120, 48, 40, 131072, intermediate_size=8192, num_key_value_heads=8, head_dim=128)
COHERE2_MOE_DEFAULTS = Defaults(256000, 8192, 40, 64, 8192, intermediate_size=22528, head_dim=128)

AFMOE_MODULES = (("router", "router.gate"), ("output_gate", "gate_proj"), ("shared_expert", "shared_experts"))
HUNYUAN_MODULES = (("router", "gate.wg"), ("shared_expert", "shared_mlp"))
LLAMA4_MODULES = (("mlp", "feed_forward"),)


def read_glm4_moe(fields: Fields) -> Shapes:
    """GLM-4.5: biases on q/k/v and norms per head where the config says so."""
    sizes = decoder_sizes(fields, GLM4_MOE_DEFAULTS)
    experts_of(fields, sizes, count=ROUTED, counts=128, per_token=8, inner=1408, inner_name=WIDTH)
    shared_width(fields, sizes, "n_shared_experts", 1)
    bias = fields.flag("attention_bias", default=False)
    norms = fields.flag("use_qk_norm", default=False)
    attention = attention_of(fields, sizes, bias=bias, output_bias=False, head_norms=norms)
    sparse = sparse_after(sizes, fields.whole("first_k_dense_replace", 1))
    return expert_decoder(fields, sizes, attention, _shared(fields), sparse)


def read_solar_open(fields: Fields) -> Shapes:
    """Solar Open: GLM-4.5 with experts in every layer."""
    sizes = decoder_sizes(fields, SOLAR_OPEN_DEFAULTS)
    experts_of(fields, sizes, count=ROUTED, counts=128, per_token=8, inner=1280, inner_name=WIDTH)
    shared_width(fields, sizes, "n_shared_experts", 1)
    fields.ignore("first_k_dense_replace", "use_qk_norm")
    bias = fields.flag("attention_bias", default=False)
    attention = attention_of(fields, sizes, bias=bias, output_bias=False)
    return expert_decoder(fields, sizes, attention, _shared(fields))


def read_dots1(fields: Fields) -> Shapes:
    """dots.llm1: norms per head."""
    sizes = decoder_sizes(fields, DOTS1_DEFAULTS)
    experts_of(fields, sizes, count=ROUTED, counts=None, per_token=None, inner=1408, inner_name=WIDTH)
    shared_width(fields, sizes, "n_shared_experts", None)
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), head_norms=True)
    sparse = sparse_after(sizes, fields.whole("first_k_dense_replace", 0))
    return expert_decoder(fields, sizes, attention, _shared(fields), sparse)


def read_afmoe(fields: Fields) -> Shapes:
    """AFMoE (Trinity): a gate on what attention gives, norms per head, norms before and after each part."""
    sizes = decoder_sizes(fields, AFMOE_DEFAULTS)
    experts_of(fields, sizes, count=EXPERTS, counts=64, per_token=6, inner=1408, inner_name=WIDTH)
    shared_width(fields, sizes, "num_shared_experts", 2)
    fields.ignore("global_attn_every_n_layers", "mup_enabled", "route_scale", "route_norm", "score_func")
    fields.ignore("num_expert_groups", "num_limited_groups", "use_grouped_mm", "load_balance_coeff")
    bias = fields.flag("attention_bias", default=False)
    attention = replace(attention_of(fields, sizes, bias=bias, head_norms=True), gate="elements")
    experts = replace(_shared(fields), router_is_linear=True, correction="mlp")
    sparse = sparse_after(sizes, fields.whole("num_dense_layers", 1))
    return expert_decoder(fields, sizes, attention, experts, sparse, placement="sandwich")


def read_ernie4_5_moe(fields: Fields) -> Shapes:
    """ERNIE 4.5 MoE: one flag for all biases, experts in every few layers from one layer to another."""
    sizes = decoder_sizes(fields, ERNIE_DEFAULTS)
    experts_of(
        fields,
        sizes,
        count=("moe_num_experts", "num_experts"),
        counts=64,
        per_token=6,
        inner=1536,
        inner_name=WIDTH,
        active_name=("moe_k", "num_experts_per_tok"),
    )
    shared = shared_width(fields, sizes, "moe_num_shared_experts", 2, least=0)
    fields.ignore("moe_norm_min", "moe_capacity", "moe_gate", "moe_use_aux_free", "moe_layer_end", "use_rmsnorm")
    fields.ignore("compression_ratio", "rope_scaling_factor", "hidden_dropout_prob", "attention_probs_dropout_prob")
    layers = sizes["num_hidden_layers"]
    first = fields.whole("moe_layer_start_index", 1)
    last = layers - 1 if fields.get("moe_layer_end_index") in (None, -1) else fields.whole("moe_layer_end_index", 0)
    every = fields.count("moe_layer_interval", 1)
    bias = fields.flag("use_bias", default=False)
    sparse = [(layer + 1) % every == 0 and first <= layer <= last for layer in range(layers)]
    experts = MixtureOfExperts(activation=silu(fields), shared=shared, shared_bias=bias, correction="router")
    return expert_decoder(
        fields,
        sizes,
        attention_of(fields, sizes, bias=bias),
        experts,
        sparse,
        dense=Dense(activation=experts.activation, bias=bias),
        tied=True,
        head_bias=bias,
    )


def read_exaone_moe(fields: Fields) -> Shapes:
    """EXAONE MoE (K-EXAONE): norms per head, no biases."""
    sizes = decoder_sizes(fields, EXAONE_DEFAULTS)
    experts_of(fields, sizes, count="num_experts", counts=64, per_token=8, inner=1024, inner_name=WIDTH)
    shared_width(fields, sizes, "num_shared_experts", 1)
    fields.ignore("sliding_window_pattern", "is_moe_layer", "first_last_k_dense_replace", "mtp_loss_scaling_factor")
    sparse = listed_or_after(fields, sizes, fields.whole("first_k_dense_replace", 1))
    return expert_decoder(fields, sizes, attention_of(fields, sizes, head_norms=True), _shared(fields), sparse)


def read_hunyuan_v1_moe(fields: Fields) -> Shapes:
    """Hunyuan MoE (A13B): a shared MLP as wide as one expert, norms per head, experts in every layer."""
    sizes = decoder_sizes(fields, HUNYUAN_DEFAULTS)
    experts_of(
        fields,
        sizes,
        count=EXPERTS,
        counts=1,
        per_token=1,
        inner=None,
        active_name=("moe_topk", "num_experts_per_tok"),
    )
    sizes["shared_expert_intermediate_size"] = sizes["intermediate_size"]
    fields.ignore("eod_token_id", "im_start_id", "im_end_id", "im_newline_id", "text_start_id", "text_end_id")
    fields.ignore(
        "image_token_id", "attention_head_dim", "use_qk_norm", "use_mixed_mlp_moe", "use_cla", "cla_share_factor"
    )
    fields.ignore("moe_intermediate_size", "num_shared_expert", "moe_random_routing_dropped_token", "moe_drop_tokens")
    fields.ignore(
        "moe_layer_num_skipped", "norm_type", "use_rotary_pos_emb", "mlp_bias", "org_vocab_size", "group_limited_greedy"
    )
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), head_norms=True)
    return expert_decoder(fields, sizes, attention, replace(_shared(fields), router_is_linear=True))


def read_hy_v3(fields: Fields) -> Shapes:
    """Hy3: norms per head, one dense layer first."""
    sizes = decoder_sizes(fields, HY3_DEFAULTS)
    experts_of(fields, sizes, count=EXPERTS, counts=192, per_token=8, inner=1536, inner_name=WIDTH)
    shared_width(fields, sizes, "num_shared_experts", 1)
    fields.ignore("router_scaling_factor", "enable_moe_fp32_combine")
    bias = fields.flag("mlp_bias", default=False)
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), head_norms=True)
    experts = replace(_shared(fields), shared_bias=bias)
    dense = Dense(activation=experts.activation, bias=bias)
    return expert_decoder(fields, sizes, attention, experts, listed_or_after(fields, sizes, 1), dense=dense)


def read_flint(fields: Fields) -> Shapes:
    """Flint: attention sinks and norms per head; the first two layers are dense."""
    sizes = decoder_sizes(fields, FLINT_DEFAULTS)
    experts_of(fields, sizes, count="num_experts", counts=256, per_token=6, inner=512, inner_name=WIDTH)
    sizes["shared_expert_intermediate_size"] = fields.count("shared_expert_intermediate_size", 1024)
    bias = fields.flag("attention_bias", default=False)
    attention = attention_of(fields, sizes, bias=bias, head_norms=True, sinks=True)
    return expert_decoder(fields, sizes, attention, _shared(fields), sparse_steps(fields, sizes, (0, 1)))


def read_kolibri1(fields: Fields) -> Shapes:
    """Kolibri: norms per head, norms before and after each part, experts in every layer, no biases."""
    sizes = decoder_sizes(fields, KOLIBRI_DEFAULTS)
    experts_of(fields, sizes, count=EXPERTS, counts=384, per_token=6, inner=512, inner_name=WIDTH)
    sizes["shared_expert_intermediate_size"] = fields.count("shared_expert_intermediate_size", 512)
    attention = attention_of(fields, sizes, head_norms=True)
    return expert_decoder(fields, sizes, attention, _shared(fields), placement="sandwich")


def read_aria_text(fields: Fields) -> Shapes:
    """Aria's text model: shared experts as wide as the routed ones, experts in every layer."""
    sizes = decoder_sizes(fields, ARIA_DEFAULTS)
    experts_of(fields, sizes, count="moe_num_experts", counts=8, per_token=2, inner=None, active_name="moe_topk")
    shared_width(fields, sizes, "moe_num_shared_experts", 2)
    fields.ignore("moe_z_loss_coeff", "moe_aux_loss_coeff")
    bias = fields.flag("mlp_bias", default=False)
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False))
    return expert_decoder(fields, sizes, attention, replace(_shared(fields), shared_bias=bias))


def read_llama4_text(fields: Fields) -> Shapes:
    """Llama 4's text model: a shared expert as wide as a routed one, dense layers of another width in between."""
    sizes = decoder_sizes(fields, LLAMA4_DEFAULTS)
    experts_of(fields, sizes, count="num_local_experts", counts=16, per_token=1, inner=sizes["intermediate_size"])
    sizes["shared_expert_intermediate_size"] = sizes["intermediate_size"]
    sizes["intermediate_size"] = fields.count("intermediate_size_mlp", 16384)
    fields.ignore(
        "use_qk_norm", "no_rope_layers", "no_rope_layer_interval", "attention_chunk_size", "for_llm_compressor"
    )
    fields.ignore("attn_temperature_tuning", "floor_scale", "attn_scale")
    step = fields.count("interleave_moe_layer_step", 1)
    chosen = listed(fields, "moe_layers")
    layers = range(sizes["num_hidden_layers"])
    sparse = [(layer + 1) % step == 0 if chosen is None else layer in chosen for layer in layers]
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False))
    return expert_decoder(fields, sizes, attention, replace(_shared(fields), router_is_linear=True), sparse)


def read_cohere2_moe(fields: Fields) -> Shapes:
    """Command A with experts: attention and MLP side by side behind one norm, a tied head."""
    sizes = decoder_sizes(fields, COHERE2_MOE_DEFAULTS)
    experts_of(fields, sizes, count="num_experts", counts=8, per_token=2, inner=sizes["intermediate_size"])
    shared = shared_width(fields, sizes, "num_shared_experts", 0, least=0)
    sizes["intermediate_size"] = fields.count("prefix_dense_intermediate_size", sizes["intermediate_size"])
    fields.ignore("logit_scale", "shared_expert_combination_strategy", "expert_selection_fn", "sliding_window_pattern")
    fields.ignore("prefix_dense_sliding_window_pattern")
    sparse = listed_or_after(fields, sizes, fields.whole("first_k_dense_replace", 0))
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False))
    experts = MixtureOfExperts(activation=silu(fields), shared=shared)
    norm: Norm = "layer-no-bias" if fields.get("rms_norm_eps") is None else "rms"
    return expert_decoder(fields, sizes, attention, experts, sparse, placement="parallel", norm=norm, tied=True)


def _shared(fields: Fields) -> MixtureOfExperts:
    return MixtureOfExperts(activation=silu(fields), shared=True)


GLM4_MOE = Family("glm4_moe", "Glm4MoeForCausalLM", read_glm4_moe, forward)
SOLAR_OPEN = Family("solar_open", "SolarOpenForCausalLM", read_solar_open, forward)
DOTS1 = Family("dots1", "Dots1ForCausalLM", read_dots1, forward)
AFMOE = Family("afmoe", "AfmoeForCausalLM", read_afmoe, forward, AFMOE_MODULES)
ERNIE4_5_MOE = Family("ernie4_5_moe", "Ernie4_5_MoeForCausalLM", read_ernie4_5_moe, forward)
EXAONE_MOE = Family("exaone_moe", "ExaoneMoeForCausalLM", read_exaone_moe, forward)
HUNYUAN_V1_MOE = Family("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", read_hunyuan_v1_moe, forward, HUNYUAN_MODULES)
HY_V3 = Family("hy_v3", "HYV3ForCausalLM", read_hy_v3, forward)
FLINT = Family("flint", "FlintForCausalLM", read_flint, forward)
KOLIBRI1 = Family("kolibri1", "Kolibri1ForCausalLM", read_kolibri1, forward)
ARIA_TEXT = Family("aria_text", "AriaTextForCausalLM", read_aria_text, forward)
LLAMA4_TEXT = Family("llama4_text", "Llama4ForCausalLM", read_llama4_text, forward, LLAMA4_MODULES)
COHERE2_MOE = Family("cohere2_moe", "Cohere2MoeForCausalLM", read_cohere2_moe, forward)
