"""Llama's block with other defaults, biases or norms: SmolLM 3, Seed-OSS, Hunyuan, ERNIE 4.5, Ministral, InternLM 3,
IQuest Coder, Helium, Code World Model, HyperCLOVA X, Granite with sliding windows, EXAONE 4, VaultGemma.

Source: the modeling files of the same names in transformers. Sliding windows and layers without rotary embedding have
the parameters of the others.
"""

from dataclasses import replace

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, is_grouped

SMOLLM3_DEFAULTS = Defaults(128256, 2048, 36, 16, 32768, intermediate_size=11008, num_key_value_heads=4)
SEED_OSS_DEFAULTS = Defaults(155136, 4096, 64, 80, 524288, intermediate_size=27648, num_key_value_heads=8, head_dim=128)
HUNYUAN_DEFAULTS = Defaults(290943, 4096, 32, 32, 2048, intermediate_size=11008)
ERNIE_DEFAULTS = Defaults(103424, 1024, 18, 16, 131072, intermediate_size=3072, num_key_value_heads=2, head_dim=128)
MINISTRAL_DEFAULTS = Defaults(32000, 4096, 32, 32, 131072, intermediate_size=14336, num_key_value_heads=8)
MINISTRAL3_DEFAULTS = Defaults(
    131072, 4096, 34, 32, 262144, intermediate_size=14336, num_key_value_heads=8, head_dim=128
)
INTERNLM3_DEFAULTS = Defaults(128512, 4096, 48, 32, 32768, intermediate_size=10240, num_key_value_heads=2, head_dim=128)
IQUESTCODER_DEFAULTS = Defaults(
    76800, 5120, 80, 40, 131072, intermediate_size=27648, num_key_value_heads=8, head_dim=128
)
HELIUM_DEFAULTS = Defaults(48000, 2560, 24, 20, 4096, intermediate_size=7040, num_key_value_heads=20, head_dim=128)
CWM_DEFAULTS = Defaults(128256, 6144, 64, 48, 131072, intermediate_size=21504, num_key_value_heads=8, head_dim=128)
HYPERCLOVAX_DEFAULTS = Defaults(32000, 4096, 32, 32, 2048, intermediate_size=11008)
GRANITE_SWA_DEFAULTS = Defaults(100352, 2560, 24, 20, 8192, intermediate_size=8192, num_key_value_heads=4)
EXAONE4_DEFAULTS = Defaults(102400, 4096, 32, 32, 2048, intermediate_size=16384, num_key_value_heads=32)
VAULTGEMMA_DEFAULTS = Defaults(256000, 2304, 26, 8, 8192, intermediate_size=9216, num_key_value_heads=4, head_dim=256)


def read_smollm3(fields: Fields) -> Shapes:
    """SmolLM 3: every fourth layer, or the listed ones, has no rotary embedding."""
    sizes = decoder_sizes(fields, SMOLLM3_DEFAULTS)
    layers = sizes["num_hidden_layers"]
    interval = fields.count("no_rope_layer_interval", 4)
    with_rope = fields.integers("no_rope_layers") or tuple(int((i + 1) % interval != 0) for i in range(layers))
    if len(with_rope) < layers:
        raise fields.refuse("no_rope_layers", f"no_rope_layers says nothing about some of the {layers} layers")
    sizes["num_layers_without_rope"] = sum(not rope for rope in with_rope[:layers])
    sizes["num_layers_with_rope"] = layers - sizes["num_layers_without_rope"]
    dense = gated(fields, bias=fields.flag("mlp_bias", default=False))
    attention = biased_attention(fields, sizes)
    blocks = (
        Block(attention, dense, repeats="num_layers_with_rope"),
        Block(replace(attention, rotary=False), dense, repeats="num_layers_without_rope"),
    )
    return shapes_of(fields, sizes, *(block for block in blocks if sizes[block.repeats]), tied=True)


def read_seed_oss(fields: Fields) -> Shapes:
    """Seed-OSS: biases on query, key and value, and flags for those on output and MLP."""
    sizes = decoder_sizes(fields, SEED_OSS_DEFAULTS)
    attention = attention_of(
        fields,
        sizes,
        bias=fields.flag("attention_bias", default=True),
        output_bias=fields.flag("attention_out_bias", default=False),
        dropout=0.1,
    )
    dense = gated(fields, bias=fields.flag("mlp_bias", default=False))
    dropout = fields.probability("residual_dropout", default=0.1)
    return shapes_of(fields, sizes, Block(attention, dense, residual_dropout=dropout))


