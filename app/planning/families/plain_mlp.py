"""Decoders with rotary embedding and an MLP without a gate: Arcee, Apertus, Nemotron, Jais 2, nanochat, Persimmon.

Most square a ReLU; Apertus learns the two slopes of its activation function. Source: the modeling files of the same
names in transformers.
"""

from dataclasses import replace

from app.planning.families.decoder import Block, DecoderLayout, Dense, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.llama_like import attention_of, biased_attention, shapes_of
from app.planning.families.read import Defaults, decoder_sizes, uniform_heads

ARCEE_DEFAULTS = Defaults(32000, 2560, 32, 32, 4096, intermediate_size=18432)
APERTUS_DEFAULTS = Defaults(131072, 4096, 32, 32, 65536, intermediate_size=14336)
NEMOTRON_DEFAULTS = Defaults(256000, 6144, 32, 48, 4096, intermediate_size=24576)
JAIS2_DEFAULTS = Defaults(150272, 3328, 32, 26, 8192, intermediate_size=26624)
NANOCHAT_DEFAULTS = Defaults(50304, 768, 12, 6, 2048, intermediate_size=8192)
PERSIMMON_DEFAULTS = Defaults(262144, 4096, 36, 64, 16384, intermediate_size=16384)

NANOCHAT_MODULES = (("mlp.up_proj", "fc1"), ("mlp.down_proj", "fc2"))
PERSIMMON_MODULES = (
    ("qkv_proj", "query_key_value"),
    ("self_attn.o_proj", "dense"),
    ("mlp.up_proj", "dense_h_to_4h"),
    ("mlp.down_proj", "dense_4h_to_h"),
)


def read_arcee(fields: Fields) -> Shapes:
    """Arcee Foundation Model: Llama with a squared ReLU and no gate."""
    sizes = decoder_sizes(fields, ARCEE_DEFAULTS)
    dense = _plain(fields, bias=fields.flag("mlp_bias", default=False))
    return shapes_of(fields, sizes, Block(biased_attention(fields, sizes), dense))


def read_apertus(fields: Fields) -> Shapes:
    """Apertus: norms over each head of queries and keys, an activation function with two learned slopes per layer."""
    sizes = decoder_sizes(fields, APERTUS_DEFAULTS)
    fields.must_be("qk_norm", True, because="the class always has norms on queries and keys")
    fields.must_be("post_norm", False, because="the class has norms before each part only")
    fields.must_be("mlp_bias", False, because="the class has no biases in the MLP")
    attention = replace(biased_attention(fields, sizes), query_key_norm="head")
    return shapes_of(fields, sizes, Block(attention, _plain(fields, default="xielu")))


def read_nemotron(fields: Fields) -> Shapes:
    """Nemotron and Minitron: LayerNorm whose weight is one more than the parameter."""
    sizes = decoder_sizes(fields, NEMOTRON_DEFAULTS)
    fields.ignore("norm_eps", "partial_rotary_factor", "rope_percent", "rope_percentage")
    dense = _plain(fields, bias=fields.flag("mlp_bias", default=False))
    return shapes_of(fields, sizes, Block(biased_attention(fields, sizes), dense, norm="layer"))


def read_jais2(fields: Fields) -> Shapes:
    """Jais 2: LayerNorm, biases unless said otherwise."""
    sizes = decoder_sizes(fields, JAIS2_DEFAULTS)
    dense = _plain(fields, bias=fields.flag("mlp_bias", default=True))
    return shapes_of(fields, sizes, Block(biased_attention(fields, sizes, default=True), dense, norm="layer"))


def read_nanochat(fields: Fields) -> Shapes:
    """nanochat: RMSNorm without parameters everywhere, behind the embedding too."""
    sizes = decoder_sizes(fields, NANOCHAT_DEFAULTS)
    fields.ignore("final_logit_softcapping", "logits_soft_cap")
    attention = replace(biased_attention(fields, sizes), query_key_norm="head", query_key_norm_kind="rms-no-weight")
    layout = DecoderLayout(
        (Block(attention, _plain(fields), norm="rms-no-weight"),),
        tied=fields.flag("tie_word_embeddings", default=False),
        embedding_norm=True,
        norm="rms-no-weight",
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_persimmon(fields: Fields) -> Shapes:
    """Persimmon: one matrix for query, key and value, LayerNorm over each head, biases everywhere."""
    sizes = decoder_sizes(fields, PERSIMMON_DEFAULTS)
    uniform_heads(fields, sizes)
    fields.ignore("partial_rotary_factor")
    attention = replace(
        attention_of(fields, sizes, bias=True, output_bias=True),
        joint=True,
        query_key_norm="head" if fields.flag("qk_layernorm", default=True) else "none",
        query_key_norm_kind="layer",
    )
    block = Block(
        attention,
        _plain(fields, bias=True),
        norm="layer",
        residual_dropout=fields.probability("hidden_dropout", default=0.0),
    )
    return shapes_of(fields, sizes, block)


def _plain(fields: Fields, *, bias: bool = False, default: str = "relu2") -> Dense:
    return Dense(gated=False, activation=fields.activation("hidden_act", default=default), bias=bias)


ARCEE = Family("arcee", "ArceeForCausalLM", read_arcee, forward)
APERTUS = Family("apertus", "ApertusForCausalLM", read_apertus, forward)
NEMOTRON = Family("nemotron", "NemotronForCausalLM", read_nemotron, forward)
JAIS2 = Family("jais2", "Jais2ForCausalLM", read_jais2, forward)
NANOCHAT = Family("nanochat", "NanoChatForCausalLM", read_nanochat, forward, module_names=NANOCHAT_MODULES)
PERSIMMON = Family("persimmon", "PersimmonForCausalLM", read_persimmon, forward, module_names=PERSIMMON_MODULES)
