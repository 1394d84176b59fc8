"""Layers that mix tokens by a state of fixed size instead of attention: gated delta rules (Qwen3-Next, OLMo Hybrid,
Kimi), lightning attention (MiniMax) and gated short convolutions (LFM2).

Each is recorded as its fused kernel runs it: projections, a short convolution, the rule itself, which keeps its inputs
and makes its states again in backward, a gated norm, and the projection back. Sizes: `linear_num_key_heads`,
`linear_num_value_heads`, `linear_key_head_dim`, `linear_value_head_dim`, `linear_conv_kernel_dim`.
"""

from dataclasses import dataclass

from app.planning.families.decoder import HIDDEN
from app.planning.families.state_space import short_convolution
from app.planning.ledger import Component, Tape, Tensor
from app.planning.modules import norm
from app.planning.sizes import Size, named

KEY_HEADS = named("linear_num_key_heads")
VALUE_HEADS = named("linear_num_value_heads")
KEY_HEAD = named("linear_key_head_dim")
VALUE_HEAD = named("linear_value_head_dim")
KERNEL = named("linear_conv_kernel_dim")
KEYS = KEY_HEADS * KEY_HEAD
VALUES = VALUE_HEADS * VALUE_HEAD

LINEAR: Component = "ssm_or_linear_attention"

QWEN3_NEXT_PROJECTIONS = (("in_proj_qkvz", KEYS * 2 + VALUES * 2), ("in_proj_ba", VALUE_HEADS * 2))
QWEN3_5_PROJECTIONS = (
    ("in_proj_qkv", KEYS * 2 + VALUES),
    ("in_proj_z", VALUES),
    ("in_proj_b", VALUE_HEADS),
    ("in_proj_a", VALUE_HEADS),
)
OLMO_PROJECTIONS = (
    ("q_proj", KEYS),
    ("k_proj", KEYS),
    ("v_proj", VALUES),
    ("g_proj", VALUES),
    ("b_proj", VALUE_HEADS),
    ("a_proj", VALUE_HEADS),
)


@dataclass(frozen=True, slots=True)
class GatedDelta:
    """A gated delta rule with one decay per head. `projections` are the linear layers that read the input."""

    projections: tuple[tuple[str, Size], ...]
    output: str = "out_proj"

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer."""
        with tape.module("linear_attn", LINEAR):
            made = [_linear(tape, name, x, HIDDEN, width) for name, width in self.projections]
            mixed = short_convolution(tape, made[0], KEYS * 2 + VALUES, KERNEL, bias=False)
            owned = (tape.weight("dt_bias", VALUE_HEADS), tape.weight("A_log", VALUE_HEADS))
            out = tape.record(
                "gated_delta_rule",
                (mixed, *made[1:]),
                tape.tensor(tape.tokens * VALUES, mixed.format),
                saves=(mixed, *made[1:]),
                weights=owned,
                multiply_adds=tape.tokens * VALUES * KEY_HEAD * 3,
            )
            out = _gated_norm(tape, "norm", out, made[1], VALUE_HEAD, VALUE_HEADS)
            return _linear(tape, self.output, out, VALUES, HIDDEN)


@dataclass(frozen=True, slots=True)
class KimiDelta:
    """Kimi's delta rule, with one decay per channel; the decay and the gate of the output may go through a narrow
    latent. Queries, keys and values have as many heads of one size.
    """

    narrow: bool

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer, under the names that attention has in the same model."""
        with tape.module("self_attn", "attention"):
            query = _linear(tape, "q_proj", x, HIDDEN, VALUES)
            made = [_linear(tape, name, x, HIDDEN, VALUES) for name in ("k_proj", "v_proj")]
            mixed = short_convolution(tape, query, VALUES * 3, KERNEL, bias=False)
            with tape.module("forget_gate", "attention"):
                decay = self._projected(tape, "f", x)
                biases = tape.weight("dt_bias", VALUES)
            with tape.module("forget_gate", LINEAR):
                rates = tape.weight("A_log", VALUE_HEADS)
            strength = _linear(tape, "b_proj", x, HIDDEN, VALUE_HEADS)
            gate = self._projected(tape, "g", x)
            out = tape.record(
                "delta_rule",
                (mixed, *made, decay, strength),
                tape.tensor(tape.tokens * VALUES, mixed.format),
                saves=(mixed, decay, strength),
                weights=(biases, rates),
                multiply_adds=tape.tokens * VALUES * VALUE_HEAD * 3,
            )
            out = _gated_norm(tape, "o_norm", out, gate, VALUE_HEAD, VALUE_HEADS)
            return _linear(tape, "o_proj", out, VALUES, HIDDEN)

    def _projected(self, tape: Tape, name: str, x: Tensor) -> Tensor:
        if not self.narrow:
            return _linear(tape, f"{name}_proj", x, HIDDEN, VALUES)
        return _linear(
            tape, f"{name}_b_proj", _linear(tape, f"{name}_a_proj", x, HIDDEN, VALUE_HEAD), VALUE_HEAD, VALUES
        )


@dataclass(frozen=True, slots=True)
class Lightning:
    """Lightning attention: linear attention with one fixed decay per head, a norm and a gate."""

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer."""
        heads, size = named("num_attention_heads"), named("head_dim")
        width = heads * size
        with tape.module("self_attn", "attention"):
            joint = tape.pointwise("silu", _linear(tape, "qkv_proj", x, HIDDEN, width * 3))
            output = tape.tensor(tape.tokens * width, joint.format)
            adds = tape.tokens * width * size * 2
            out = tape.record("lightning_attention", (joint,), output, saves=(joint,), multiply_adds=adds)
            out = norm(tape, "rms", "norm", out, width)
            gate = tape.pointwise("sigmoid", _linear(tape, "output_gate", x, HIDDEN, width), saves_output=True)
            return _linear(tape, "out_proj", tape.multiply(out, gate), width, HIDDEN)


@dataclass(frozen=True, slots=True)
class ShortConvolution:
    """A convolution over a few tokens between two gates."""

    bias: bool

    def __call__(self, tape: Tape, x: Tensor) -> Tensor:
        """Records the layer."""
        with tape.module("conv", LINEAR):
            joint = _linear(tape, "in_proj", x, HIDDEN, HIDDEN * 3, bias=self.bias)
            before, after, value = (
                tape.record("split", (joint,), tape.tensor(tape.tokens * HIDDEN, joint.format)) for _ in range(3)
            )
            mixed = short_convolution(tape, tape.multiply(before, value), HIDDEN, KERNEL, bias=self.bias, name="conv")
            return _linear(tape, "out_proj", tape.multiply(after, mixed), HIDDEN, HIDDEN, bias=self.bias)


def _linear(tape: Tape, name: str, x: Tensor, into: Size, out: Size, *, bias: bool = False) -> Tensor:
    with tape.module(name, tape.component):
        return tape.linear(x, into, out, bias=bias)


def _gated_norm(tape: Tape, name: str, x: Tensor, gate: Tensor, width: Size, heads: Size) -> Tensor:
    """An RMSNorm of each head, times an activation of the gate."""
    normed = norm(tape, "rms", name, x, width, tape.tokens * heads)
    return tape.multiply(normed, tape.pointwise("gate", gate))
