"""DeepSeek-V2, V3 and V3.2 and the families built like them: multi-head latent attention, a few dense layers first,
then routed and shared experts.

Source: transformers modeling_deepseek_v2.py, modeling_deepseek_v3.py, modeling_deepseek_v32.py,
modeling_glm4_moe_lite.py, modeling_glm_moe_dsa.py, modeling_mistral4.py, modeling_axk1.py. The next-token-prediction
layers that V3's config and checkpoint have are not part of the class, nor of this count.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from app.planning.families.decoder import Attention, Dense, forward
from app.planning.families.expert_layers import (
    expert_decoder,
    experts_of,
    listed_or_after,
    shared_width,
    silu,
    sparse_after,
)
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.hybrid import MixedLayer, mixed_decoder, named_field, read_pattern
from app.planning.families.mixture import MixtureOfExperts
from app.planning.families.read import Defaults, decoder_sizes


@dataclass(frozen=True, slots=True)
class LatentDefaults:
    """What a class assumes for the sizes of latent attention and experts."""

    experts: int
    per_token: int | None
    width: int
    shared: int = 1
    query_rank: int = 1536
    key_rank: int = 512
    nope: int = 128
    rope: int = 64
    value: int = 128


V2_DEFAULTS = Defaults(102400, 4096, 32, 32, 2048, intermediate_size=11008, head_dim=64)
V3_DEFAULTS = Defaults(129280, 7168, 61, 128, 4096, intermediate_size=18432, head_dim=64)
V32_DEFAULTS = Defaults(129280, 7168, 61, 128, 163840, intermediate_size=18432, head_dim=64)
GLM_LITE_DEFAULTS = Defaults(154880, 2048, 47, 20, 202752, intermediate_size=10240, head_dim=64)
GLM_DSA_DEFAULTS = Defaults(154880, 6144, 78, 64, 202752, intermediate_size=12288, head_dim=64)
MISTRAL4_DEFAULTS = Defaults(131072, 4096, 36, 32, 1048576, intermediate_size=12288, head_dim=128)
AXK1_DEFAULTS = Defaults(163840, 7168, 61, 64, 32768, intermediate_size=18432, head_dim=64)

V2_LATENT = LatentDefaults(64, None, 1407, shared=2)
V3_LATENT = LatentDefaults(256, 8, 2048)
GLM_LITE_LATENT = LatentDefaults(64, 4, 1536, query_rank=768, nope=192, value=256)
GLM_DSA_LATENT = LatentDefaults(256, 8, 2048, query_rank=2048, nope=192, value=256)
MISTRAL4_LATENT = LatentDefaults(128, 4, 2048, query_rank=1024, key_rank=256, nope=64)
AXK1_LATENT = LatentDefaults(192, 8, 2048)


def read_v2(fields: Fields) -> Shapes:
    """DeepSeek-V2; queries have a latent too, except in V2-Lite, whose config says `"q_lora_rank": null`."""
    sizes = decoder_sizes(fields, V2_DEFAULTS)
    experts = replace(latent_experts(fields, sizes, V2_LATENT), shared_bias=fields.flag("mlp_bias", default=False))
    dense = Dense(activation=experts.activation, bias=experts.shared_bias)
    sparse = sparse_after(sizes, fields.whole("first_k_dense_replace", 0))
    return expert_decoder(fields, sizes, latent_attention(fields, sizes, V2_LATENT), experts, sparse, dense=dense)


def read_v3(fields: Fields) -> Shapes:
    """DeepSeek-V3 and R1."""
    sizes = decoder_sizes(fields, V3_DEFAULTS)
    fields.ignore("rope_interleave", "mlp_bias")
    sparse = sparse_after(sizes, fields.whole("first_k_dense_replace", 3))
    return _read(fields, sizes, V3_LATENT, sparse)


def read_v32(fields: Fields) -> Shapes:
    """DeepSeek-V3.2: V3 with an indexer in every layer."""
    sizes = decoder_sizes(fields, V32_DEFAULTS)
    _read_indexer(fields, sizes, heads=64)
    sparse = listed_or_after(fields, sizes, fields.whole("first_k_dense_replace", 3))
    return _read(fields, sizes, V3_LATENT, sparse, indexer=True)


def read_glm4_moe_lite(fields: Fields) -> Shapes:
    """GLM-4.7-Flash: one dense layer first, unless a list says otherwise."""
    sizes = decoder_sizes(fields, GLM_LITE_DEFAULTS)
    fields.ignore("rope_interleave", "first_k_dense_replace")
    return _read(fields, sizes, GLM_LITE_LATENT, listed_or_after(fields, sizes, 1))


def read_mistral4(fields: Fields) -> Shapes:
    """Mistral Small 4: experts in every layer."""
    sizes = decoder_sizes(fields, MISTRAL4_DEFAULTS)
    fields.ignore("rope_interleave")
    sparse = sparse_after(sizes, fields.whole("first_k_dense_replace", 0))
    return _read(fields, sizes, MISTRAL4_LATENT, sparse)


def read_axk1(fields: Fields) -> Shapes:
    """A.X K1: a norm behind the experts, also where `moe_layer_freq` leaves layers dense."""
    sizes = decoder_sizes(fields, AXK1_DEFAULTS)
    every = fields.count("moe_layer_freq", 1)
    fields.ignore("rope_interleave")
    first = fields.whole("first_k_dense_replace", 1)
    if fields.get("mlp_layer_types") is None:
        sparse = tuple(layer >= first and layer % every == 0 for layer in range(sizes["num_hidden_layers"]))
    else:
        sparse = listed_or_after(fields, sizes, first)
    experts = replace(latent_experts(fields, sizes, AXK1_LATENT), output_norm=True)
    return expert_decoder(fields, sizes, latent_attention(fields, sizes, AXK1_LATENT), experts, sparse)


def read_glm_moe_dsa(fields: Fields) -> Shapes:
    """GLM-5: V3.2 in which some layers may share the indexer of an earlier one."""
    sizes = decoder_sizes(fields, GLM_DSA_DEFAULTS)
    _read_indexer(fields, sizes, heads=32)
    sparse = listed_or_after(fields, sizes, fields.whole("first_k_dense_replace", 3))
    attention = latent_attention(fields, sizes, GLM_DSA_LATENT, indexer=True)
    experts = latent_experts(fields, sizes, GLM_DSA_LATENT)
    mlps = ("moe" if is_sparse else "dense" for is_sparse in sparse)

    def make(kind: tuple[str, str]) -> MixedLayer:
        mlp = experts if kind[1] == "moe" else Dense(activation=experts.activation)
        return MixedLayer(replace(attention, indexer=kind[0] == "full"), mlp)

    return mixed_decoder(fields, sizes, zip(_indexers(fields, sizes), mlps, strict=True), make)


def _indexers(fields: Fields, sizes: dict[str, int]) -> tuple[str, ...]:
    layers = sizes["num_hidden_layers"]
    every = max(fields.whole("index_topk_freq", 1), 1)
    offset = fields.whole("index_skip_topk_offset", 2)
    words = {"full": "full", "shared": "shared", "F": "full", "S": "shared"}
    name = named_field(fields, ("indexer_types", "index_topk_pattern"))
    return read_pattern(
        fields, name, layers, words, lambda layer: "full" if max(layer - offset + 1, 0) % every == 0 else "shared"
    )


def _read(
    fields: Fields,
    sizes: dict[str, int],
    defaults: LatentDefaults,
    sparse: Sequence[bool],
    *,
    indexer: bool = False,
) -> Shapes:
    attention = latent_attention(fields, sizes, defaults, indexer=indexer)
    return expert_decoder(fields, sizes, attention, latent_experts(fields, sizes, defaults), sparse)


def latent_attention(
    fields: Fields,
    sizes: dict[str, int],
    defaults: LatentDefaults,
    *,
    indexer: bool = False,
    latent_queries: bool | None = None,
) -> Attention:
    """Reads latent attention; queries have a latent unless the file says `"q_lora_rank": null`, or the class does."""
    fields.ignore("qk_head_dim")
    sizes["kv_lora_rank"] = fields.count("kv_lora_rank", defaults.key_rank)
    sizes["qk_nope_head_dim"] = fields.count("qk_nope_head_dim", defaults.nope)
    sizes["qk_rope_head_dim"] = fields.count("qk_rope_head_dim", defaults.rope)
    sizes["v_head_dim"] = fields.count("v_head_dim", defaults.value)
    sizes["head_dim"] = sizes["qk_rope_head_dim"]
    if latent_queries is None:
        latent_queries = not fields.is_null("q_lora_rank")
    if latent_queries:
        sizes["q_lora_rank"] = fields.count("q_lora_rank", defaults.query_rank)
    elif indexer:
        raise fields.refuse("q_lora_rank", "q_lora_rank must not be null: the indexer reads the latent of the queries")
    bias = fields.flag("attention_bias", default=False)
    return Attention(
        grouped=False,
        bias=bias,
        output_bias=bias,
        latent="queries-and-keys" if latent_queries else "keys",
        indexer=indexer,
        dropout=fields.probability("attention_dropout", default=0.0),
    )


def latent_experts(fields: Fields, sizes: dict[str, int], defaults: LatentDefaults) -> MixtureOfExperts:
    """Reads routed and shared experts as DeepSeek's configs name them."""
    experts_of(
        fields,
        sizes,
        count=("n_routed_experts", "num_local_experts", "num_experts"),
        counts=defaults.experts,
        per_token=defaults.per_token,
        inner=defaults.width,
        inner_name="moe_intermediate_size",
    )
    shared_width(fields, sizes, "n_shared_experts", defaults.shared)
    return MixtureOfExperts(activation=silu(fields), shared=True, router_in_fp32=True, scores_in_fp32=True)


def _read_indexer(fields: Fields, sizes: dict[str, int], *, heads: int) -> None:
    fields.ignore("index_topk", "mlp_bias", "indexer_rope_interleave", "rope_interleave")
    sizes["index_n_heads"] = fields.count("index_n_heads", heads)
    sizes["index_head_dim"] = fields.count("index_head_dim", 128)


DEEPSEEK_V2 = Family("deepseek_v2", "DeepseekV2ForCausalLM", read_v2, forward)
DEEPSEEK_V3 = Family("deepseek_v3", "DeepseekV3ForCausalLM", read_v3, forward)
DEEPSEEK_V32 = Family("deepseek_v32", "DeepseekV32ForCausalLM", read_v32, forward)
GLM4_MOE_LITE = Family("glm4_moe_lite", "Glm4MoeLiteForCausalLM", read_glm4_moe_lite, forward)
GLM_MOE_DSA = Family("glm_moe_dsa", "GlmMoeDsaForCausalLM", read_glm_moe_dsa, forward)
MISTRAL4 = Family("mistral4", "Mistral4ForCausalLM", read_mistral4, forward)
AXK1 = Family("axk1", "AXK1ForCausalLM", read_axk1, forward)
