"""Mixtures of routed experts: Mixtral, Qwen MoE, OLMoE, FlexOlmo, Phi MoE, Granite MoE, gpt-oss, MiniMax M2, Mellum and
DBRX.

Source: the modeling files of the same names in transformers.
"""

from app.planning.families.decoder import Attention, Block, DecoderLayout, forward
from app.planning.families.expert_layers import (
    attention_of,
    expert_decoder,
    experts_of,
    listed_or_after,
    silu,
    sparse_steps,
)
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import Defaults, decoder_sizes, is_grouped
from app.planning.modules import ACTIVATIONS

MIXTRAL_DEFAULTS = Defaults(32000, 4096, 32, 32, 131072, intermediate_size=14336, num_key_value_heads=8)
QWEN2_MOE_DEFAULTS = Defaults(151936, 2048, 24, 16, 32768, intermediate_size=5632, num_key_value_heads=16)
QWEN3_MOE_DEFAULTS = Defaults(151936, 2048, 24, 32, 32768, intermediate_size=6144, num_key_value_heads=4)
OLMOE_DEFAULTS = Defaults(50304, 2048, 16, 16, 4096, intermediate_size=2048)
FLEX_OLMO_DEFAULTS = Defaults(100352, 4096, 32, 32, 4096, intermediate_size=11008)
PHIMOE_DEFAULTS = Defaults(32064, 4096, 32, 32, 131072, intermediate_size=6400, num_key_value_heads=8)
GRANITEMOE_DEFAULTS = Defaults(32000, 4096, 32, 32, 2048, intermediate_size=11008)
GPT_OSS_DEFAULTS = Defaults(201088, 2880, 36, 64, 131072, intermediate_size=2880, num_key_value_heads=8, head_dim=64)
MINIMAX_M2_DEFAULTS = Defaults(
    200064, 3072, 62, 48, 196608, intermediate_size=1536, num_key_value_heads=8, head_dim=128
)
MELLUM_DEFAULTS = Defaults(98304, 2304, 28, 32, 131072, intermediate_size=7168, num_key_value_heads=4, head_dim=128)
DBRX_DEFAULTS = Defaults(32000, 2048, 24, 16, 2048, num_key_value_heads=1)

DBRX_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}
GRANITE_MODULES = (
    ("mlp", "block_sparse_moe"),
    ("shared_expert", "shared_mlp"),
    ("shared_expert.gate_up_proj", "input_linear"),
    ("shared_expert.down_proj", "output_linear"),
)
DBRX_MODULES = (
    ("model", "transformer"),
    ("model.layers", "transformer.blocks"),
    ("embed_tokens", "wte"),
    ("self_attn", "norm_attn_norm.attn"),
    ("qkv_proj", "Wqkv"),
    ("o_proj", "out_proj"),
    ("mlp", "ffn"),
    ("router", "router.layer"),
)


def read_mixtral(fields: Fields) -> Shapes:
    """Mixtral: experts in every layer, no biases."""
    sizes = decoder_sizes(fields, MIXTRAL_DEFAULTS)
    experts_of(fields, sizes, count=("num_local_experts", "num_experts"), counts=8, per_token=2, inner=None)
    experts = MixtureOfExperts(activation=silu(fields), scores_in_fp32=True)
    return expert_decoder(fields, sizes, attention_of(fields, sizes), experts)


def read_qwen2_moe(fields: Fields) -> Shapes:
    """Qwen1.5-MoE and Qwen2-MoE: a gated shared expert beside the routed ones, biases on q/k/v."""
    sizes = decoder_sizes(fields, QWEN2_MOE_DEFAULTS)
    experts_of(
        fields, sizes, count="num_experts", counts=60, per_token=4, inner=1408, inner_name="moe_intermediate_size"
    )
    sizes["shared_expert_intermediate_size"] = fields.count("shared_expert_intermediate_size", 5632)
    attention = attention_of(fields, sizes, bias=fields.flag("qkv_bias", default=True), output_bias=False)
    experts = MixtureOfExperts(activation=silu(fields), shared=True, shared_gate=True)
    return expert_decoder(fields, sizes, attention, experts, sparse_steps(fields, sizes))


def read_qwen3_moe(fields: Fields) -> Shapes:
    """Qwen3-MoE: norms per head of queries and keys, no shared expert."""
    sizes = decoder_sizes(fields, QWEN3_MOE_DEFAULTS)
    names = ("num_local_experts", "num_experts")
    experts_of(fields, sizes, count=names, counts=128, per_token=8, inner=768, inner_name="moe_intermediate_size")
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), head_norms=True)
    experts = MixtureOfExperts(activation=silu(fields))
    return expert_decoder(fields, sizes, attention, experts, sparse_steps(fields, sizes))


