"""A mixture of experts as one part of a layer: routed experts, what every token takes beside them, and their sum.

Sizes: `num_experts`, `num_experts_per_tok`, `moe_intermediate_size`; with a shared MLP
`shared_expert_intermediate_size`; with a latent `moe_latent_size`; with experts that do nothing `num_idle_experts`.
"""

from dataclasses import dataclass

from app.planning.ledger import Component, Tape, Tensor
from app.planning.modules import Activation, Experts, feed_forward, mixture_of_experts, norm
from app.planning.sizes import Size, named

HIDDEN = named("hidden_size")


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """Routed experts of width `moe_intermediate_size`: `num_experts`, of which a token takes `num_experts_per_tok`."""

    gated: bool = True
    activation: Activation = "silu"
    expert_bias: bool = False
    router_bias: bool = False
    router_is_linear: bool = False
    """Whether the class's router is an `nn.Linear`, which an adapter can be put beside."""
    router_in_fp32: bool = False
    """Whether the class's router multiplies in FP32 whatever the weights' format (DeepSeek)."""
    scores_in_fp32: bool = False
    """Whether the experts' outputs are weighed in FP32, and not in the format of the logits."""
    jitters: int = 0
    """How many times the class multiplies what the experts read by noise (Phi MoE)."""
    clamped: bool = False
    """gpt-oss's gate, which clamps both halves."""
    shared: bool = False
    """A dense MLP of width `shared_expert_intermediate_size` that every token takes."""
    shared_gate: bool = False
    """A gate of one logit on the shared MLP."""
    shared_bias: bool = False
    joint_shared: bool = False
    """One matrix for gate and up of the shared MLP."""
    correction: Component | None = None
    """What a bias on the choice of experts counts for, where the class has it as a parameter, without a gradient."""
    latent: bool = False
    """Routed experts work on a narrow latent between two projections (Nemotron 3)."""
    idle: bool = False
    """Some experts do nothing (LongCat)."""
    output_norm: bool = False
    """A norm of the sum (A.X K1)."""


def record_mixture(tape: Tape, x: Tensor, layout: MixtureOfExperts) -> Tensor:
    """Records routed and shared experts."""
    with tape.module("mlp", "routed_experts"):
        for _ in range(layout.jitters):
            noise = tape.tensor(x.elements, x.format, differentiable=False)
            x = tape.record("jitter", (x,), tape.tensor(x.elements, x.format), saves=(noise,))
        out = _routed(tape, x, layout)
        if layout.shared:
            out = tape.add(out, _shared(tape, x, layout))
        return norm(tape, "rms", "post_mlp_layernorm", out, HIDDEN) if layout.output_norm else out


def _routed(tape: Tape, x: Tensor, layout: MixtureOfExperts) -> Tensor:
    idle = named("num_idle_experts") if layout.idle else Size({})
    experts = Experts(named("num_experts"), named("num_experts_per_tok"), named("moe_intermediate_size"), idle)
    latent, narrow = named("moe_latent_size"), None
    if layout.latent:
        with tape.module("fc1_latent_proj", "mlp"):
            narrow = (tape.linear(x, HIDDEN, latent, bias=layout.shared_bias), latent)
    out = mixture_of_experts(
        tape,
        x,
        HIDDEN,
        experts,
        gated=layout.gated,
        kind=layout.activation,
        expert_bias=layout.expert_bias,
        router_bias=layout.router_bias,
        router_is_linear=layout.router_is_linear,
        router_in_fp32=layout.router_in_fp32,
        scores_in_fp32=layout.scores_in_fp32,
        clamped=layout.clamped,
        narrow=narrow,
    )
    if layout.correction is not None:
        with tape.module("correction", layout.correction):
            bias = tape.weight("bias", experts.count, trainable=False)
            out = tape.record("correction", (out,), out, weights=(bias,), passes=True)
    if layout.latent:
        with tape.module("fc2_latent_proj", "mlp"):
            out = tape.linear(out, latent, HIDDEN, bias=layout.shared_bias)
    return out


def _shared(tape: Tape, x: Tensor, layout: MixtureOfExperts) -> Tensor:
    with tape.module("shared_expert", "shared_experts"):
        out = feed_forward(
            tape,
            x,
            HIDDEN,
            named("shared_expert_intermediate_size"),
            gated=layout.gated,
            kind=layout.activation,
            bias=layout.shared_bias,
            joint=layout.joint_shared,
        )
    if layout.shared_gate:
        with tape.module("shared_expert_gate", "router"):
            gate = tape.pointwise("sigmoid", tape.linear(x, HIDDEN, Size.of(1)), saves_output=True)
        out = tape.record("mul", (gate, out), tape.tensor(out.elements, out.format), saves=(gate, out))
    return out
