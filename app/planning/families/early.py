"""Decoders of before 2023 beside the GPT-2 line: GPT (the first), CTRL, CodeGen, MPT, XGLM, BioGPT, GPT-NeoX Japanese.

LayerNorm, a plain MLP four times as wide unless said otherwise, one key and value per query head. Source: the modeling
files of the same names in transformers.
"""

from dataclasses import replace

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.gpt import GPT_NEOX_MODULES, GPTJ_MODULES
from app.planning.families.opt import OPT_MODULES, POSITION_OFFSET
from app.planning.families.read import GPT2_NAMES, Defaults, decoder_sizes, uniform_heads
from app.planning.modules import ACTIVATIONS

GPT_DEFAULTS = Defaults(40478, 768, 12, 12, 512)
CTRL_DEFAULTS = Defaults(246534, 1280, 48, 16, 256, intermediate_size=8192)
CODEGEN_DEFAULTS = Defaults(50400, 4096, 28, 16, 2048)
MPT_DEFAULTS = Defaults(50368, 2048, 24, 16, 2048)
XGLM_DEFAULTS = Defaults(256008, 1024, 24, 16, 2048, intermediate_size=4096)
BIOGPT_DEFAULTS = Defaults(42384, 1024, 24, 16, 1024, intermediate_size=4096)
GPT_NEOX_JAPANESE_DEFAULTS = Defaults(32000, 2560, 32, 32, 2048)

GPT_NAMES = {**GPT2_NAMES, "intermediate_size": "n_inner"}
CTRL_NAMES = {**GPT2_NAMES, "intermediate_size": "dff"}
MPT_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
}
XGLM_NAMES = {
    "hidden_size": "d_model",
    "intermediate_size": "ffn_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "attention_heads",
}
GPT_ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "silu"}
"""The first GPT's own names of activation functions."""

GPT_MODULES = (
    ("self_attn", "attn"),
    ("qkv_proj", "c_attn"),
    ("self_attn.o_proj", "c_proj"),
    ("mlp.up_proj", "c_fc"),
    ("mlp.down_proj", "c_proj"),
    ("embed_tokens", "tokens_embed"),
    ("embed_positions", "positions_embed"),
)
CTRL_MODULES = (
    ("self_attn", "multi_head_attention"),
    ("q_proj", "Wq"),
    ("k_proj", "Wk"),
    ("v_proj", "Wv"),
    ("self_attn.o_proj", "dense"),
    ("mlp", "ffn"),
    ("mlp.up_proj", "0"),
    ("mlp.down_proj", "2"),
    ("embed_tokens", "w"),
)
MPT_MODULES = (
    ("self_attn", "attn"),
    ("qkv_proj", "Wqkv"),
    ("self_attn.o_proj", "out_proj"),
    ("mlp", "ffn"),
    ("embed_tokens", "wte"),
)
BIOGPT_MODULES = (*OPT_MODULES, ("lm_head", "output_projection"))
GPT_NEOX_JAPANESE_MODULES = (*GPT_NEOX_MODULES, ("lm_head", "embed_out"))