def read_hunyuan(fields: Fields) -> Shapes:
    """Hunyuan, dense: a norm over each head of queries and keys."""
    sizes = decoder_sizes(fields, HUNYUAN_DEFAULTS)
    fields.must_be("use_qk_norm", True, because="the class always has norms on queries and keys")
    fields.must_be("use_cla", False, because="layers that share keys and values have no projections for them")
    fields.must_be("mlp_bias", False, because="the class has no biases in the MLP")
    fields.must_be("norm_type", "rms", because="its norms have other parameters")
    fields.must_be("num_experts", 1, because="the class has no experts")
    fields.must_be("attention_head_dim", sizes["head_dim"], because="it contradicts head_dim")
    fields.ignore("org_vocab_size", "cla_share_factor", "class_num", "dense_list", "add_classification_head")
    fields.ignore("enable_attention_fp32_softmax", "enable_lm_head_fp32", "use_rotary_pos_emb", "skip_cls_token")
    attention = biased_attention(fields, sizes)
    return shapes_of(fields, sizes, Block(replace(attention, query_key_norm="head"), gated(fields)))


def read_ernie(fields: Fields) -> Shapes:
    """ERNIE 4.5, dense: one flag for all biases."""
    sizes = decoder_sizes(fields, ERNIE_DEFAULTS)
    bias = fields.flag("use_bias", default=False)
    attention = attention_of(fields, sizes, bias=bias, output_bias=bias)
    return shapes_of(fields, sizes, Block(attention, gated(fields, bias=bias)), tied=True)


def read_ministral(fields: Fields) -> Shapes:
    """Ministral: Mistral with a window of its own for each layer."""
    sizes = decoder_sizes(fields, MINISTRAL_DEFAULTS)
    return shapes_of(fields, sizes, Block(attention_of(fields, sizes), gated(fields)))


def read_ministral3(fields: Fields) -> Shapes:
    """Ministral 3: Mistral with attention scaled by position."""
    sizes = decoder_sizes(fields, MINISTRAL3_DEFAULTS)
    return shapes_of(fields, sizes, Block(attention_of(fields, sizes), gated(fields)))


def read_internlm3(fields: Fields) -> Shapes:
    """InternLM 3: Llama under other names; transformers runs it as Llama, with all biases or none."""
    sizes = decoder_sizes(fields, INTERNLM3_DEFAULTS)
    attention_bias = fields.flag("qkv_bias" if fields.get("qkv_bias") is not None else "attention_bias", default=False)
    mlp_bias = fields.flag("bias" if fields.get("bias") is not None else "mlp_bias", default=False)
    if attention_bias != mlp_bias:
        raise fields.refuse("bias", "InternLM 3 has biases everywhere or nowhere: qkv_bias must equal bias")
    attention = attention_of(fields, sizes, bias=attention_bias, output_bias=attention_bias)
    fields.ignore("attention_bias", "mlp_bias")
    return shapes_of(fields, sizes, Block(attention, gated(fields, bias=mlp_bias)))


def read_iquestcoder(fields: Fields) -> Shapes:
    """IQuest Coder: Llama under another name."""
    sizes = decoder_sizes(fields, IQUESTCODER_DEFAULTS)
    dense = gated(fields, bias=fields.flag("mlp_bias", default=False))
    return shapes_of(fields, sizes, Block(biased_attention(fields, sizes), dense))


def read_helium(fields: Fields) -> Shapes:
    """Helium: no bias on the output projection, whose input is as wide as the stream."""
    sizes = decoder_sizes(fields, HELIUM_DEFAULTS)
    if sizes["num_attention_heads"] * sizes["head_dim"] != sizes["hidden_size"]:
        raise fields.refuse("head_dim", "num_attention_heads times head_dim must be the hidden_size in Helium")
    attention = attention_of(fields, sizes, bias=fields.flag("attention_bias", default=False))
    return shapes_of(fields, sizes, Block(attention, gated(fields, bias=fields.flag("mlp_bias", default=False))))


def read_cwm(fields: Fields) -> Shapes:
    """Code World Model: Llama without biases on attention, with windows in most layers."""
    sizes = decoder_sizes(fields, CWM_DEFAULTS)
    fields.must_be("attention_bias", False, because="the class has no biases on attention")
    dense = gated(fields, bias=fields.flag("mlp_bias", default=False))
    return shapes_of(fields, sizes, Block(attention_of(fields, sizes), dense))


