"""Layers in the words of `nn.Module`s, written as the operators that each framework runs for them.

Hugging Face code runs operator by operator (`Kernels.fused` false); Megatron fuses norms, rotary embedding and
activation functions, which keep less for backward. Sizes are named as in a `config.json`.
"""

from dataclasses import dataclass, field
from typing import Literal

from app.planning.ledger import BATCH, Component, Linear, Tape, Tensor, Weight, promoted
from app.planning.sizes import Size, ceil_div

Norm = Literal["rms", "rms-no-weight", "layer", "layer-no-bias", "layer-no-weight", "layer-fp32", "none"]
"""RMSNorm, with a weight or without parameters; LayerNorm with weight and bias, with weight only, or without any;
LayerNorm without parameters that the model's own code runs in FP32 (OLMo); no norm at all.
"""

Activation = Literal["silu", "gelu", "gelu-tanh", "gelu-python", "relu", "relu2", "tanh", "xielu"]
"""`gelu-tanh` is one kernel; `gelu-python` (`gelu_new`, `gelu_fast`) is written in Python, step by step."""

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-python",
    "gelu_fast": "gelu-python",
    "gelu_python": "gelu-python",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
    "xielu": "xielu",
}
"""Hugging Face's names of activation functions."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape of an attention layer: query and key/value heads, the size of a query or key head, that of a value head."""

    query: Size
    key_value: Size
    size: Size
    value_size: Size
    grouped: bool
    """Whether several query heads share one key/value head."""


def embedding(tape: Tape, name: str, rows: Size, width: Size) -> tuple[Tensor, Weight]:
    """`nn.Embedding(rows, width)` of the token ids; keeps the ids."""
    with tape.module(name, "word_embedding"):
        weight = tape.weight("weight", rows * width, split="vocabulary")
        return embed(tape, weight, width), weight


def embed(tape: Tape, table: Weight, width: Size, *, tied: bool = False) -> Tensor:
    """A look-up of the token ids in a table, which another operation owns when `tied`."""
    ids = tape.tensor(tape.tokens, "int64", differentiable=False)
    output = tape.stream(tape.tokens * width, tape.parameters)
    owned, shared = ((), (table,)) if tied else ((table,), ())
    return tape.record("embedding", (), output, saves=(ids,), weights=owned, tied=shared)


def position_embedding(tape: Tape, name: str, rows: Size, width: Size, x: Tensor, *, trainable: bool = True) -> Tensor:
    """A table of positions, one row per position, added to every sequence; learned unless it is fixed."""
    with tape.module(name, "position_embedding"):
        weight = tape.weight("weight", rows * width, trainable=trainable)
        positions = tape.tensor(tape.sequence, "int64", differentiable=False)
        output = tape.stream(x.elements, x.format)
        return tape.record("add", (x,), output, saves=(positions,), weights=(weight,), passes=True)


def type_embedding(tape: Tape, name: str, rows: Size, width: Size, x: Tensor) -> Tensor:
    """A table of segment types, added to every token."""
    with tape.module(name, "type_embedding"):
        weight = tape.weight("weight", rows * width)
        return tape.record("add", (x,), tape.stream(x.elements, x.format), weights=(weight,), passes=True)


def rotary_table(tape: Tape, head_size: Size) -> None:
    """Cosines and sines of all positions, made once and kept for every layer."""
    with tape.module("rotary_emb", "attention"):
        table = tape.tensor(tape.sequence * head_size, tape.parameters, differentiable=False)
        sines = tape.tensor(tape.sequence * head_size, tape.parameters, differentiable=False)
        tape.record("cos_sin", (), table, saves=(table, sines))


def norm(tape: Tape, kind: Norm, name: str, x: Tensor, width: Size, rows: Size | None = None) -> Tensor:
    """A norm over `width`, for `rows` vectors: one per token unless said otherwise."""
    rows = tape.tokens if rows is None else rows
    with tape.module(name, "norm"):
        if kind == "none":
            return x
        if kind in ("rms", "rms-no-weight"):
            return rms_norm(tape, x, width, rows, weighted=kind == "rms")
        return layer_norm(tape, kind, x, width, rows)


def rms_norm(tape: Tape, x: Tensor, width: Size, rows: Size, *, weighted: bool = True) -> Tensor:
    """RMSNorm. Fused, it keeps its input; unfused, an FP32 copy and the normalized tensor as well."""
    weights = (tape.weight("weight", width),) if weighted else ()
    inverse = tape.tensor(rows, "fp32")
    if tape.kernels.fused:
        return tape.record("rms_norm", (x,), tape.tensor(x.elements, x.format), saves=(x, inverse), weights=weights)
    wide = tape.to(x, "fp32")
    tape.record("rsqrt_mean_square", (wide,), inverse, saves=(wide, inverse))
    narrow = tape.to(tape.multiply(wide, inverse), x.format)
    if not weighted:
        return narrow
    output = tape.tensor(x.elements, promoted(tape.parameters, narrow.format))
    return tape.record("weight", (narrow,), output, saves=(narrow,), weights=weights)


