"""Llama and the families whose block differs from it by a flag or two.

Pre-norm decoder with RMSNorm, rotary embedding, grouped-query attention and a gated MLP. Source: the modeling files of
the same names in transformers.
"""

from dataclasses import replace

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, is_grouped
from app.planning.families.windows import windowed_blocks

LLAMA_DEFAULTS = Defaults(32000, 4096, 32, 32, 2048, intermediate_size=11008)
MISTRAL_DEFAULTS = Defaults(32000, 4096, 32, 32, 131072, intermediate_size=14336, num_key_value_heads=8)
QWEN2_DEFAULTS = Defaults(151936, 4096, 32, 32, 32768, intermediate_size=22016, num_key_value_heads=32)
QWEN3_DEFAULTS = Defaults(151936, 4096, 32, 32, 32768, intermediate_size=22016, num_key_value_heads=32, head_dim=128)
GRANITE_DEFAULTS = Defaults(32000, 4096, 32, 32, 2048, intermediate_size=11008)
PHI3_DEFAULTS = Defaults(32064, 3072, 32, 32, 4096, intermediate_size=8192)
STABLELM_DEFAULTS = Defaults(50304, 2560, 32, 32, 4096, intermediate_size=6912, num_key_value_heads=32)
GLM_DEFAULTS = Defaults(151552, 4096, 40, 32, 131072, intermediate_size=13696, num_key_value_heads=2, head_dim=128)


def read_llama(fields: Fields) -> Shapes:
    """Llama: biases only where the config says so."""
    sizes = decoder_sizes(fields, LLAMA_DEFAULTS)
    bias = fields.flag("attention_bias", default=False)
    dense = _silu(fields, bias=fields.flag("mlp_bias", default=False))
    return _shapes(fields, sizes, _attention(fields, sizes, bias=bias, output_bias=bias), dense)


def read_mistral(fields: Fields) -> Shapes:
    """Mistral: no biases, eight key/value heads and a window unless said otherwise."""
    sizes = decoder_sizes(fields, MISTRAL_DEFAULTS)
    blocks = windowed_blocks(fields, sizes, Block(_attention(fields, sizes), _silu(fields)), default=4096)
    layout = DecoderLayout(blocks, tied=fields.flag("tie_word_embeddings", default=False))
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_qwen2(fields: Fields) -> Shapes:
    """Qwen2: biases on query, key and value."""
    sizes = decoder_sizes(fields, QWEN2_DEFAULTS)
    return _shapes(fields, sizes, _attention(fields, sizes, bias=True), _silu(fields))


def read_qwen3(fields: Fields) -> Shapes:
    """Qwen3: a norm over each head of queries and keys, and a head size of its own."""
    sizes = decoder_sizes(fields, QWEN3_DEFAULTS)
    bias = fields.flag("attention_bias", default=False)
    attention = _attention(fields, sizes, bias=bias, output_bias=bias, head_norms=True)
    return _shapes(fields, sizes, attention, _silu(fields))


def read_granite(fields: Fields) -> Shapes:
    """Granite: Llama with multipliers, which have no parameters."""
    sizes = decoder_sizes(fields, GRANITE_DEFAULTS)
    fields.ignore("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")
    bias = fields.flag("attention_bias", default=False)
    dense = _silu(fields, bias=fields.flag("mlp_bias", default=False))
    attention = _attention(fields, sizes, bias=bias, output_bias=bias)
    return _shapes(fields, sizes, attention, dense, head_scaled=True)


