"""Families whose attention and MLP stand side by side: Phi, Falcon and Cohere; and BLOOM, Falcon's ancestor with
ALiBi.

Source: transformers modeling_phi.py, modeling_falcon.py, modeling_cohere.py, modeling_cohere2.py, modeling_bloom.py.
"""

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, Placement, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, is_grouped, uniform_heads

PHI_MODULES = (("self_attn.o_proj", "dense"), ("mlp.up_proj", "fc1"), ("mlp.down_proj", "fc2"))
BLOOM_MODULES = (
    ("self_attn", "self_attention"),
    ("qkv_proj", "query_key_value"),
    ("self_attn.o_proj", "dense"),
    ("mlp.up_proj", "dense_h_to_4h"),
    ("mlp.down_proj", "dense_4h_to_h"),
    ("embed_tokens", "word_embeddings"),
)
PHI_DEFAULTS = Defaults(51200, 2048, 24, 32, 2048, intermediate_size=8192)
COHERE_DEFAULTS = Defaults(256000, 8192, 40, 64, 8192, intermediate_size=22528)
COHERE2_DEFAULTS = Defaults(256000, 8192, 40, 64, 8192, intermediate_size=22528)
FALCON_DEFAULTS = Defaults(65024, 4544, 32, 71, 2048)
FALCON_NAMES = {"num_key_value_heads": "num_kv_heads", "intermediate_size": "ffn_hidden_size"}
BLOOM_DEFAULTS = Defaults(250880, 64, 2, 8, 2048)
BLOOM_NAMES = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "max_position_embeddings": "seq_length"}