def layer_norm(tape: Tape, kind: Norm, x: Tensor, width: Size, rows: Size) -> Tensor:
    """`nn.LayerNorm`: one kernel that keeps its input and two FP32 statistics a row; autocast runs it in FP32."""
    names = {"layer": ("weight", "bias"), "layer-no-bias": ("weight",)}.get(kind, ())
    weights = tuple(tape.weight(name, width) for name in names)
    given = tape.to(x, "fp32") if tape.autocast or kind == "layer-fp32" else x
    statistics = tape.tensor(rows * 2, "fp32", differentiable=False)
    output = tape.tensor(given.elements, given.format)
    normed = tape.record("layer_norm", (given,), output, saves=(given, statistics), weights=weights)
    return tape.to(normed, x.format) if kind == "layer-fp32" else normed


def rotary(tape: Tape, x: Tensor) -> Tensor:
    """Rotary embedding of queries or keys: x·cos + rotate_half(x)·sin. The tables are kept once for all layers."""
    format = x.format if tape.kernels.fused else promoted(tape.parameters, x.format)
    return tape.record("rotary", (x,), tape.tensor(x.elements, format))


def attention(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: Heads,
    *,
    dropout: float,
    softmax_in_fp32: bool,
    source: Size | None = None,
) -> Tensor:
    """Scaled dot-product attention; the result is laid out for the output projection. `source` is the keys' length.

    Flash attention keeps query, key, value, output and one FP32 log-sum-exp per token and head. PyTorch's `sdpa` picks
    it for 16-bit inputs; in FP32 the memory-efficient kernel, or with grouped heads the plain one.
    """
    query, key, value = (tape.to(x, tape.compute) for x in (query, key, value))
    length = tape.sequence if source is None else source
    width = tape.tokens * heads.query * heads.value_size
    scores = tape.tokens * heads.query * length
    plain = tape.kernels.attention == "eager" or (tape.compute == "fp32" and heads.grouped)
    with tape.attention_core():
        if not plain:
            log_sum_exp = tape.tensor(tape.tokens * heads.query, "fp32", differentiable=False)
            output = tape.tensor(width, tape.compute)
            return tape.record(
                "scaled_dot_product_attention",
                (query, key, value),
                output,
                saves=(query, key, value, output, log_sum_exp),
                multiply_adds=scores * (heads.size + heads.value_size),
            )
        if heads.grouped or query is key:
            keys = BATCH * length * heads.query
            query = tape.copy(query, tape.tokens * heads.query * heads.size) if query is key else query
            key, value = tape.copy(key, keys * heads.size), tape.copy(value, keys * heads.value_size)
        if tape.kernels.attention == "sdpa":
            query, key = tape.scale(query), tape.scale(key)
        weights = tape.scale(tape.matmul(query, key, scores, scores * heads.size))
        weights = softmax(tape, weights, in_fp32=softmax_in_fp32)
        weights = tape.dropout(tape.to(weights, tape.compute), dropout)
        return tape.copy(tape.matmul(weights, value, width, scores * heads.value_size))


def softmax(tape: Tape, x: Tensor, *, in_fp32: bool) -> Tensor:
    """Softmax keeps its output; autocast, or the model's own code, computes it in FP32."""
    format = "fp32" if in_fp32 or tape.autocast else x.format
    return tape.pointwise("softmax", x, saves_output=True, format=format)


def activation(tape: Tape, kind: Activation, x: Tensor) -> Tensor:
    """An activation function: one kernel that keeps its input or output, or several steps where it is Python."""
    if kind in ("relu", "tanh"):
        return tape.pointwise(kind, x, saves_output=True)
    if kind == "xielu":
        with tape.module("act_fn", tape.component):
            slopes = tuple(tape.weight(name, Size.of(1)) for name in ("alpha_p", "alpha_n"))
            return tape.record(kind, (x,), tape.tensor(x.elements, x.format), saves=(x,), weights=slopes)
    if tape.kernels.fused or kind not in ("gelu-python", "relu2"):
        return tape.pointwise(kind, x)
    if kind == "relu2":
        return tape.pointwise("square", tape.pointwise("relu", x, saves_output=True))
    base = tape.to(x, "fp32") if tape.autocast else x
    cube = tape.scale(tape.pointwise("pow", base))
    inner = tape.scale(tape.add(x, cube))
    tanh = tape.scale(tape.pointwise("tanh", inner, saves_output=True), name="add_one")
    return tape.multiply(tape.scale(x), tanh)


