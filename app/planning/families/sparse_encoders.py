"""BERT with attention that costs less than all pairs: Longformer, BigBird, Nyströmformer, YOSO, MRA and FNet.

Source: the modeling files of the same names in transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from app.planning.families.bert import bert_parts
from app.planning.families.decoder import HIDDEN, Block, feed_forward_of, heads_of, projections
from app.planning.families.encoder import (
    BERT_LAYER,
    BERT_MODULES,
    ROBERTA_MODULES,
    EncoderLayout,
    bert_block,
    bert_layout,
    encoder_family,
    encoder_sizes,
    positions_after_padding,
    post_norm_layer,
    shapes_of,
    without_cross_attention,
    word_embeddings,
)
from app.planning.families.family import Shapes
from app.planning.families.fields import Fields
from app.planning.families.read import Defaults
from app.planning.families.windows import attention_window
from app.planning.ledger import SEQUENCE, Tape, Tensor, Weight
from app.planning.modules import attention, idle_linear
from app.planning.sizes import Size, named, smallest

HEADS = named("num_attention_heads")


@dataclass(frozen=True, slots=True)
class SparseLayer:
    """BERT's layer whose tokens see `seen` keys, with more parts in its attention."""

    seen: Size
    beside: Callable[[Tape], None] | None = None
    """Records what the attention holds beside its projections."""

    def __call__(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        """Records it on the tape."""
        return post_norm_layer(
            tape,
            x,
            block,
            lambda given: self._attend(tape, given, block),
            lambda given: feed_forward_of(tape, given, block),
        )

    def _attend(self, tape: Tape, x: Tensor, block: Block) -> Tensor:
        heads = heads_of(block)
        with tape.module("self_attn", "attention"):
            query, key, value = projections(tape, x, block, heads)
            if self.beside is not None:
                self.beside(tape)
            mixed = attention(
                tape,
                query,
                key,
                value,
                heads,
                dropout=block.attention.dropout,
                softmax_in_fp32=False,
                source=smallest(SEQUENCE, self.seen),
            )
            with tape.module("o_proj", "attention"):
                return tape.linear(mixed, HIDDEN, HIDDEN, bias=block.attention.output_bias, split="row")


def read_longformer(fields: Fields) -> Shapes:
    """Longformer: attention inside a window, and a second set of matrices for global tokens."""
    layout, sizes = bert_parts(fields, 30522)
    sizes["attention_window"] = attention_window(fields, sizes["num_hidden_layers"])
    fields.ignore("onnx_export", "attention_mode", "attention_dilation", "autoregressive", "ignore_attention_mask")
    layout = replace(layout, layer=SparseLayer(named("attention_window") + 1, global_projections))
    return shapes_of(layout, sizes, positions_after_padding(fields, sizes))


def global_projections(tape: Tape) -> None:
    """The matrices for global tokens, which rest while there are none."""
    for name in ("query_global", "key_global", "value_global"):
        with tape.module(f"self.{name}", "attention"):
            idle_linear(tape, HIDDEN, HIDDEN)


def read_big_bird(fields: Fields) -> Shapes:
    """BigBird: blocks of tokens see their neighbours, the ends and random others."""
    layout, sizes = bert_parts(fields, 50358, positions=4096, hidden_act="gelu_new")
    fields.ignore("rescale_embeddings", "sep_token_id")
    sizes["block_size"] = fields.count("block_size", 64)
    sizes["seen_blocks"] = 5 + fields.whole("num_random_blocks", 3)
    kind = fields.one_of("attention_type", ("block_sparse", "original_full"), default="block_sparse")
    seen = SEQUENCE if kind == "original_full" else named("block_size") * named("seen_blocks")
    block = layout.blocks[0]
    block = replace(block, attention=replace(block.attention, bias=fields.flag("use_bias", default=True)))
    return shapes_of(replace(layout, blocks=(block,), pooler=True, layer=SparseLayer(seen)), sizes)


def read_nystromformer(fields: Fields) -> Shapes:
    """Nyströmformer: attention through landmarks, and a convolution over each head."""
    layout, sizes = bert_parts(fields, 30000, positions=510, hidden_act="gelu_new")
    fields.ignore("segment_means_seq_len", "inv_coeff_init_option", "inv_init_coeff_option")
    sizes["num_landmarks"] = fields.count("num_landmarks", 64)
    kernel = fields.count("conv_kernel_size", 65, most=4096)
    seen = named("num_landmarks") * 2
    return _two_more_positions(layout, sizes, "conv_kernel_size", kernel, seen)


def read_yoso(fields: Fields) -> Shapes:
    """YOSO: attention by hashing, whose expectation is what training computes."""
    layout, sizes = bert_parts(fields, 50265, positions=4096, types=1)
    fields.ignore("use_expectation", "hash_code_len", "num_hash", "use_fast_hash", "lsh_backward")
    window = 0 if fields.get("conv_window") is None else fields.count("conv_window", None, most=4096)
    return _two_more_positions(layout, sizes, "conv_window", window, SEQUENCE)


def read_mra(fields: Fields) -> Shapes:
    """MRA: attention to the blocks that a coarse one finds."""
    layout, sizes = bert_parts(fields, 50265, types=1)
    fields.ignore("approx_mode", "initial_prior_first_n_blocks", "initial_prior_diagonal_n_blocks")
    sizes["block_per_row"] = fields.count("block_per_row", 4)
    return _two_more_positions(layout, sizes, "", 0, named("block_per_row") * 32)


def _two_more_positions(layout: EncoderLayout, sizes: dict[str, int], name: str, kernel: int, seen: Size) -> Shapes:
    sizes["position_rows"] += 2
    if kernel:
        sizes[name] = kernel
    layer = SparseLayer(seen, HeadConvolution(name) if kernel else None)
    return shapes_of(replace(layout, layer=layer), sizes)


@dataclass(frozen=True, slots=True)
class HeadConvolution:
    """A convolution along the values of each head; `kernel` is the size that names its length."""

    kernel: str

    def __call__(self, tape: Tape) -> None:
        """Records it on the tape."""
        length = named(self.kernel)
        with tape.module("self.conv", "attention"):
            weight = tape.weight("weight", HEADS * length)
            values = tape.tensor(tape.tokens * HIDDEN, tape.compute)
            tape.record(
                "conv2d",
                (values,),
                values,
                saves=(values,),
                weights=(weight,),
                multiply_adds=tape.tokens * HIDDEN * length,
            )


def read_fnet(fields: Fields) -> Shapes:
    """FNet: a Fourier transform in place of attention."""
    sizes = encoder_sizes(fields, Defaults(32000, 768, 12, 1, 512, intermediate_size=3072))
    without_cross_attention(fields)
    fields.ignore("use_tpu_fourier_optimizations", "tpu_short_seq_length", "attention_probs_dropout_prob")
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1}
    layout = bert_layout(fields, sizes, bert_block(fields, hidden_act="gelu_new"), types=4)
    layout = replace(layout, second_bias=True, pooler=True, embed=projected_embeddings, layer=fourier_layer)
    return shapes_of(layout, sizes)


