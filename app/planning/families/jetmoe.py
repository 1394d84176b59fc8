"""JetMoE: experts in attention too. Each chosen expert makes its own queries and its own output; keys and values are
shared by all.

Source: transformers modeling_jetmoe.py.
"""

from dataclasses import dataclass

from app.planning.families.decoder import HIDDEN, forward
from app.planning.families.expert_layers import experts_of
from app.planning.families.family import Family, Shapes
from app.planning.families.fields import Fields
from app.planning.families.hybrid import MixedLayer, mixed_decoder, named_field
from app.planning.families.read import Defaults, decoder_sizes
from app.planning.ledger import Tape, Tensor
from app.planning.modules import (
    Activation,
    Experts,
    Heads,
    attention,
    expert_matrices,
    mixture_of_experts,
    rotary,
    softmax,
)
from app.planning.sizes import named

DEFAULTS = Defaults(32000, 2048, 12, 16, 4096, 5632, head_dim=128)
EXPERTS = Experts(named("num_experts"), named("num_experts_per_tok"), named("moe_intermediate_size"))


@dataclass(frozen=True, slots=True)
class RoutedAttention:
    """Attention whose query and output matrices belong to experts."""

    dropout: float
    grouped: bool

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer."""
        size, key_value = named("head_dim"), named("num_key_value_heads")
        width, routed = key_value * size, tape.tokens * EXPERTS.per_token
        heads = Heads(named("num_attention_heads"), key_value, size, size, self.grouped)
        with tape.module("self_attention", "attention"):
            with tape.module("router", "router"):
                chosen = softmax(tape, tape.linear(x, HIDDEN, EXPERTS.count), in_fp32=True)
            with tape.module("experts", "routed_experts"):
                given = tape.record("gather", (x,), tape.tensor(routed * HIDDEN, tape.compute))
                query = expert_matrices(tape, "input_linear", given, EXPERTS, HIDDEN, width, routed)
            with tape.module("kv_proj", "attention"):
                both = tape.linear(x, HIDDEN, width * 2, split="column")
            key, value = (
                tape.record("split", (both,), tape.tensor(tape.tokens * width, both.format)) for _ in range(2)
            )
            query, key = rotary(tape, query), rotary(tape, key)
            mixed = attention(tape, query, key, value, heads, dropout=self.dropout, softmax_in_fp32=True)
            with tape.module("experts", "routed_experts"):
                out = expert_matrices(tape, "output_linear", mixed, EXPERTS, width, HIDDEN, routed)
            return combined(tape, out, chosen)


@dataclass(frozen=True, slots=True)
class RoutedMlp:
    """Experts with one bias behind their sum."""

    activation: Activation

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer."""
        with tape.module("mlp", "mlp"):
            out = mixture_of_experts(tape, x, HIDDEN, EXPERTS, kind=self.activation, router_is_linear=True)
            bias = tape.weight("bias", HIDDEN)
            return tape.record("bias", (out,), tape.tensor(out.elements, out.format), weights=(bias,), passes=True)


def combined(tape: Tape, out: Tensor, chosen: Tensor) -> Tensor:
    """The sum of what the chosen experts give, and a bias."""
    bias = tape.weight("bias", HIDDEN)
    total = tape.tensor(tape.tokens * HIDDEN, out.format)
    return tape.record("combine", (out, chosen), total, saves=(out, chosen), weights=(bias,))


def read_jetmoe(fields: Fields) -> Shapes:
    """JetMoE: as many query heads as key/value heads, for each chosen expert."""
    names = {"head_dim": named_field(fields, ("kv_channels", "head_dim"))}
    if fields.get("num_attention_heads") is None:
        names["num_attention_heads"] = "num_key_value_heads"
    sizes = decoder_sizes(fields, DEFAULTS, names)
    experts_of(fields, sizes, count="num_local_experts", counts=8, per_token=2, inner=None)
    sizes["num_attention_heads"] = sizes["num_key_value_heads"] * sizes["num_experts_per_tok"]
    fields.ignore("aux_loss_coef", "glu", "moe_num_experts", "moe_top_k", "n_head", "n_layer")
    dropout = fields.probability("attention_dropout", default=0.0)
    layer = MixedLayer(
        RoutedAttention(dropout, grouped=sizes["num_experts_per_tok"] > 1),
        RoutedMlp(fields.activation("activation_function", default="silu")),
    )
    return mixed_decoder(fields, sizes, [("routed",)] * sizes["num_hidden_layers"], lambda _: layer, tied=True)


JETMOE = Family("jetmoe", "JetMoeForCausalLM", read_jetmoe, forward, (("router", "router.layer"),))