def read_phi3(fields: Fields) -> Shapes:
    """Phi-3 and Phi-4: one matrix for query, key and value, one for gate and up."""
    sizes = decoder_sizes(fields, PHI3_DEFAULTS)
    fields.ignore("original_max_position_embeddings", "partial_rotary_factor", "attention_bias", "full_attn_mod")
    fields.ignore("interpolate_factor", "lm_head_bias", "mlp_bias")
    attention = Attention(
        is_grouped(sizes),
        joint=True,
        heads_first=True,
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    dense = Dense(activation=fields.activation("hidden_act", default="silu"), joint=True)
    block = Block(attention, dense, residual_dropout=fields.probability("resid_pdrop", default=0.0))
    layout = DecoderLayout(
        windowed_blocks(fields, sizes, block, default=None),
        tied=fields.flag("tie_word_embeddings", default=False),
        embedding_dropout=fields.probability("embd_pdrop", default=0.0),
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_glm(fields: Fields) -> Shapes:
    """GLM: biases on query, key and value unless said otherwise, one matrix for gate and up."""
    return _glm(fields, sandwich=False)


def read_glm4(fields: Fields) -> Shapes:
    """GLM-4 (0414): GLM with a norm before and after each part."""
    return _glm(fields, sandwich=True)


def _glm(fields: Fields, *, sandwich: bool) -> Shapes:
    sizes = decoder_sizes(fields, GLM_DEFAULTS)
    fields.ignore("partial_rotary_factor")
    attention = replace(_attention(fields, sizes, bias=fields.flag("attention_bias", default=True)), heads_first=True)
    dense = Dense(activation=fields.activation("hidden_act", default="silu"), joint=True)
    block = Block(attention, dense, placement="sandwich" if sandwich else "pre")
    layout = DecoderLayout((block,), tied=fields.flag("tie_word_embeddings", default=False))
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_stablelm(fields: Fields) -> Shapes:
    """StableLM: LayerNorm, optional biases on q/k/v, optional norms per head, optional parallel blocks."""
    sizes = decoder_sizes(fields, STABLELM_DEFAULTS)
    width = sizes["hidden_size"] // sizes["num_attention_heads"]
    fields.must_be("head_dim", width, because="its class derives the size of a head")
    fields.ignore("partial_rotary_factor", "norm_eps", "rope_pct")
    attention = Attention(
        is_grouped(sizes),
        bias=fields.flag("use_qkv_bias", default=False),
        query_key_norm="per-head" if fields.flag("qk_layernorm", default=False) else "none",
        query_key_norm_kind="layer-no-bias",
        heads_first=True,
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    block = Block(
        attention,
        _silu(fields),
        placement="parallel" if fields.flag("use_parallel_residual", default=False) else "pre",
        norm="layer",
        residual_dropout=fields.probability("hidden_dropout", default=0.0),
    )
    layout = DecoderLayout((block,), tied=fields.flag("tie_word_embeddings", default=False), norm="layer")
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def _shapes(
    fields: Fields, sizes: dict[str, int], attention: Attention, dense: Dense, *, head_scaled: bool = False
) -> Shapes:
    tied = fields.flag("tie_word_embeddings", default=False)
    layout = DecoderLayout((Block(attention, dense),), tied=tied, head_scaled=head_scaled)
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def _attention(
    fields: Fields, sizes: dict[str, int], *, bias: bool = False, output_bias: bool = False, head_norms: bool = False
) -> Attention:
    return Attention(
        is_grouped(sizes),
        bias=bias,
        output_bias=output_bias,
        query_key_norm="head" if head_norms else "none",
        dropout=fields.probability("attention_dropout", default=0.0),
    )


def _silu(fields: Fields, *, bias: bool = False) -> Dense:
    return Dense(activation=fields.activation("hidden_act", default="silu"), bias=bias)


LLAMA = Family("llama", "LlamaForCausalLM", read_llama, forward)
MISTRAL = Family("mistral", "MistralForCausalLM", read_mistral, forward)
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", read_qwen2, forward)
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", read_qwen3, forward)
GRANITE = Family("granite", "GraniteForCausalLM", read_granite, forward)
PHI3 = Family("phi3", "Phi3ForCausalLM", read_phi3, forward)
GLM = Family("glm", "GlmForCausalLM", read_glm, forward)
GLM4 = Family("glm4", "Glm4ForCausalLM", read_glm4, forward)
STABLELM = Family("stablelm", "StableLmForCausalLM", read_stablelm, forward)
