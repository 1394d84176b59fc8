"""XLNet, XLM and FlauBERT.

XLNet's attention has matrices that are no linear layers, a fifth one for relative positions, and biases on scores;
counted is one stream, as training with labels runs it. XLM and FlauBERT are BERT's blocks under other names. Source:
the modeling files of the same names in transformers.
"""

from dataclasses import replace

from app.planning.families.aliases import spelling
from app.planning.families.decoder import HIDDEN, VOCABULARY, Attention, Block, Dense, heads_of
from app.planning.families.encoder import (
    POSITIONS,
    EncoderLayout,
    encoder_family,
    encoder_sizes,
    post_norm_layer,
    shapes_of,
)
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults
from app.planning.ledger import BATCH, Tape, Tensor, Weight
from app.planning.losses import language_model_head
from app.planning.modules import activation, attention, bare_matrix, embedding, norm, position_embedding
from app.planning.sizes import named

HEADS, HEAD_DIM = named("num_attention_heads"), named("head_dim")
XLM_MODULES = (
    ("self_attn", "attentions"),
    ("q_proj", "q_lin"),
    ("k_proj", "k_lin"),
    ("v_proj", "v_lin"),
    ("self_attn.o_proj", "out_lin"),
    ("mlp", "ffns"),
    ("mlp.up_proj", "lin1"),
    ("mlp.down_proj", "lin2"),
    ("lm_head", "pred_layer.proj"),
)


def read_xlnet(fields: Fields) -> Shapes:
    """XLNet."""
    names = {
        "hidden_size": spelling(fields, "hidden_size", "d_model"),
        "num_hidden_layers": spelling(fields, "num_hidden_layers", "n_layer"),
        "num_attention_heads": spelling(fields, "num_attention_heads", "n_head"),
        "vocab_size": spelling(fields, "n_token", "vocab_size"),
        "intermediate_size": "d_inner",
    }
    sizes = encoder_sizes(fields, Defaults(32000, 1024, 24, 16, 2**20, intermediate_size=4096), names)
    fields.must_be("d_head", sizes["head_dim"], because="its heads have another width")
    fields.ignore("attn_type", "mem_len", "reuse_len", "use_mems_eval", "use_mems_train", "bi_data", "clamp_len")
    fields.ignore("same_length", "summary_last_dropout", "start_n_top", "end_n_top", "untie_r", "output_past")
    dropout = fields.probability("dropout", default=0.1)
    dense = Dense(gated=False, activation=fields.activation("ff_activation", default="gelu"), bias=True)
    block = Block(
        Attention(grouped=False, causal=False, rotary=False, dropout=dropout, softmax_in_fp32=False),
        dense,
        placement="post",
        norm="layer",
        residual_dropout=dropout,
    )
    layout = EncoderLayout(
        (block,),
        tied=fields.flag("tie_word_embeddings", default=True),
        norm="layer",
        head_activation=dense.activation,
        positions=False,
        head_dense=False,
        dropout=dropout,
        embed=xlnet_embeddings,
        layer=xlnet_layer,
        head=head_with_other_bias,
    )
    return shapes_of(layout, sizes, 2**20)


def xlnet_embeddings(tape: Tape, layout: EncoderLayout) -> tuple[Tensor, Weight]:
    """Words, and the vector that stands for a word to be predicted."""
    x, table = embedding(tape, "word_embedding", VOCABULARY, HIDDEN)
    with tape.module("mask", "other"):
        mask = tape.weight("mask_emb", HIDDEN)
        x = tape.record("mask", (x,), x, weights=(mask,), passes=True)
    return tape.dropout(x, layout.dropout), table


def xlnet_layer(tape: Tape, x: Tensor, block: Block) -> Tensor:
    """Relative attention and a feed-forward network, with a norm after each addition."""

    def feed(given: Tensor) -> Tensor:
        dense = block.feed_forward
        kind = dense.activation
        with tape.module("ff", "other"):
            with tape.module("layer_1", "other"):
                inner = tape.linear(given, HIDDEN, named("intermediate_size"), bias=True, split="column")
            inner = tape.dropout(activation(tape, kind, inner), block.residual_dropout)
            with tape.module("layer_2", "other"):
                return tape.linear(inner, named("intermediate_size"), HIDDEN, bias=True, split="row")

    return post_norm_layer(tape, x, block, lambda given: _relative_attention(tape, given, block), feed)


def _relative_attention(tape: Tape, x: Tensor, block: Block) -> Tensor:
    width = HEADS * HEAD_DIM
    distances = tape.sequence * 2
    with tape.module("rel_attn", "attention"):
        query, key, value = (bare_matrix(tape, name, x, HIDDEN, width) for name in ("q", "k", "v"))
        waves = tape.tensor(BATCH * distances * HIDDEN, tape.compute, differentiable=False)
        positions = bare_matrix(tape, "r", waves, HIDDEN, width, tokens=BATCH * distances)
        biases = (
            *(tape.weight(name, width) for name in ("r_r_bias", "r_s_bias", "r_w_bias")),
            tape.weight("seg_embed", width * 2),
        )
        scores = tape.tensor(tape.tokens * HEADS * distances, tape.compute)
        tape.record(
            "position_scores",
            (query, positions),
            scores,
            saves=(query, positions),
            weights=biases,
            multiply_adds=tape.tokens * distances * width,
        )
        mixed = attention(
            tape, query, key, value, heads_of(block), dropout=block.attention.dropout, softmax_in_fp32=False
        )
        return bare_matrix(tape, "o", mixed, width, HIDDEN)


