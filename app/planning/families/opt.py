"""OPT: learned positions with two rows more than positions, ReLU, and in the 350M a projected embedding and norms at
the end.

Source: transformers modeling_opt.py.
"""

from app.planning.families.decoder import Attention, Block, DecoderLayout, Dense, forward
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults, decoder_sizes, uniform_heads
from app.planning.modules import Norm

OPT_DEFAULTS = Defaults(50272, 768, 12, 12, 2048, intermediate_size=3072)

OPT_MODULES = (("mlp", ""), ("self_attn.o_proj", "out_proj"), ("mlp.up_proj", "fc1"), ("mlp.down_proj", "fc2"))

POSITION_OFFSET = 2


def read_opt(fields: Fields) -> Shapes:
    """OPT: biases and norm weights unless said otherwise."""
    sizes = decoder_sizes(fields, OPT_DEFAULTS, {"intermediate_size": "ffn_dim"})
    uniform_heads(fields, sizes)
    fields.ignore("layerdrop", "init_std", "activation_dropout")
    bias = fields.flag("enable_bias", default=True)
    kind: Norm = "layer" if fields.flag("layer_norm_elementwise_affine", default=True) else "layer-no-weight"
    before = fields.flag("do_layer_norm_before", default=True)
    removed = fields.flag("_remove_final_layer_norm", default=False)
    dropout = fields.probability("dropout", default=0.1)
    block = Block(
        Attention(
            grouped=False,
            bias=bias,
            output_bias=bias,
            rotary=False,
            dropout=fields.probability("attention_dropout", default=0.0),
        ),
        Dense(gated=False, activation=fields.activation("activation_function", default="relu"), bias=bias),
        placement="pre" if before else "post",
        norm=kind,
        residual_dropout=dropout,
    )
    sizes["position_rows"] = sizes["max_position_embeddings"] + POSITION_OFFSET
    sizes["word_embed_proj_dim"] = fields.count("word_embed_proj_dim", sizes["hidden_size"])
    layout = DecoderLayout(
        (block,),
        tied=fields.flag("tie_word_embeddings", default=True),
        rotary=False,
        positions=True,
        embedding_width=sizes["word_embed_proj_dim"] != sizes["hidden_size"],
        final_norm=before and not removed,
        norm=kind,
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


OPT = Family("opt", "OPTForCausalLM", read_opt, forward, module_names=OPT_MODULES)
