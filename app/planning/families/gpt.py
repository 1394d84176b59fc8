"""GPT-2 and its descendants with LayerNorm and a plain MLP: GPT-Neo, GPT-J, GPT-NeoX, GPT-BigCode and StarCoder 2.

Source: transformers modeling_gpt2.py, modeling_gpt_neo.py, modeling_gptj.py, modeling_gpt_neox.py,
modeling_gpt_bigcode.py, modeling_starcoder2.py.
"""

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import GPT2_NAMES, Defaults, decoder_sizes, is_grouped, uniform_heads
from app.planning.families.windows import windowed_blocks

GPT2_DEFAULTS = Defaults(50257, 768, 12, 12, 1024)
GPT_NEO_DEFAULTS = Defaults(50257, 2048, 24, 16, 2048)
GPT_NEO_NAMES = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
GPTJ_DEFAULTS = Defaults(50400, 4096, 28, 16, 2048)
GPT_NEOX_DEFAULTS = Defaults(50432, 6144, 44, 64, 2048, intermediate_size=24576)
STARCODER2_DEFAULTS = Defaults(49152, 3072, 30, 24, 4096, intermediate_size=12288, num_key_value_heads=2)


GPT_NEO_MODULES = (
    ("self_attn", "attn.attention"),
    ("self_attn.o_proj", "out_proj"),
    ("mlp.up_proj", "c_fc"),
    ("mlp.down_proj", "c_proj"),
    ("embed_tokens", "wte"),
    ("embed_positions", "wpe"),
)
GPTJ_MODULES = (
    ("self_attn", "attn"),
    ("self_attn.o_proj", "out_proj"),
    ("mlp.up_proj", "fc_in"),
    ("mlp.down_proj", "fc_out"),
    ("embed_tokens", "wte"),
)
GPT_NEOX_MODULES = (
    ("self_attn", "attention"),
    ("qkv_proj", "query_key_value"),
    ("self_attn.o_proj", "dense"),
    ("mlp.up_proj", "dense_h_to_4h"),
    ("mlp.down_proj", "dense_4h_to_h"),
    ("embed_tokens", "embed_in"),
)
STARCODER2_MODULES = (("mlp.up_proj", "c_fc"), ("mlp.down_proj", "c_proj"))
GPT2_MODULES = (
    ("self_attn", "attn"),
    ("qkv_proj", "c_attn"),
    ("self_attn.o_proj", "c_proj"),
    ("mlp.up_proj", "c_fc"),
    ("mlp.down_proj", "c_proj"),
    ("embed_tokens", "wte"),
    ("embed_positions", "wpe"),
)


def read_gpt2(fields: Fields) -> Shapes:
    """GPT-2: learned positions, one joint q/k/v projection, dropout everywhere, a tied head."""
    sizes = decoder_sizes(fields, GPT2_DEFAULTS, GPT2_NAMES)
    _no_cross_attention(fields)
    uniform_heads(fields, sizes)
    fields.ignore("apply_query_key_layer_scaling", "normalize_attention_scores")
    attention = Attention(
        grouped=False,
        bias=True,
        output_bias=True,
        joint=True,
        rotary=False,
        dropout=fields.probability("attn_pdrop", default=0.1),
        softmax_in_fp32=False,
    )
    return _with_positions(fields, sizes, attention, default_activation="gelu_new", dropout=0.1)


def read_gpt_bigcode(fields: Fields) -> Shapes:
    """GPT-BigCode: GPT-2 with one key/value head for all queries."""
    sizes = decoder_sizes(fields, GPT2_DEFAULTS, GPT2_NAMES)
    _no_cross_attention(fields)
    if fields.flag("multi_query", default=True):
        sizes["num_key_value_heads"] = 1
    attention = Attention(
        is_grouped(sizes),
        bias=True,
        output_bias=True,
        joint=True,
        rotary=False,
        one_head=sizes["num_key_value_heads"] == 1,
        dropout=fields.probability("attn_pdrop", default=0.1),
    )
    return _with_positions(
        fields, sizes, attention, default_activation="gelu_pytorch_tanh", dropout=0.1, mask_buffer=True
    )


