"""Decoders with one part that no other family has: BitNet's norms inside each part, DiffLlama's differential attention,
and the dense models with multi-head latent attention, MiniCPM 3 and Youtu.

Source: transformers modeling_bitnet.py, modeling_diffllama.py, modeling_minicpm3.py, modeling_youtu.py.
"""

from dataclasses import replace

from app.planning.families.decoder import Attention, Block, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.llama_like import biased_attention, gated, shapes_of
from app.planning.families.read import Defaults, decoder_sizes

BITNET_DEFAULTS = Defaults(128256, 2560, 30, 20, 2048, intermediate_size=6912, num_key_value_heads=5)
DIFFLLAMA_DEFAULTS = Defaults(32000, 2048, 16, 32, 2048, intermediate_size=8192)
MINICPM3_DEFAULTS = Defaults(73448, 2560, 62, 40, 32768, intermediate_size=6400, num_key_value_heads=40)
YOUTU_DEFAULTS = Defaults(128256, 2048, 32, 16, 131072, intermediate_size=6144, num_key_value_heads=16)


def read_bitnet(fields: Fields) -> Shapes:
    """BitNet b1.58: a norm before each output matrix. The hub's files store matrices in ternary digits."""
    sizes = decoder_sizes(fields, BITNET_DEFAULTS)
    fields.ignore("quantization_config")
    if sizes["num_attention_heads"] * sizes["head_dim"] != sizes["hidden_size"]:
        raise fields.refuse("head_dim", "num_attention_heads times head_dim must be the hidden_size in BitNet")
    attention = replace(biased_attention(fields, sizes), output_norm=True)
    dense = replace(gated(fields, default="relu2"), inner_norm="rms")
    return shapes_of(fields, sizes, Block(attention, dense))


def read_diffllama(fields: Fields) -> Shapes:
    """DiffLlama: Llama with the difference of two attentions."""
    sizes = decoder_sizes(fields, DIFFLLAMA_DEFAULTS)
    fields.must_be("attention_dropout", 0, because="differential attention has no dropout")
    fields.ignore("lambda_std_dev")
    if sizes["num_key_value_heads"] % 2:
        raise fields.refuse("num_key_value_heads", "num_key_value_heads must be even: values are cut into halves")
    attention = replace(biased_attention(fields, sizes), differential=True)
    return shapes_of(fields, sizes, Block(attention, gated(fields)))


def read_minicpm3(fields: Fields) -> Shapes:
    """MiniCPM 3: scaled embeddings and additions, latents for queries and for keys and values."""
    sizes = decoder_sizes(fields, MINICPM3_DEFAULTS)
    fields.ignore("scale_emb", "scale_depth", "dim_model_base", "mup_denominator")
    attention = _latent(fields, sizes, latent=256, queries=768, nope=64, rope=32, value=None)
    return shapes_of(
        fields, sizes, Block(attention, gated(fields, bias=fields.flag("mlp_bias", default=False))), tied=True
    )


def read_youtu(fields: Fields) -> Shapes:
    """Youtu: DeepSeek-V3's attention with a dense MLP in every layer."""
    sizes = decoder_sizes(fields, YOUTU_DEFAULTS)
    fields.must_be("mlp_bias", False, because="the class has no biases in the MLP")
    fields.ignore("rope_interleave", "embedding_initializer_range")
    attention = _latent(fields, sizes, latent=512, queries=1536, nope=128, rope=64, value=128)
    return shapes_of(fields, sizes, Block(attention, gated(fields)), tied=True)


def _latent(
    fields: Fields, sizes: dict[str, int], *, latent: int, queries: int, nope: int, rope: int, value: int | None
) -> Attention:
    """Attention with latents; a value head of None is as wide as the hidden size over the heads."""
    fields.ignore("qk_head_dim", "head_dim")
    sizes["kv_lora_rank"] = fields.count("kv_lora_rank", latent)
    sizes["qk_nope_head_dim"] = fields.count("qk_nope_head_dim", nope)
    sizes["qk_rope_head_dim"] = fields.count("qk_rope_head_dim", rope)
    sizes["v_head_dim"] = fields.count("v_head_dim", value or sizes["hidden_size"] // sizes["num_attention_heads"])
    sizes["head_dim"] = sizes["qk_rope_head_dim"]
    latent_queries = not fields.is_null("q_lora_rank")
    if latent_queries:
        sizes["q_lora_rank"] = fields.count("q_lora_rank", queries)
    attention = biased_attention(fields, sizes)
    return replace(attention, grouped=False, latent="queries-and-keys" if latent_queries else "keys")


BITNET = Family("bitnet", "BitNetForCausalLM", read_bitnet, forward, other_class_names=("BitnetForCausalLM",))
DIFFLLAMA = Family("diffllama", "DiffLlamaForCausalLM", read_diffllama, forward)
MINICPM3 = Family("minicpm3", "MiniCPM3ForCausalLM", read_minicpm3, forward)
YOUTU = Family("youtu", "YoutuForCausalLM", read_youtu, forward)