def read_phi(fields: Fields) -> Shapes:
    """Phi-1.5 and Phi-2: one LayerNorm for both parts, biases everywhere, also on the head."""
    sizes = decoder_sizes(fields, PHI_DEFAULTS)
    fields.ignore("partial_rotary_factor")
    attention = Attention(
        is_grouped(sizes),
        bias=True,
        output_bias=True,
        query_key_norm="head" if fields.flag("qk_layernorm", default=False) else "none",
        query_key_norm_kind="layer",
        heads_first=True,
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    block = Block(
        attention,
        Dense(gated=False, activation=fields.activation("hidden_act", default="gelu_new"), bias=True),
        placement="parallel",
        norm="layer",
        residual_dropout=fields.probability("resid_pdrop", default=0.0),
    )
    layout = DecoderLayout(
        (block,),
        tied=fields.flag("tie_word_embeddings", default=False),
        embedding_dropout=fields.probability("embd_pdrop", default=0.0),
        norm="layer",
        head_bias=True,
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_cohere(fields: Fields) -> Shapes:
    """Command R and Aya: LayerNorm without bias, a tied head, norms on queries and keys in the largest."""
    head_norms = fields.flag("use_qk_norm", default=False)
    return _cohere(fields, COHERE_DEFAULTS, head_norms=head_norms)


def read_cohere2(fields: Fields) -> Shapes:
    """Command A: as Command R, with sliding windows in three of four layers."""
    fields.ignore("sliding_window_pattern", "order_of_interleaved_layers", "rotary_pct", "position_embedding_type")
    fields.ignore("layer_switch", "use_embedding_sharing", "use_parallel_embedding")
    fields.must_be("use_gated_activation", True, because="its class has a gate")
    fields.must_be("use_parallel_block", True, because="its class has attention and MLP side by side")
    return _cohere(fields, COHERE2_DEFAULTS, head_norms=False)


def _cohere(fields: Fields, defaults: Defaults, *, head_norms: bool) -> Shapes:
    sizes = decoder_sizes(fields, defaults)
    fields.ignore("logit_scale")
    bias = fields.flag("attention_bias", default=False)
    attention = Attention(
        is_grouped(sizes),
        bias=bias,
        output_bias=bias,
        query_key_norm="per-head" if head_norms else "none",
        query_key_norm_kind="layer-python",
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    dense = Dense(activation=fields.activation("hidden_act", default="silu"))
    layout = DecoderLayout(
        (Block(attention, dense, placement="parallel", norm="layer-python"),),
        tied=fields.flag("tie_word_embeddings", default=True),
        head_scaled=True,
        norm="layer-python",
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_falcon(fields: Fields) -> Shapes:
    """Falcon: generations told apart by flags: multi-query in the 7B, grouped heads and two norms in 40B and 180B."""
    new = fields.flag("new_decoder_architecture", default=False)
    multi_query = fields.flag("multi_query", default=True)
    alibi = fields.flag("alibi", default=False)
    side_by_side = fields.flag("parallel_attn", default=True)
    norms = fields.count("num_ln_in_parallel_attn", 2 if new else 1, most=2)
    sizes = decoder_sizes(fields, FALCON_DEFAULTS, FALCON_NAMES)
    width = sizes["hidden_size"] // sizes["num_attention_heads"]
    fields.must_be("head_dim", width, because="its class derives the size of a head")
    if not new:
        sizes["num_key_value_heads"] = 1 if multi_query else sizes["num_attention_heads"]
    bias = fields.flag("bias", default=False)
    attention = Attention(
        is_grouped(sizes),
        bias=bias,
        output_bias=bias,
        joint=True,
        rotary=not alibi,
        spread=new and is_grouped(sizes),
        one_head=not new and multi_query,
        broadcast=not new and multi_query,
        dropout=fields.probability("attention_dropout", default=0.0) if alibi else 0.0,
        softmax_in_fp32=False,
    )
    placement: Placement = "pre"
    if new or side_by_side:
        placement = "parallel-two-norms" if new and norms == 2 else "parallel"
    block = Block(
        attention,
        Dense(gated=False, activation=fields.activation("activation", default="gelu"), bias=bias),
        placement=placement,
        norm="layer",
        residual_dropout=fields.probability("hidden_dropout", default=0.0),
    )
    layout = DecoderLayout(
        (block,), tied=fields.flag("tie_word_embeddings", default=True), rotary=not alibi, norm="layer"
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_bloom(fields: Fields) -> Shapes:
    """BLOOM: ALiBi, a norm behind the embedding, one joint projection, biases everywhere."""
    fields.ignore("n_inner", "offset_alibi", "skip_bias_add", "skip_bias_add_qkv", "masked_softmax_fusion")
    fields.ignore("attention_softmax_in_fp32", "apply_residual_connection_post_layernorm", "slow_but_exact")
    older = (("hidden_size", "n_embed"), ("num_attention_heads", "num_attention_heads"))
    names = BLOOM_NAMES | {common: other for common, other in older if fields.get(other) is not None}
    sizes = decoder_sizes(fields, BLOOM_DEFAULTS, names)
    uniform_heads(fields, sizes)
    attention = Attention(
        grouped=False,
        bias=True,
        output_bias=True,
        joint=True,
        rotary=False,
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    block = Block(
        attention,
        Dense(gated=False, activation="gelu-function", bias=True),
        norm="layer",
        residual_dropout=fields.probability("hidden_dropout", default=0.0),
    )
    layout = DecoderLayout(
        (block,),
        tied=fields.flag("tie_word_embeddings", default=True),
        rotary=False,
        embedding_norm=True,
        norm="layer",
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


PHI = Family("phi", "PhiForCausalLM", read_phi, forward, module_names=PHI_MODULES)
COHERE = Family("cohere", "CohereForCausalLM", read_cohere, forward)
COHERE2 = Family("cohere2", "Cohere2ForCausalLM", read_cohere2, forward)
FALCON = Family("falcon", "FalconForCausalLM", read_falcon, forward, module_names=BLOOM_MODULES)
BLOOM = Family("bloom", "BloomForCausalLM", read_bloom, forward, module_names=BLOOM_MODULES)