def feed_forward(
    tape: Tape,
    x: Tensor,
    width: Size,
    inner: Size,
    *,
    gated: bool,
    kind: Activation,
    bias: bool,
    joint: bool = False,
    tokens: Size | None = None,
    inner_norm: Norm = "none",
) -> Tensor:
    """down(act(gate(x)) · up(x)), or down(act(up(x))) without a gate, in the module being recorded.

    `joint` is one matrix for gate and up, `inner_norm` stands before the matrix down. Fused, only the joint output and
    the product are kept.
    """
    rows = tape.tokens if tokens is None else tokens
    if gated and (tape.kernels.fused or joint):
        with tape.module("gate_up_proj", tape.component):
            both = tape.linear(x, width, inner * 2, bias=bias, split="column", tokens=rows)
        if tape.kernels.fused:
            product = tape.record("glu", (both,), tape.tensor(rows * inner, both.format), saves=(both,))
        else:
            half = tape.tensor(rows * inner, both.format)
            tape.record("activation", (both,), half, saves=(both,))
            product = tape.record("mul", (half, both), tape.tensor(rows * inner, both.format), saves=(half, both))
    elif gated:
        with tape.module("gate_proj", tape.component):
            gate = tape.linear(x, width, inner, bias=bias, split="column", tokens=rows)
        gate = activation(tape, kind, gate)
        with tape.module("up_proj", tape.component):
            up = tape.linear(x, width, inner, bias=bias, split="column", tokens=rows)
        product = tape.multiply(gate, up)
    else:
        with tape.module("up_proj", tape.component):
            product = tape.linear(x, width, inner, bias=bias, split="column", tokens=rows)
        product = activation(tape, kind, product)
    product = norm(tape, inner_norm, "ffn_sub_norm", product, inner, rows)
    with tape.module("down_proj", tape.component):
        return tape.linear(product, inner, width, bias=bias, split="row", tokens=rows)


def idle(tape: Tape, *weights: Weight) -> None:
    """Parameters that the class holds and a training pass does not use. Never a block's first operation, whose input
    is the block's.
    """
    tape.record("idle", (), tape.tensor(Size({}), tape.parameters), weights=weights)


def idle_linear(tape: Tape, into: Size, out: Size, *, bias: bool = True, tied: bool = False) -> None:
    """A linear layer that the class holds and a training pass does not run, in the module being recorded; `tied` to a
    matrix that stands elsewhere.
    """
    weights = [tape.weight("weight", into * out)]
    name = weights[0].name.removesuffix(".weight")
    if tied:
        weights = []
    if bias:
        weights.append(tape.weight("bias", out))
    nothing = tape.tensor(Size({}), tape.parameters)
    tape.record("idle", (), nothing, weights=tuple(weights), linear=Linear(name, into, out))


