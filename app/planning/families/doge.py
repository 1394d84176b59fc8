"""Doge, dense: a mask that the values decide on, and a learned weight per channel on each residual.

Source: transformers modeling_doge.py.
"""

from dataclasses import dataclass, replace

from app.planning.families.decoder import (
    HIDDEN,
    Block,
    DecoderLayout,
    feed_forward_of,
    forward,
    heads_of,
    projections,
)
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.llama_like import biased_attention, gated
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.ledger import Tape, Tensor
from app.planning.modules import attention, norm

DOGE_DEFAULTS = Defaults(32768, 1024, 32, 8, 2048, intermediate_size=2048)


@dataclass(frozen=True, slots=True)
class DogeLayer:
    """A layer of Doge; `block` says what its attention and MLP have."""

    block: Block

    @property
    def repeats(self) -> str:
        """The name of the size that counts it."""
        return self.block.repeats

    @property
    def suffix(self) -> str:
        """No size of it differs between layers."""
        return self.block.suffix

    def record(self, tape: Tape, x: Tensor) -> Tensor:
        """Writes one layer down and returns the residual stream after it."""
        out = self._attend(tape, norm(tape, "rms", "input_layernorm", x, HIDDEN))
        x = self._add(tape, "input_residual", x, out)
        out = feed_forward_of(tape, norm(tape, "rms", "post_attention_layernorm", x, HIDDEN), self.block)
        return self._add(tape, "post_attention_residual", x, out)

    def _add(self, tape: Tape, name: str, x: Tensor, out: Tensor) -> Tensor:
        weight = (tape.weight(name, HIDDEN),)
        weighed = tape.record(name, (x,), tape.stream(x.elements, x.format), saves=(x,), weights=weight)
        return tape.add(weighed, tape.dropout(out, self.block.residual_dropout))

    def _attend(self, tape: Tape, x: Tensor) -> Tensor:
        layout, heads = self.block.attention, heads_of(self.block)
        with tape.module("self_attn", "attention"):
            query, key, value = projections(tape, x, self.block, heads)
            with tape.module("dt_proj", "attention"):
                steps = tape.linear(value, heads.key_value * heads.size, heads.key_value, bias=layout.bias)
            steps = tape.pointwise("softplus", steps)
            decay = (tape.weight("A", heads.key_value),)
            steps = tape.record(
                "mul", (steps,), tape.tensor(steps.elements, steps.format), saves=(steps,), weights=decay
            )
            tape.pointwise("exp", steps, saves_output=True)
            mixed = attention(tape, query, key, value, heads, dropout=layout.dropout, softmax_in_fp32=True)
            with tape.module("o_proj", "attention"):
                return tape.linear(mixed, heads.query * heads.size, HIDDEN, bias=layout.output_bias, split="row")


def read_doge(fields: Fields) -> Shapes:
    """Doge without experts."""
    sizes = decoder_sizes(fields, DOGE_DEFAULTS)
    fields.must_be("is_moe", False, because="its experts are rows of two embeddings")
    fields.ignore("num_experts", "num_experts_per_tok", "norm_topk_prob", "output_router_logits")
    fields.ignore("router_aux_loss_coef", "keep_window_size", "dynamic_mask_ratio")
    attention = replace(biased_attention(fields, sizes), query_key_norm="head")
    dense = gated(fields, bias=fields.flag("mlp_bias", default=False))
    dropout = fields.probability("hidden_dropout", default=0.0)
    layout = DecoderLayout(
        (DogeLayer(Block(attention, dense, residual_dropout=dropout)),),
        tied=fields.flag("tie_word_embeddings", default=False),
    )
    return Shapes(layout, sizes, sizes["max_position_embeddings"])


DOGE = Family("doge", "DogeForCausalLM", read_doge, forward)