def read_hyperclovax(fields: Fields) -> Shapes:
    """HyperCLOVA X: Granite's multipliers, and norms after each part as well unless said otherwise."""
    sizes = decoder_sizes(fields, HYPERCLOVAX_DEFAULTS)
    _multipliers(fields)
    dense = gated(fields, bias=fields.flag("mlp_bias", default=False))
    sandwich = fields.flag("use_post_norm", default=True)
    block = Block(biased_attention(fields, sizes), dense, placement="sandwich" if sandwich else "pre")
    return shapes_of(fields, sizes, block)


def read_granite_swa(fields: Fields) -> Shapes:
    """Granite with sliding windows and attention sinks."""
    sizes = decoder_sizes(fields, GRANITE_SWA_DEFAULTS)
    _multipliers(fields)
    fields.ignore("layer_rope_theta")
    dense = gated(fields, bias=fields.flag("mlp_bias", default=False))
    attention = replace(biased_attention(fields, sizes), sinks=True)
    return shapes_of(fields, sizes, Block(attention, dense), tied=True)


def read_exaone4(fields: Fields) -> Shapes:
    """EXAONE 4: norms after each part, and over each head of queries and keys."""
    sizes = decoder_sizes(fields, EXAONE4_DEFAULTS)
    fields.ignore("sliding_window_pattern")
    attention = replace(attention_of(fields, sizes), query_key_norm="head")
    return shapes_of(fields, sizes, Block(attention, gated(fields), placement="output"))


def read_vaultgemma(fields: Fields) -> Shapes:
    """VaultGemma: Gemma 2 with norms before each part only."""
    sizes = decoder_sizes(fields, VAULTGEMMA_DEFAULTS)
    fields.ignore("hidden_act", "query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping")
    dense = Dense(activation=fields.activation("hidden_activation", default="gelu_pytorch_tanh"))
    return shapes_of(fields, sizes, Block(biased_attention(fields, sizes), dense), tied=True)


def attention_of(
    fields: Fields, sizes: dict[str, int], *, bias: bool = False, output_bias: bool = False, dropout: float = 0.0
) -> Attention:
    """Rotary attention with the dropout that the config says."""
    probability = fields.probability("attention_dropout", default=dropout)
    return Attention(is_grouped(sizes), bias=bias, output_bias=output_bias, dropout=probability)


def biased_attention(fields: Fields, sizes: dict[str, int], *, default: bool = False) -> Attention:
    """Rotary attention whose four biases `attention_bias` decides on."""
    bias = fields.flag("attention_bias", default=default)
    return attention_of(fields, sizes, bias=bias, output_bias=bias)


def gated(fields: Fields, *, bias: bool = False, default: str = "silu") -> Dense:
    """A gated MLP with the activation function that the config says."""
    return Dense(activation=fields.activation("hidden_act", default=default), bias=bias)


def shapes_of(fields: Fields, sizes: dict[str, int], *blocks: Block, tied: bool = False) -> Shapes:
    """A decoder of these blocks whose head is tied unless the config says otherwise."""
    layout = DecoderLayout(blocks, tied=fields.flag("tie_word_embeddings", default=tied), norm=blocks[0].norm)
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


def _multipliers(fields: Fields) -> None:
    fields.ignore("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")


SMOLLM3 = Family("smollm3", "SmolLM3ForCausalLM", read_smollm3, forward)
SEED_OSS = Family("seed_oss", "SeedOssForCausalLM", read_seed_oss, forward)
HUNYUAN = Family("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM", read_hunyuan, forward)
ERNIE = Family("ernie4_5", "Ernie4_5ForCausalLM", read_ernie, forward, other_class_names=("Ernie4_5_ForCausalLM",))
MINISTRAL = Family("ministral", "MinistralForCausalLM", read_ministral, forward)
MINISTRAL3 = Family("ministral3", "Ministral3ForCausalLM", read_ministral3, forward)
INTERNLM3 = Family(
    "internlm3", "LlamaForCausalLM", read_internlm3, forward, other_class_names=("InternLM3ForCausalLM",)
)
IQUESTCODER = Family(
    "iquestcoder", "LlamaForCausalLM", read_iquestcoder, forward, other_class_names=("IQuestCoderForCausalLM",)
)
HELIUM = Family("helium", "HeliumForCausalLM", read_helium, forward)
CWM = Family("cwm", "CwmForCausalLM", read_cwm, forward)
HYPERCLOVAX = Family("hyperclovax", "HyperCLOVAXForCausalLM", read_hyperclovax, forward)
GRANITE_SWA = Family("granite_swa", "GraniteSWAForCausalLM", read_granite_swa, forward)
EXAONE4 = Family("exaone4", "Exaone4ForCausalLM", read_exaone4, forward)
VAULTGEMMA = Family("vaultgemma", "VaultGemmaForCausalLM", read_vaultgemma, forward)