def projected_embeddings(tape: Tape, layout: EncoderLayout) -> tuple[Tensor, Weight]:
    """BERT's embeddings, with a dense layer behind them."""
    x, table = word_embeddings(tape, layout)
    with tape.module("fourier_projection", "other"):
        return tape.linear(x, HIDDEN, HIDDEN, bias=True), table


def fourier_layer(tape: Tape, x: Tensor, block: Block) -> Tensor:
    """A layer that mixes tokens by a Fourier transform, which has no parameters and keeps nothing."""
    quiet = replace(block, residual_dropout=0.0)
    return post_norm_layer(
        tape,
        x,
        quiet,
        lambda given: tape.scale(given, "fourier"),
        lambda given: tape.dropout(feed_forward_of(tape, given, block), block.residual_dropout),
    )


LONGFORMER = encoder_family("longformer", "LongformerForMaskedLM", read_longformer, ROBERTA_MODULES)
BIG_BIRD = encoder_family(
    "big_bird", "BigBirdForMaskedLM", read_big_bird, (*BERT_LAYER[:-1], ("pooler", "pooler"), *BERT_MODULES[-2:])
)
NYSTROMFORMER = encoder_family("nystromformer", "NystromformerForMaskedLM", read_nystromformer, BERT_MODULES)
YOSO = encoder_family("yoso", "YosoForMaskedLM", read_yoso, BERT_MODULES)
MRA = encoder_family("mra", "MraForMaskedLM", read_mra, BERT_MODULES)
FNET = encoder_family("fnet", "FNetForMaskedLM", read_fnet, (*BERT_MODULES, ("fourier_projection", "projection")))