def bare_matrix(
    tape: Tape, name: str, x: Tensor, into: Size, out: Size, *, groups: int = 1, tokens: Size | None = None
) -> Tensor:
    """A product with a matrix that the class holds as a parameter and not as a linear layer, perhaps in diagonal
    blocks: `groups` of them.
    """
    rows = tape.tokens if tokens is None else tokens
    inner = into if groups == 1 else ceil_div(into, Size.of(groups))
    weight = tape.weight(name, inner * out, split="column")
    given = tape.to(x, tape.compute)
    casts = (tape.tensor(weight.elements, tape.compute),) if tape.autocast else ()
    return tape.record(
        "matmul",
        (given,),
        tape.tensor(rows * out, tape.compute),
        saves=(given,),
        weights=(weight,),
        casts=casts,
        multiply_adds=rows * inner * out,
    )


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: how many, how many per token, and the width of one."""

    count: Size
    per_token: Size
    inner: Size
    idle: Size = field(default_factory=lambda: Size({}))
    """Experts beside them that do nothing, though the router and the joint matrix know them (LongCat)."""


def mixture_of_experts(
    tape: Tape,
    x: Tensor,
    width: Size,
    experts: Experts,
    *,
    gated: bool = True,
    kind: Activation = "silu",
    expert_bias: bool = False,
    router_bias: bool = False,
    router_is_linear: bool = False,
    narrow: tuple[Tensor, Size] | None = None,
) -> Tensor:
    """A router over all experts and the chosen experts' MLPs, as grouped matrix products over routed tokens.

    The router keeps its input and FP32 logits; each chosen expert keeps what its MLP keeps, for as many tokens as are
    routed to it; the outputs are kept for the gradient of the routing weights. `narrow` is what the experts read
    instead of `x`, and its width.
    """
    with tape.module("router", "router"):
        logits = tape.linear(x, width, experts.count + experts.idle, bias=router_bias, adaptable=router_is_linear)
        chosen = softmax(tape, logits, in_fp32=True)
    routed = tape.tokens * experts.per_token
    x, width = narrow or (x, width)
    with tape.module("experts", "routed_experts"):
        given = tape.record("gather", (x,), tape.tensor(routed * width, tape.compute))
        gates = 2 if gated else 1
        first = expert_matrices(
            tape, "gate_up_proj", given, experts, width, experts.inner * gates, routed, bias=expert_bias
        )
        if gated:
            product = tape.record("glu", (first,), tape.tensor(routed * experts.inner, first.format), saves=(first,))
        else:
            product = activation(tape, kind, first)
        out = expert_matrices(tape, "down_proj", product, experts, experts.inner, width, routed, bias=expert_bias)
        return tape.record("combine", (out, chosen), tape.tensor(tape.tokens * width, out.format), saves=(out, chosen))


def expert_matrices(
    tape: Tape, name: str, x: Tensor, experts: Experts, into: Size, out: Size, routed: Size, *, bias: bool = False
) -> Tensor:
    """One matrix for each expert, as a grouped product over the `routed` tokens, in the module being recorded."""
    count = experts.count + experts.idle if name == "gate_up_proj" else experts.count
    with tape.module(name, tape.component):
        weights = [tape.weight("weight", count * into * out, split="expert")]
        if bias:
            weights.append(tape.weight("bias", count * out, split="expert"))
        casts = (tape.tensor(weights[0].elements, tape.compute),) if tape.autocast else ()
        return tape.record(
            "grouped_mm",
            (x,),
            tape.tensor(routed * out, tape.compute),
            saves=(x,),
            weights=tuple(weights),
            casts=casts,
            multiply_adds=routed * into * out,
            linear=Linear(f"experts.{name}", into, out, "experts", experts.count),
        )


def language_model_head(
    tape: Tape,
    x: Tensor,
    width: Size,
    rows: Size,
    tied_to: Weight | None,
    *,
    bias: bool = False,
    component: Component = "lm_head",
    loss_in_fp32: bool = True,
) -> None:
    """The vocabulary projection over all positions and the cross-entropy loss.

    Hugging Face casts the logits of causal models to FP32; of masked and encoder-decoder models it takes the loss in
    the logits' own format, which autocast makes FP32 as well. It keeps the log-probabilities and makes two gradients
    of their size; Megatron keeps the probabilities and writes the gradient over them. The fused loss (Liger) never
    holds all logits: it walks over chunks of about T·h/V tokens, so that one chunk of FP32 logits is about as large as
    the hidden states in FP32, and keeps the gradients of its inputs instead.
    """
    if bias:
        with tape.module("lm_head_bias", "head_other"):
            offset = tape.weight("bias", rows, split="vocabulary")
            x = tape.record("bias", (x,), tape.tensor(x.elements, x.format), weights=(offset,), passes=True)
    with tape.module("lm_head", component):
        if tape.kernels.fused_cross_entropy and not tape.kernels.fused:
            weight = tied_to or tape.weight("weight", width * rows, split="vocabulary")
            given = tape.to(x, tape.compute)
            gradient = tape.tensor(given.elements, given.format, differentiable=False)
            weight_gradient = tape.tensor(weight.elements, tape.parameters, differentiable=False)
            loss = tape.record(
                "fused_linear_cross_entropy",
                (given,),
                tape.tensor(x.elements, "fp32"),
                saves=(gradient, weight_gradient),
                weights=() if tied_to else (weight,),
                tied=(tied_to,) if tied_to else (),
                in_place=True,
                multiply_adds=tape.tokens * width * rows,
                linear=Linear("lm_head", width, rows),
            )
        else:
            logits = tape.linear(x, width, rows, split="vocabulary", tied_to=tied_to)
            if (loss_in_fp32 or tape.autocast or tape.kernels.fused) and not tape.kernels.fused_cross_entropy:
                logits = tape.to(logits, "fp32")
            if tape.kernels.fused:
                probabilities = tape.tensor(logits.elements, logits.format, differentiable=False)
                loss = tape.tensor(tape.tokens, "fp32")
                tape.record("vocab_parallel_cross_entropy", (logits,), loss, saves=(probabilities,), in_place=True)
                return
            loss = tape.pointwise("log_softmax", logits, saves_output=True)
        tape.record("nll_loss", (loss,), tape.tensor(Size.of(1), "fp32"))