def read_gpt(fields: Fields) -> Shapes:
    """The first GPT: learned positions, a norm after each addition and none at the end."""
    sizes = decoder_sizes(fields, GPT_DEFAULTS, GPT_NAMES)
    uniform_heads(fields, sizes)
    fields.must_be("n_inner", 4 * sizes["hidden_size"], because="its class has an MLP four times as wide")
    name = fields.one_of("afn", tuple(GPT_ACTIVATIONS), default="gelu")
    attention = Attention(
        grouped=False,
        bias=True,
        output_bias=True,
        joint=True,
        rotary=False,
        dropout=fields.probability("attn_pdrop", default=0.1),
        softmax_in_fp32=False,
    )
    block = Block(
        attention,
        Dense(gated=False, activation=ACTIVATIONS[GPT_ACTIVATIONS[name]], bias=True),
        placement="post",
        norm="layer",
        residual_dropout=fields.probability("resid_pdrop", default=0.1),
    )
    sizes["position_rows"] = sizes["max_position_embeddings"]
    layout = DecoderLayout(
        (block,),
        tied=fields.flag("tie_word_embeddings", default=True),
        rotary=False,
        positions=True,
        embedding_dropout=fields.probability("embd_pdrop", default=0.1),
        final_norm=False,
        norm="layer",
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def read_ctrl(fields: Fields) -> Shapes:
    """CTRL: fixed positions, ReLU, a head with a bias."""
    sizes = decoder_sizes(fields, CTRL_DEFAULTS, CTRL_NAMES)
    uniform_heads(fields, sizes)
    attention = Attention(grouped=False, bias=True, output_bias=True, rotary=False, softmax_in_fp32=False)
    block = Block(
        attention,
        Dense(gated=False, activation="relu", bias=True),
        norm="layer",
        residual_dropout=fields.probability("resid_pdrop", default=0.1),
    )
    return _shapes(
        fields, sizes, block, embedding_dropout=fields.probability("embd_pdrop", default=0.1), head_bias=True
    )


def read_codegen(fields: Fields) -> Shapes:
    """CodeGen: GPT-J with one matrix for query, key and value."""
    sizes = decoder_sizes(fields, CODEGEN_DEFAULTS, GPT2_NAMES)
    uniform_heads(fields, sizes)
    fields.ignore("rotary_dim")
    block = Block(
        Attention(grouped=False, joint=True, dropout=fields.probability("attn_pdrop", default=0.0)),
        Dense(gated=False, activation=fields.activation("activation_function", default="gelu_new"), bias=True),
        placement="parallel",
        norm="layer",
        residual_dropout=fields.probability("resid_pdrop", default=0.0),
    )
    dropout = fields.probability("embd_pdrop", default=0.0)
    return _shapes(fields, sizes, block, tied=False, rotary=True, embedding_dropout=dropout, head_bias=True)


def read_mpt(fields: Fields) -> Shapes:
    """MPT: ALiBi, norms without bias, no biases at all."""
    sizes = decoder_sizes(fields, MPT_DEFAULTS, MPT_NAMES)
    uniform_heads(fields, sizes)
    fields.must_be("expansion_ratio", 4, because="its class has an MLP four times as wide")
    fields.must_be("intermediate_size", 4 * sizes["hidden_size"], because="its class has an MLP four times as wide")
    fields.must_be("no_bias", True, because="its class has no biases")
    fields.must_be("norm_type", "low_precision_layernorm", because="its class has LayerNorm")
    fields.ignore("emb_pdrop", "learned_pos_emb", "init_device", "logit_scale", "embedding_fraction", "init_config")
    fields.ignore("verbose", "max_position_embeddings")
    nested = fields.section("attn_config")
    nested.must_be("attn_type", "multihead_attention", because="its class has a key and value per query head")
    nested.must_be("qk_ln", False, because="its class has no norms on queries and keys")
    nested.must_be("alibi", True, because="its class has no other positions")
    nested.ignore("attn_impl", "clip_qkv", "softmax_scale", "prefix_lm", "attn_uses_sequence_id", "alibi_bias_max")
    dropout = nested.probability("attn_pdrop", default=0.0)
    fields.probability("resid_pdrop", default=0.0)
    block = Block(
        Attention(grouped=False, joint=True, rotary=False, dropout=dropout),
        Dense(gated=False, activation="gelu"),
        norm="layer-no-bias",
        residual_dropout=dropout,
    )
    return _shapes(fields, sizes, block)


def read_xglm(fields: Fields) -> Shapes:
    """XGLM: OPT's block with fixed positions."""
    sizes = decoder_sizes(fields, XGLM_DEFAULTS, XGLM_NAMES)
    uniform_heads(fields, sizes)
    fields.must_be("add_cross_attention", False, because="cross-attention adds a projection to each layer")
    fields.ignore("layerdrop", "init_std", "scale_embedding", "activation_dropout")
    dropout = fields.probability("dropout", default=0.1)
    attention = Attention(
        grouped=False,
        bias=True,
        output_bias=True,
        rotary=False,
        dropout=fields.probability("attention_dropout", default=0.1),
    )
    dense = Dense(gated=False, activation=fields.activation("activation_function", default="gelu"), bias=True)
    block = Block(attention, dense, norm="layer", residual_dropout=dropout)
    return _shapes(fields, sizes, block, embedding_dropout=dropout)


def read_biogpt(fields: Fields) -> Shapes:
    """BioGPT: OPT's block and positions."""
    sizes = decoder_sizes(fields, BIOGPT_DEFAULTS)
    uniform_heads(fields, sizes)
    fields.ignore("layerdrop", "scale_embedding", "activation_dropout")
    dropout = fields.probability("hidden_dropout_prob", default=0.1)
    attention = Attention(
        grouped=False,
        bias=True,
        output_bias=True,
        rotary=False,
        dropout=fields.probability("attention_probs_dropout_prob", default=0.1),
    )
    dense = Dense(gated=False, activation=fields.activation("hidden_act", default="gelu"), bias=True)
    block = Block(attention, dense, norm="layer", residual_dropout=dropout)
    sizes["position_rows"] = sizes["max_position_embeddings"] + POSITION_OFFSET
    return _shapes(fields, sizes, block, positions=True, embedding_dropout=dropout)


def read_gpt_neox_japanese(fields: Fields) -> Shapes:
    """GPT-NeoX Japanese: one part after the other, and of all biases only that of the last layer's attention."""
    sizes = decoder_sizes(fields, GPT_NEOX_JAPANESE_DEFAULTS)
    uniform_heads(fields, sizes)
    fields.ignore("rotary_pct", "rotary_emb_base")
    multiple = fields.count("intermediate_multiple_size", 4, most=1000)
    fields.must_be("intermediate_size", sizes["hidden_size"] * multiple, because="its class derives the MLP's width")
    sizes["intermediate_size"] = sizes["hidden_size"] * multiple
    sizes["num_last_layers"] = 1
    sizes["num_layers_before_last"] = sizes["num_hidden_layers"] - 1
    attention = Attention(grouped=False, joint=True, dropout=fields.probability("attention_dropout", default=0.1))
    block = Block(
        attention,
        Dense(gated=False, activation=fields.activation("hidden_act", default="gelu")),
        repeats="num_layers_before_last",
        norm="layer",
        residual_dropout=fields.probability("hidden_dropout", default=0.0),
    )
    last = replace(block, attention=replace(attention, output_bias=True), repeats="num_last_layers")
    blocks = (block, last) if sizes["num_layers_before_last"] else (last,)
    return _shapes(fields, sizes, *blocks, rotary=True)


def _shapes(
    fields: Fields,
    sizes: dict[str, int],
    *blocks: Block,
    tied: bool = True,
    rotary: bool = False,
    positions: bool = False,
    embedding_dropout: float = 0.0,
    head_bias: bool = False,
) -> Shapes:
    layout = DecoderLayout(
        blocks,
        tied=fields.flag("tie_word_embeddings", default=tied),
        rotary=rotary,
        positions=positions,
        embedding_dropout=embedding_dropout,
        norm=blocks[0].norm,
        head_bias=head_bias,
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


GPT = Family("openai-gpt", "OpenAIGPTLMHeadModel", read_gpt, forward, module_names=GPT_MODULES)
CTRL = Family("ctrl", "CTRLLMHeadModel", read_ctrl, forward, module_names=CTRL_MODULES)
CODEGEN = Family("codegen", "CodeGenForCausalLM", read_codegen, forward, module_names=GPTJ_MODULES)
MPT = Family(
    "mpt", "MptForCausalLM", read_mpt, forward, module_names=MPT_MODULES, other_class_names=("MPTForCausalLM",)
)
XGLM = Family("xglm", "XGLMForCausalLM", read_xglm, forward, module_names=OPT_MODULES)
BIOGPT = Family("biogpt", "BioGptForCausalLM", read_biogpt, forward, module_names=BIOGPT_MODULES)
GPT_NEOX_JAPANESE = Family(
    "gpt_neox_japanese",
    "GPTNeoXJapaneseForCausalLM",
    read_gpt_neox_japanese,
    forward,
    module_names=GPT_NEOX_JAPANESE_MODULES,
)