def read_mellum(fields: Fields) -> Shapes:
    """Mellum: Qwen3-MoE with a list of which layers have experts."""
    sizes = decoder_sizes(fields, MELLUM_DEFAULTS)
    names = ("num_experts", "num_local_experts")
    experts_of(fields, sizes, count=names, counts=64, per_token=8, inner=896, inner_name="moe_intermediate_size")
    fields.ignore("mtp_layer_types", "mtp_mlp_layer_types", "mtp_loss_scaling_factor")
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), head_norms=True)
    experts = MixtureOfExperts(activation=silu(fields))
    return expert_decoder(fields, sizes, attention, experts, listed_or_after(fields, sizes, 0))


def read_olmoe(fields: Fields) -> Shapes:
    """OLMoE: norms over all queries and all keys."""
    sizes = decoder_sizes(fields, OLMOE_DEFAULTS)
    fields.ignore("clip_qkv")
    experts_of(fields, sizes, count=("num_experts", "num_local_experts"), counts=64, per_token=8, inner=None)
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), full_norms=True)
    return expert_decoder(fields, sizes, attention, MixtureOfExperts(activation=silu(fields)))


def read_flex_olmo(fields: Fields) -> Shapes:
    """FlexOlmo: OLMoE with norms after each part, as in OLMo 2."""
    sizes = decoder_sizes(fields, FLEX_OLMO_DEFAULTS)
    experts_of(fields, sizes, count=("num_experts", "num_local_experts"), counts=7, per_token=5, inner=None)
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), full_norms=True)
    return expert_decoder(fields, sizes, attention, MixtureOfExperts(activation=silu(fields)), placement="output")


def read_phimoe(fields: Fields) -> Shapes:
    """Phi-3.5-MoE: LayerNorm, biases on attention and head where the config says so."""
    sizes = decoder_sizes(fields, PHIMOE_DEFAULTS)
    experts_of(fields, sizes, count=("num_local_experts", "num_experts"), counts=16, per_token=2, inner=None)
    fields.ignore("original_max_position_embeddings", "hidden_dropout")
    jitters = 2 if fields.probability("input_jitter_noise", default=0.0) else 0
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False))
    experts = MixtureOfExperts(activation=silu(fields), router_is_linear=True, jitters=jitters)
    head_bias = fields.flag("lm_head_bias", default=False)
    return expert_decoder(fields, sizes, attention, experts, norm="layer", head_bias=head_bias)


def read_granitemoe(fields: Fields) -> Shapes:
    """Granite MoE: Granite with experts in every layer."""
    return _read_granite(fields, shared=False, sinks=False)


def read_granitemoeshared(fields: Fields) -> Shapes:
    """Granite MoE Shared: with an MLP that every token takes, where it has a width."""
    return _read_granite(fields, shared=True, sinks=False)


def read_granitemoe_swa(fields: Fields) -> Shapes:
    """Granite MoE SWA: with attention sinks and sliding windows."""
    fields.ignore("layer_rope_theta")
    return _read_granite(fields, shared=True, sinks=True)


def _read_granite(fields: Fields, *, shared: bool, sinks: bool) -> Shapes:
    sizes = decoder_sizes(fields, GRANITEMOE_DEFAULTS)
    fields.ignore("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
    experts_of(fields, sizes, count="num_local_experts", counts=8, per_token=2, inner=None)
    width = fields.whole("shared_intermediate_size", 0, most=2**24) if shared else 0
    if width:
        sizes["shared_expert_intermediate_size"] = width
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False), sinks=sinks)
    experts = MixtureOfExperts(activation=silu(fields), shared=width > 0, joint_shared=True)
    return expert_decoder(fields, sizes, attention, experts)


def read_gpt_oss(fields: Fields) -> Shapes:
    """gpt-oss: attention sinks, biases on attention, router and experts. The hub's files store experts in MXFP4."""
    sizes = decoder_sizes(fields, GPT_OSS_DEFAULTS)
    names = ("num_local_experts", "num_experts")
    experts_of(fields, sizes, count=names, counts=128, per_token=4, inner=None)
    fields.ignore("initial_context_length", "swiglu_limit", "swiglu_alpha", "experts_per_token")
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=True), sinks=True)
    experts = MixtureOfExperts(activation=silu(fields), expert_bias=True, router_bias=True, clamped=True)
    return expert_decoder(fields, sizes, attention, experts, norm="rms-fp32")


