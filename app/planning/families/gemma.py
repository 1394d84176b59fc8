"""Gemma, Gemma 2 and Gemma 3: RMSNorm, wide heads, a tied head; from Gemma 2 on a norm before and after each part.

Source: transformers modeling_gemma.py, modeling_gemma2.py, modeling_gemma3.py.
"""

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, Placement, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, is_grouped

GEMMA_DEFAULTS = Defaults(256000, 3072, 28, 16, 8192, intermediate_size=24576, num_key_value_heads=16, head_dim=256)
GEMMA2_DEFAULTS = Defaults(256000, 2304, 26, 8, 8192, intermediate_size=9216, num_key_value_heads=4, head_dim=256)
GEMMA3_DEFAULTS = Defaults(262208, 2304, 26, 8, 131072, intermediate_size=9216, num_key_value_heads=4, head_dim=256)


def read_gemma(fields: Fields) -> Shapes:
    """Gemma: the first generation, with norms before each part."""
    return _read(fields, GEMMA_DEFAULTS, "pre", head_norms=False)


def read_gemma2(fields: Fields) -> Shapes:
    """Gemma 2: norms before and after each part."""
    return _read(fields, GEMMA2_DEFAULTS, "sandwich", head_norms=False)


def read_gemma3(fields: Fields) -> Shapes:
    """Gemma 3, text: a norm over each head of queries and keys as well."""
    return _read(fields, GEMMA3_DEFAULTS, "sandwich", head_norms=True)


def _read(fields: Fields, defaults: Defaults, placement: Placement, *, head_norms: bool) -> Shapes:
    sizes = decoder_sizes(fields, defaults)
    bias = fields.flag("attention_bias", default=False)
    fields.get("hidden_act")
    attention = Attention(
        is_grouped(sizes),
        bias=bias,
        output_bias=bias,
        query_key_norm="head" if head_norms else "none",
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    dense = Dense(activation=fields.activation("hidden_activation", default="gelu_pytorch_tanh"))
    layout = DecoderLayout(
        (Block(attention, dense, placement=placement),), tied=fields.flag("tie_word_embeddings", default=True)
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


GEMMA = Family("gemma", "GemmaForCausalLM", read_gemma, forward)
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", read_gemma2, forward)
GEMMA3_TEXT = Family("gemma3_text", "Gemma3ForCausalLM", read_gemma3, forward)