def head_with_other_bias(tape: Tape, layout: EncoderLayout, x: Tensor, table: Weight) -> None:
    """The vocabulary projection and its bias, which the reference counts as neither head nor embedding."""
    with tape.module("head_bias", "other"):
        bias = tape.weight("bias", VOCABULARY, split="vocabulary")
        x = tape.record("bias", (x,), x, weights=(bias,), passes=True)
    language_model_head(tape, x, HIDDEN, VOCABULARY, table if layout.tied else None, loss_in_fp32=False)


def read_xlm(fields: Fields) -> Shapes:
    """XLM: learned positions, and a table of languages where there are several."""
    layout, sizes = _xlm(fields)
    return shapes_of(layout, sizes)


def read_flaubert(fields: Fields) -> Shapes:
    """FlauBERT: XLM, perhaps with norms before each part."""
    layout, sizes = _xlm(fields)
    fields.ignore("layerdrop")
    if fields.flag("pre_norm", default=False):
        layout = replace(layout, blocks=(replace(layout.blocks[0], placement="pre"),))
    return shapes_of(layout, sizes)


def _xlm(fields: Fields) -> tuple[EncoderLayout, dict[str, int]]:
    names = {
        "hidden_size": spelling(fields, "hidden_size", "emb_dim"),
        "num_hidden_layers": spelling(fields, "num_hidden_layers", "n_layers"),
        "num_attention_heads": spelling(fields, "num_attention_heads", "n_heads"),
        "vocab_size": spelling(fields, "n_words", "vocab_size"),
    }
    sizes = encoder_sizes(fields, Defaults(30145, 2048, 12, 16, 512), names)
    sizes["intermediate_size"] = 4 * sizes["hidden_size"]
    sizes["position_rows"] = sizes["max_position_embeddings"]
    fields.must_be("asm", False, because="its head is an adaptive softmax")
    fields.must_be("is_encoder", True, because="the class is an encoder")
    fields.ignore(
        "causal", "embed_init_std", "init_std", "sinusoidal_embeddings", "bos_index", "eos_index", "pad_index"
    )
    fields.ignore("unk_index", "mask_index", "mask_token_id", "lang_id", "summary_first_dropout", "start_n_top")
    fields.ignore("end_n_top", "max_vocab", "min_count", "lang2id", "id2lang", "lgs", "share_inout_emb", "fp16")
    fields.ignore("encoder_only", "attention_heads", "group_by_size", "bptt", "amp")
    languages = fields.count("n_langs", 1, most=100_000)
    with_languages = fields.flag("use_lang_emb", default=True) and languages > 1
    sizes["n_langs"] = languages
    gelu = fields.flag("gelu_activation", default=True)
    dropout = fields.probability("dropout", default=0.1)
    dense = Dense(gated=False, activation="gelu" if gelu else "relu", bias=True)
    block = Block(
        Attention(
            grouped=False,
            bias=True,
            output_bias=True,
            rotary=False,
            dropout=fields.probability("attention_dropout", default=0.1),
        ),
        dense,
        placement="post",
        norm="layer",
        residual_dropout=dropout,
    )
    layout = EncoderLayout(
        (block,),
        tied=fields.flag("tie_word_embeddings", default=True),
        norm="layer",
        head_activation=dense.activation,
        types=("n_langs",) if with_languages else (),
        dropout=dropout,
        embed=xlm_embeddings,
        head=head_with_other_bias,
    )
    return layout, sizes


def xlm_embeddings(tape: Tape, layout: EncoderLayout) -> tuple[Tensor, Weight]:
    """Words, positions and, where there are several, languages, under one norm."""
    x, table = embedding(tape, "embeddings", VOCABULARY, HIDDEN)
    x = position_embedding(tape, "position_embeddings", POSITIONS, HIDDEN, x)
    for rows in layout.types:
        with tape.module("lang_embeddings", "word_embedding"):
            languages = tape.weight("weight", named(rows) * HIDDEN)
            x = tape.record("add", (x,), tape.stream(x.elements, x.format), weights=(languages,), passes=True)
    return tape.dropout(norm(tape, layout.norm, "layer_norm_emb", x, HIDDEN), layout.dropout), table


XLNET = encoder_family(
    "xlnet",
    "XLNetLMHeadModel",
    read_xlnet,
    (("lm_head", "lm_loss"),),
    objective="permutation language modelling",
)
XLM = encoder_family("xlm", "XLMWithLMHeadModel", read_xlm, XLM_MODULES)
FLAUBERT = encoder_family("flaubert", "FlaubertWithLMHeadModel", read_flaubert, XLM_MODULES)
