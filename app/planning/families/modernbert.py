"""ModernBERT, and the decoder made of its blocks with separate query, key and value.

Source: transformers modeling_modernbert.py, modeling_modernbert_decoder.py.
"""

from dataclasses import replace

from app.planning.families.decoder import Attention, Block, Dense
from app.planning.families.encoder import EncoderLayout, encoder_family, encoder_sizes, forward, shapes_of
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, uniform_heads
from app.planning.modules import Norm

DEFAULTS = Defaults(50368, 768, 22, 12, 8192, intermediate_size=1152)
_SHARED_MODULES = (
    ("self_attn", "attn"),
    ("self_attn.o_proj", "Wo"),
    ("gate_up_proj", "Wi"),
    ("mlp.down_proj", "Wo"),
    ("lm_head", "decoder"),
)
MODERNBERT_MODULES = (*_SHARED_MODULES, ("qkv_proj", "Wqkv"), ("transform", "head.dense"))
MODERNBERT_DECODER_MODULES = (*_SHARED_MODULES, ("transform", "lm_head.dense"))


def read_modernbert(fields: Fields) -> Shapes:
    """ModernBERT: pre-norm, gated MLP, norms without bias, none before the first attention."""
    return _shapes(fields, encoder_sizes(fields, DEFAULTS), joint=True)


def read_modernbert_decoder(fields: Fields) -> Shapes:
    """ModernBERT decoder: the encoder's blocks with a projection each for query, key and value."""
    sizes = decoder_sizes(fields, DEFAULTS)
    uniform_heads(fields, sizes)
    return _shapes(fields, sizes, joint=False)


def _shapes(fields: Fields, sizes: dict[str, int], *, joint: bool) -> Shapes:
    fields.ignore("norm_eps", "initializer_cutoff_factor")
    fields.ignore("global_rope_theta", "local_rope_theta", "classifier_pooling", "classifier_dropout", "mlp_dropout")
    fields.ignore("deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index", "reference_compile")
    fields.ignore("position_embedding_type", "repad_logits_with_grad")
    kind: Norm = "layer" if fields.flag("norm_bias", default=False) else "layer-no-bias"
    bias = fields.flag("attention_bias", default=False)
    dropout = fields.probability("attention_dropout", default=0.0)
    attention = Attention(grouped=False, causal=not joint, bias=bias, output_bias=bias, joint=joint, dropout=dropout)
    gelu = fields.activation("hidden_activation", default="gelu")
    dense = Dense(activation=gelu, bias=fields.flag("mlp_bias", default=False), joint=True)
    every = fields.count("global_attn_every_n_layers", 3)
    sizes["sliding_window"] = max(fields.count("local_attention", 128) // 2, 1)
    listed = fields.get("layer_types")
    kinds = (
        listed
        if isinstance(listed, list)
        else ["sliding_attention" if layer % every else "full_attention" for layer in range(sizes["num_hidden_layers"])]
    )
    sizes["num_first_layers"] = 1
    sizes["num_sliding_layers"] = kinds[1:].count("sliding_attention")
    sizes["num_later_layers"] = sizes["num_hidden_layers"] - 1 - sizes["num_sliding_layers"]
    sliding = replace(attention, window="sliding_window")
    blocks = (
        Block(attention, dense, repeats="num_first_layers", norm=kind, first=True),
        Block(sliding, dense, repeats="num_sliding_layers", norm=kind),
        Block(attention, dense, repeats="num_later_layers", norm=kind),
    )
    layout = EncoderLayout(
        tuple(block for block in blocks if sizes[block.repeats]),
        tied=fields.flag("tie_word_embeddings", default=True),
        norm=kind,
        head_activation=fields.activation("classifier_activation", default="gelu"),
        positions=False,
        rotary=True,
        final_norm=True,
        loss_in_fp32=True,
        head_bias=fields.flag("decoder_bias", default=True),
        head_dense_bias=fields.flag("classifier_bias", default=False),
        dropout=fields.probability("embedding_dropout", default=0.0),
    )
    return shapes_of(layout, sizes)


MODERNBERT = encoder_family("modernbert", "ModernBertForMaskedLM", read_modernbert, MODERNBERT_MODULES)
MODERNBERT_DECODER = Family(
    "modernbert-decoder",
    "ModernBertDecoderForCausalLM",
    read_modernbert_decoder,
    forward,
    module_names=MODERNBERT_DECODER_MODULES,
)