def read_gpt_neo(fields: Fields) -> Shapes:
    """GPT-Neo: GPT-2 with separate projections and no bias on them; local and global layers alternate."""
    sizes = decoder_sizes(fields, GPT_NEO_DEFAULTS, GPT_NEO_NAMES)
    uniform_heads(fields, sizes)
    fields.ignore("attention_types", "attention_layers", "window_size")
    attention = Attention(
        grouped=False,
        output_bias=True,
        rotary=False,
        scores_in_fp32=True,
        mask_buffer=True,
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    return _with_positions(
        fields, sizes, attention, default_activation="gelu_new", dropout=0.0, names=("resid_dropout", "embed_dropout")
    )


def _with_positions(
    fields: Fields,
    sizes: dict[str, int],
    attention: Attention,
    *,
    default_activation: str,
    dropout: float,
    names: tuple[str, str] = ("resid_pdrop", "embd_pdrop"),
    mask_buffer: bool = False,
) -> Shapes:
    block = Block(
        attention,
        Dense(gated=False, activation=fields.activation("activation_function", default=default_activation), bias=True),
        norm="layer",
        residual_dropout=fields.probability(names[0], default=dropout),
    )
    layout = DecoderLayout(
        (block,),
        tied=fields.flag("tie_word_embeddings", default=True),
        rotary=False,
        positions=True,
        embedding_dropout=fields.probability(names[1], default=dropout),
        norm="layer",
        mask_buffer=mask_buffer,
    )
    sizes["position_rows"] = sizes["max_position_embeddings"]
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_gptj(fields: Fields) -> Shapes:
    """GPT-J: attention and MLP side by side behind one norm, no bias on attention, a head with a bias."""
    sizes = decoder_sizes(fields, GPTJ_DEFAULTS, GPT2_NAMES)
    uniform_heads(fields, sizes)
    fields.ignore("rotary_dim", "rotary")
    block = Block(
        Attention(grouped=False, heads_first=True, dropout=fields.probability("attn_pdrop", default=0.0)),
        Dense(gated=False, activation=fields.activation("activation_function", default="gelu_new"), bias=True),
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


def read_gpt_neox(fields: Fields) -> Shapes:
    """GPT-NeoX: attention and MLP side by side behind a norm each, biases unless said otherwise."""
    sizes = decoder_sizes(fields, GPT_NEOX_DEFAULTS)
    uniform_heads(fields, sizes)
    fields.ignore("rotary_pct", "rotary_emb_base", "classifier_dropout")
    bias = fields.flag("attention_bias", default=True)
    attention = Attention(
        grouped=False,
        bias=bias,
        output_bias=bias,
        joint=True,
        heads_first=True,
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    parallel = fields.flag("use_parallel_residual", default=True)
    block = Block(
        attention,
        Dense(gated=False, activation=fields.activation("hidden_act", default="gelu"), bias=True),
        placement="parallel-two-norms" if parallel else "pre",
        norm="layer",
        residual_dropout=fields.probability("hidden_dropout", default=0.0),
    )
    layout = DecoderLayout((block,), tied=fields.flag("tie_word_embeddings", default=False), norm="layer")
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_starcoder2(fields: Fields) -> Shapes:
    """StarCoder 2: grouped heads, rotary positions, biases unless said otherwise."""
    sizes = decoder_sizes(fields, STARCODER2_DEFAULTS)
    fields.must_be("mlp_type", "default", because="its MLP has other matrices")
    fields.must_be("norm_type", "layer_norm", because="its norms have other parameters")
    fields.ignore("norm_epsilon")
    bias = fields.flag("use_bias", default=True)
    attention = Attention(
        is_grouped(sizes), bias=bias, output_bias=bias, dropout=fields.probability("attention_dropout", default=0.0)
    )
    block = Block(
        attention,
        Dense(gated=False, activation=fields.activation("hidden_act", default="gelu_pytorch_tanh"), bias=bias),
        norm="layer",
        residual_dropout=fields.probability("residual_dropout", default=0.0),
    )
    layout = DecoderLayout(
        windowed_blocks(fields, sizes, block, default=None),
        tied=fields.flag("tie_word_embeddings", default=True),
        embedding_dropout=fields.probability("embedding_dropout", default=0.0),
        norm="layer",
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def _no_cross_attention(fields: Fields) -> None:
    fields.must_be("add_cross_attention", False, because="cross-attention adds a projection to each layer")


GPT2 = Family("gpt2", "GPT2LMHeadModel", read_gpt2, forward, module_names=GPT2_MODULES)
GPT_BIGCODE = Family("gpt_bigcode", "GPTBigCodeForCausalLM", read_gpt_bigcode, forward, module_names=GPT2_MODULES)
GPT_NEO = Family("gpt_neo", "GPTNeoForCausalLM", read_gpt_neo, forward, module_names=GPT_NEO_MODULES)
GPTJ = Family("gptj", "GPTJForCausalLM", read_gptj, forward, module_names=GPTJ_MODULES)
GPT_NEOX = Family("gpt_neox", "GPTNeoXForCausalLM", read_gpt_neox, forward, module_names=GPT_NEOX_MODULES)
STARCODER2 = Family("starcoder2", "Starcoder2ForCausalLM", read_starcoder2, forward, module_names=STARCODER2_MODULES)
