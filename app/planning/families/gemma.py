"""Gemma, Gemma 2 and Gemma 3: RMSNorm, wide heads, a tied head; from Gemma 2 on a norm before and after each part.

Source: transformers modeling_gemma.py, modeling_gemma2.py, modeling_gemma3.py.
"""

from dataclasses import replace

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, Placement, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, is_grouped
from app.planning.families.windows import windowed_blocks

GEMMA_DEFAULTS = Defaults(256000, 3072, 28, 16, 8192, intermediate_size=24576, num_key_value_heads=16, head_dim=256)
GEMMA2_DEFAULTS = Defaults(256000, 2304, 26, 8, 8192, intermediate_size=9216, num_key_value_heads=4, head_dim=256)
GEMMA3_DEFAULTS = Defaults(262208, 2304, 26, 8, 131072, intermediate_size=9216, num_key_value_heads=4, head_dim=256)


def read_gemma(fields: Fields) -> Shapes:
    """Gemma: the first generation, with norms before each part."""
    sizes = decoder_sizes(fields, GEMMA_DEFAULTS)
    return _shapes(fields, sizes, _attention(fields, sizes), "pre")


def read_gemma2(fields: Fields) -> Shapes:
    """Gemma 2: norms before and after each part, scores and logits capped unless said otherwise."""
    sizes = decoder_sizes(fields, GEMMA2_DEFAULTS)
    attention = replace(_attention(fields, sizes), softcap=_is_capped(fields, "attn_logit_softcapping"))
    capped = _is_capped(fields, "final_logit_softcapping")
    return _shapes(fields, sizes, attention, "sandwich", head_softcap=capped)


def read_gemma3(fields: Fields) -> Shapes:
    """Gemma 3, text: a norm over each head of queries and keys as well; a window in five of six layers."""
    sizes = decoder_sizes(fields, GEMMA3_DEFAULTS)
    attention = replace(_attention(fields, sizes), query_key_norm="head")
    return _shapes(fields, sizes, attention, "sandwich", pattern=True)


def _is_capped(fields: Fields, name: str) -> bool:
    return not fields.is_null(name) and fields.get(name) != 0


def _attention(fields: Fields, sizes: dict[str, int]) -> Attention:
    bias = fields.flag("attention_bias", default=False)
    return Attention(
        is_grouped(sizes),
        bias=bias,
        output_bias=bias,
        query_key_norm_kind="rms-fp32",
        one_head=sizes["num_key_value_heads"] == 1,
        dropout=fields.probability("attention_dropout", default=0.0),
    )


def _shapes(
    fields: Fields,
    sizes: dict[str, int],
    attention: Attention,
    placement: Placement,
    *,
    head_softcap: bool = False,
    pattern: bool = False,
) -> Shapes:
    fields.get("hidden_act")
    dense = Dense(activation=fields.activation("hidden_activation", default="gelu_pytorch_tanh"))
    block = Block(attention, dense, placement=placement, norm="rms-fp32")
    blocks: tuple[Block, ...] = (block,)
    if pattern:
        blocks = windowed_blocks(fields, sizes, block, default=4096, full_every=6)
    layout = DecoderLayout(
        blocks,
        tied=fields.flag("tie_word_embeddings", default=True),
        norm="rms-fp32",
        head_softcap=head_softcap,
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


GEMMA = Family("gemma", "GemmaForCausalLM", read_gemma, forward)
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", read_gemma2, forward)
GEMMA3_TEXT = Family("gemma3_text", "Gemma3ForCausalLM", read_gemma3, forward)