def read_minimax_m2(fields: Fields) -> Shapes:
    """MiniMax M2: norms over all queries and all keys, many small experts, no biases."""
    sizes = decoder_sizes(fields, MINIMAX_M2_DEFAULTS)
    names = ("num_local_experts", "num_experts")
    experts_of(fields, sizes, count=names, counts=256, per_token=8, inner=None)
    fields.ignore(
        "attn_type_list", "mtp_transformer_layers", "num_mtp_modules", "qk_norm_type", "rotary_dim", "use_mtp"
    )
    fields.ignore("shared_intermediate_size", "use_qk_norm", "use_routing_bias", "layernorm_full_attention_beta")
    attention = attention_of(fields, sizes, full_norms=True)
    return expert_decoder(fields, sizes, attention, MixtureOfExperts(activation=silu(fields)))


def read_dbrx(fields: Fields) -> Shapes:
    """DBRX: sizes of attention and experts in objects of their own, norms without biases, a joint q/k/v projection."""
    attention_fields, expert_fields = fields.section("attn_config"), fields.section("ffn_config")
    sizes = decoder_sizes(fields, DBRX_DEFAULTS, DBRX_NAMES)
    sizes["num_key_value_heads"] = attention_fields.count("kv_n_heads", 1)
    if sizes["num_attention_heads"] % sizes["num_key_value_heads"]:
        raise attention_fields.refuse("kv_n_heads", "kv_n_heads must divide n_heads")
    attention_fields.ignore("clip_qkv", "rope_theta", "model_type")
    expert_fields.ignore(
        "moe_jitter_eps", "moe_loss_weight", "moe_normalize_expert_weights", "hidden_size", "model_type"
    )
    expert_fields.ignore("uniform_expert_assignment")
    sizes["intermediate_size"] = 1
    experts_of(
        expert_fields,
        sizes,
        count="moe_num_experts",
        counts=4,
        per_token=1,
        inner=3584,
        inner_name="ffn_hidden_size",
        active_name="moe_top_k",
    )
    given = expert_fields.section("ffn_act_fn").one_of("name", tuple(ACTIVATIONS), default="silu")
    fields.must_be("tie_word_embeddings", False, because="DBRX has a head of its own")
    attention = Attention(
        is_grouped(sizes), joint=True, dropout=attention_fields.probability("attn_pdrop", default=0.0)
    )
    experts = MixtureOfExperts(activation=ACTIVATIONS[given], router_is_linear=True)
    block = Block(
        attention, experts, norm="layer-no-bias", residual_dropout=fields.probability("resid_pdrop", default=0.0)
    )
    layout = DecoderLayout(
        (block,),
        tied=False,
        norm="layer-no-bias",
        embedding_dropout=fields.probability("emb_pdrop", default=0.0),
    )
    fields.ignore("output_router_logits", "router_aux_loss_coef")
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


MIXTRAL = Family("mixtral", "MixtralForCausalLM", read_mixtral, forward)
QWEN2_MOE = Family("qwen2_moe", "Qwen2MoeForCausalLM", read_qwen2_moe, forward)
QWEN3_MOE = Family("qwen3_moe", "Qwen3MoeForCausalLM", read_qwen3_moe, forward)
MELLUM = Family("mellum", "MellumForCausalLM", read_mellum, forward)
OLMOE = Family("olmoe", "OlmoeForCausalLM", read_olmoe, forward)
FLEX_OLMO = Family("flex_olmo", "FlexOlmoForCausalLM", read_flex_olmo, forward)
PHIMOE = Family("phimoe", "PhimoeForCausalLM", read_phimoe, forward, other_class_names=("PhiMoEForCausalLM",))
GRANITEMOE = Family("granitemoe", "GraniteMoeForCausalLM", read_granitemoe, forward, GRANITE_MODULES)
GRANITEMOESHARED = Family(
    "granitemoeshared", "GraniteMoeSharedForCausalLM", read_granitemoeshared, forward, GRANITE_MODULES
)
GRANITEMOE_SWA = Family("granitemoe_swa", "GraniteMoeSWAForCausalLM", read_granitemoe_swa, forward, GRANITE_MODULES)
GPT_OSS = Family("gpt_oss", "GptOssForCausalLM", read_gpt_oss, forward)
MINIMAX_M2 = Family("minimax_m2", "MiniMaxM2ForCausalLM", read_minimax_m2, forward)
DBRX = Family("dbrx", "DbrxForCausalLM", read_dbrx, forward, DBRX_MODULES)
