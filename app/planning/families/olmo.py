"""OLMo, OLMo 2 and OLMo 3: LayerNorm without parameters in the first, norms after each part in the others.

Source: transformers modeling_olmo.py, modeling_olmo2.py, modeling_olmo3.py.
"""

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, is_grouped

OLMO_DEFAULTS = Defaults(50304, 4096, 32, 32, 2048, intermediate_size=11008)


def read_olmo(fields: Fields) -> Shapes:
    """OLMo: norms have no parameters."""
    return _read(fields, second_generation=False)


def read_olmo2(fields: Fields) -> Shapes:
    """OLMo 2 and 3: RMSNorm after attention and MLP, and over all queries and all keys."""
    return _read(fields, second_generation=True)


def _read(fields: Fields, *, second_generation: bool) -> Shapes:
    sizes = decoder_sizes(fields, OLMO_DEFAULTS)
    bias = fields.flag("attention_bias", default=False)
    attention = Attention(
        is_grouped(sizes),
        bias=bias,
        output_bias=bias,
        query_key_norm="full" if second_generation else "none",
        query_key_norm_kind="rms-fp32",
        dropout=fields.probability("attention_dropout", default=0.0),
    )
    dense = Dense(activation=fields.activation("hidden_act", default="silu"))
    block = Block(
        attention,
        dense,
        placement="output" if second_generation else "pre",
        norm="rms-fp32" if second_generation else "layer-fp32",
    )
    layout = DecoderLayout((block,), tied=fields.flag("tie_word_embeddings", default=False), norm=block.norm)
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


OLMO = Family("olmo", "OlmoForCausalLM", read_olmo, forward)
OLMO2 = Family("olmo2", "Olmo2ForCausalLM", read_olmo2, forward)
OLMO3 = Family("olmo3", "Olmo3ForCausalLM", read_olmo2, forward)
