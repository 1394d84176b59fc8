"""Layers in the words of `nn.Module`s, written as the operators that each framework runs for them.

Hugging Face code runs operator by operator (`Kernels.fused` false); Megatron fuses norms, rotary embedding and
activation functions, which keep less for backward. Sizes are named as in a `config.json`.
"""

from dataclasses import dataclass, field
from typing import Literal

from app.planning.ledger import BATCH, Linear, Tape, Tensor, Weight, promoted
from app.planning.sizes import Size, ceil_div, largest, named, smallest

Norm = Literal[
    "rms",
    "rms-no-weight",
    "rms-fp32",
    "rms-t5",
    "layer",
    "layer-no-bias",
    "layer-no-weight",
    "layer-fp32",
    "layer-python",
    "none",
]
"""RMSNorm, with a weight or without parameters, with the product by its weight in FP32 (Gemma, OLMo 2, gpt-oss), or as
T5 writes it; LayerNorm with weight and bias, with weight only, or without any; LayerNorm without parameters that the
model's own code runs in FP32 (OLMo); LayerNorm with a weight, written in Python in FP32 (Cohere); no norm at all.
"""

Activation = Literal["silu", "gelu", "gelu-tanh", "gelu-python", "gelu-function", "relu", "relu2", "tanh", "xielu"]
"""`gelu-tanh` is one kernel; `gelu-python` (`gelu_new`, `gelu_fast`) is written in Python, step by step;
`gelu-function` (BLOOM) keeps its input alone, and its gradient is written in Python.
"""

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

GELU_STEPS = 4
"""Tensors beside input and gradients that BLOOM's gradient of GELU holds at once."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape of an attention layer: query and key/value heads, the size of a query or key head, that of a value head."""

    query: Size
    key_value: Size
    size: Size
    value_size: Size
    grouped: bool
    """Whether several query heads share one key/value head."""
    one: bool = False
    """Whether all of them share one."""


def embedding(tape: Tape, name: str, rows: Size, width: Size) -> tuple[Tensor, Weight]:
    """`nn.Embedding(rows, width)` of the token ids; keeps the ids."""
    with tape.module(name, "word_embedding"):
        weight = tape.matrix("weight", rows, width, split="vocabulary")
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
        weight = tape.matrix("weight", rows, width, trainable=trainable)
        positions = tape.tensor(tape.sequence, "int64", differentiable=False)
        output = tape.stream(x.elements, promoted(tape.parameters, x.format))
        return tape.record("add", (x,), output, saves=(positions,), weights=(weight,), passes=True)


def type_embedding(tape: Tape, name: str, rows: Size, width: Size, x: Tensor) -> Tensor:
    """A table of segment types, added to every token."""
    with tape.module(name, "type_embedding"):
        weight = tape.matrix("weight", rows, width)
        return tape.record("add", (x,), tape.stream(x.elements, x.format), weights=(weight,), passes=True)


def rotary_table(tape: Tape, head_size: Size) -> None:
    """Cosines and sines of all positions, made once and kept for every layer."""
    with tape.module("rotary_emb", "attention"):
        table = tape.tensor(tape.sequence * head_size, tape.parameters, differentiable=False)
        sines = tape.tensor(tape.sequence * head_size, tape.parameters, differentiable=False)
        tape.record("cos_sin", (), table, saves=(table, sines))


def norm(tape: Tape, kind: Norm, name: str, x: Tensor, width: Size, rows: Size | None = None) -> Tensor:
    """A norm over `width`, for `rows` vectors: one per token unless said otherwise."""
    rows = tape.rows_of(x) if rows is None else rows
    with tape.module(name, "norm"):
        if kind == "none":
            return x
        if kind in ("rms", "rms-no-weight", "rms-fp32", "rms-t5"):
            return rms_norm(tape, kind, x, width, rows)
        if kind == "layer-python" and not tape.kernels.fused:
            return python_layer_norm(tape, x, width, rows)
        return layer_norm(tape, kind, x, width, rows)


def rms_norm(tape: Tape, kind: Norm, x: Tensor, width: Size, rows: Size) -> Tensor:
    """RMSNorm. Fused, it keeps its input; unfused, an FP32 copy and the normalized tensor as well: in the input's
    format, or in FP32 where the product by the weight comes before the cast. T5 keeps its input beside the copy.
    """
    weights = () if kind == "rms-no-weight" else (tape.weight("weight", width),)
    inverse = tape.tensor(rows, "fp32")
    liger = tape.kernels.liger
    if tape.kernels.fused or tape.kernels.fused_norm or liger:
        output = tape.tensor(x.elements, x.format)
        name = "liger_rms_norm" if liger else "rms_norm"
        saves = (x, inverse)
        return tape.record(name, (x,), output, saves=saves, weights=weights, passes=liger == "in-place")
    wide = tape.to(x, "fp32")
    tape.record("rsqrt_mean_square", (wide,), inverse, saves=(wide, inverse), backward_scratch=wide.bytes * 4)
    normed = tape.multiply(x if kind == "rms-t5" else wide, inverse)
    if kind == "rms-t5":
        normed = tape.to(normed, tape.parameters)
    elif kind != "rms-fp32":
        normed = tape.to(normed, x.format)
    if not weights:
        return normed
    output = tape.tensor(x.elements, promoted(tape.parameters, normed.format))
    output = tape.record(
        "weight",
        (normed,),
        output,
        saves_for_weights=(normed,),
        weights=weights,
        backward_scratch=output.bytes if tape.trains(weights) else None,
    )
    return tape.to(output, x.format) if kind == "rms-fp32" else output


def layer_norm(tape: Tape, kind: Norm, x: Tensor, width: Size, rows: Size) -> Tensor:
    """`nn.LayerNorm`: one kernel that keeps its input and two FP32 statistics a row; autocast runs it in FP32."""
    names = {"layer": ("weight", "bias"), "layer-no-bias": ("weight",), "layer-python": ("weight",)}.get(kind, ())
    weights = tuple(tape.weight(name, width) for name in names)
    given = tape.to(x, "fp32") if tape.autocast or kind == "layer-fp32" else x
    statistics = tape.tensor(rows * 2, "fp32", differentiable=False)
    output = tape.tensor(given.elements, given.format)
    normed = tape.record("layer_norm", (given,), output, saves=(given, statistics), weights=weights)
    return tape.to(normed, x.format) if kind == "layer-fp32" else normed


def python_layer_norm(tape: Tape, x: Tensor, width: Size, rows: Size) -> Tensor:
    """LayerNorm in Python and FP32: keeps the centered input twice, for the variance and for the product, and what is
    multiplied by the weight.
    """
    wide = tape.to(x, "fp32")
    inverse = tape.tensor(rows, "fp32")
    centered = tape.scale(wide, name="center")
    tape.record("rsqrt_variance", (centered,), inverse, saves=(centered, inverse), backward_scratch=wide.bytes * 4)
    normed = tape.multiply(tape.scale(wide, name="center"), inverse)
    weights = (tape.weight("weight", width),)
    output = tape.tensor(x.elements, "fp32")
    output = tape.record("weight", (normed,), output, saves=(normed,), weights=weights, backward_scratch=output.bytes)
    return tape.to(output, x.format)


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
    bias: Tensor | None = None,
    window: str = "",
    softcap: bool = False,
    heads_first: bool = False,
    causal: bool = False,
    broadcast: bool = False,
    scores_in_fp32: bool = False,
) -> Tensor:
    """Scaled dot-product attention; the result is laid out for the output projection. `source` is the keys' length,
    `bias` is added to the scores of every sequence (T5), `window` names the size that says how many keys a query sees,
    `softcap` is a tanh that caps the scores (Gemma 2). Queries that are laid out `heads_first`, as a concatenation
    leaves them, give flash attention's output the same layout, and the output projection needs a copy of it.

    A `causal` mask is read by all layers of eager attention. One key/value head that is `broadcast` to all query heads
    leaves `sdpa` the plain kernel alone, which computes in FP32 (Falcon). GPT-Neo has `scores_in_fp32`.

    Flash attention keeps query, key, value, output and one FP32 log-sum-exp per token and head. PyTorch's `sdpa` picks
    it for 16-bit inputs without a mask; in FP32 the memory-efficient kernel, or with grouped heads the plain one. A
    sequence as long as the window needs a mask, and one of several documents does, which the memory-efficient kernel
    keeps; it takes no grouped heads.
    With a mask even FP32 and grouped heads come to it: its statistics and mask stand for the scores then. Keys and
    values are copied for every query head; one for all is only viewed by that kernel, and by the matrix products of
    a single sequence. Values that are part of a joint tensor are copied too, but for a single sequence.
    """
    cast_late = key.format != tape.compute
    query, key, value = (tape.to(x, tape.compute) for x in (query, key, value))
    length = tape.whole_sequence if source is None else source
    sdpa = tape.kernels.attention == "sdpa"
    masked = _masked(tape, length, window, causal=causal and not broadcast)
    scores = tape.tokens * heads.query * length
    width = tape.tokens * heads.query * heads.value_size
    ungrouped = not heads.grouped or tape.kernels.packed
    plain = tape.kernels.attention == "eager" or (sdpa and broadcast) or (tape.compute == "fp32" and not ungrouped)
    inner = "fp32" if sdpa or (scores_in_fp32 and not tape.autocast) else tape.compute
    with tape.attention_core():
        if not plain:
            output = _fused_attention(
                tape, query, key, value, heads, length, masked, bias, causal=causal, cast_late=cast_late
            )
            if heads_first and tape.compute != "fp32" and bias is None and heads.size == heads.value_size:
                output = tape.copy(output, width - masked * width)
            return output
        query, key = tape.to(query, inner), tape.to(key, inner)
        value = tape.to(value, inner) if sdpa else value
        viewed = Size({})
        if heads.one:
            alone = Size.of(1) - smallest(Size.of(1), BATCH - 1) if not sdpa or broadcast else Size({})
            viewed = masked + alone - masked * alone
        query, key, value = _copied(tape, query, key, value, heads, length, viewed)
        if sdpa:
            query, key = tape.scale(query), tape.scale(key)
        made = scores
        if masked:
            made = scores - masked * (scores - tape.tokens * (heads.query + length))
        product = tape.tensor(made, inner)
        adds = scores * heads.size
        weights = tape.record("matmul", (query, key), product, saves=(query, key), multiply_adds=adds)
        weights = tape.scale(weights)
        if softcap:
            weights = tape.scale(tape.pointwise("tanh", tape.scale(weights), saves_output=True))
        if bias is not None:
            format = promoted(weights.format, bias.format)
            weights = tape.record("add", (weights, bias), tape.tensor(scores, format), passes=True)
        if causal and tape.kernels.attention == "eager":
            mask = tape.outside(f"mask {window}", tape.tokens * length, tape.parameters)
            format = promoted(weights.format, mask.format)
            weights = tape.record("add", (weights, mask), tape.tensor(weights.elements, format), passes=True)
        weights = softmax(tape, weights, in_fp32=softmax_in_fp32)
        if softmax_in_fp32:
            weights = tape.to(weights, value.format)
        weights = tape.to(tape.dropout(weights, dropout), value.format)
        mixed = tape.tensor(width, value.format)
        adds = scores * heads.value_size
        mixed = tape.record("matmul", (weights, value), mixed, saves=(weights, value), multiply_adds=adds)
        return tape.to(tape.copy(mixed), tape.compute)


def _masked(tape: Tape, length: Size, window: str, *, causal: bool) -> Size:
    """1 where `sdpa` takes a mask that it would do without for one short document a sequence; else 0."""
    if causal and tape.kernels.packed:
        return Size.of(1)
    if window and tape.kernels.attention == "sdpa":
        return smallest(Size.of(1), largest(Size.of(0), length - named(window) + 1))
    return Size({})


def _copied(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, heads: Heads, length: Size, viewed: Size
) -> tuple[Tensor, Tensor, Tensor]:
    """What the matrix products read: keys and values for every query head, which are copies unless `viewed` is 1, and
    no parts of joint tensors.
    """
    beside = value.elements - BATCH * length * heads.key_value * heads.value_size
    if heads.grouped or query is key:
        keys = BATCH * length * heads.query
        if heads.grouped:
            keys = keys - viewed * BATCH * length * (heads.query - heads.key_value)
        if query is key:
            query = tape.copy(query, tape.tokens * heads.query * heads.size)
        return query, tape.copy(key, keys * heads.size), tape.copy(value, keys * heads.value_size)
    if beside:
        value = tape.copy(value, value.elements - beside * smallest(Size.of(1), BATCH - 1))
    return query, key, value


def _fused_attention(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: Heads,
    length: Size,
    masked: Size,
    bias: Tensor | None,
    *,
    causal: bool,
    cast_late: bool,
) -> Tensor:
    scores = tape.tokens * heads.query * length
    log_sum_exp = tape.tensor(tape.tokens * heads.query, "fp32", differentiable=False)
    output = tape.tensor(tape.tokens * heads.query * heads.value_size, tape.compute)
    mask: tuple[Tensor, ...] = ()
    if masked:
        if heads.grouped:
            keys = BATCH * length * heads.query
            copied = Size({}) if heads.one else masked
            key = tape.copy(key, key.elements + (keys * heads.size - key.elements) * (masked if cast_late else copied))
            value = tape.copy(value, value.elements + (keys * heads.value_size - value.elements) * copied)
        wanted = tape.outside("window", masked * tape.tokens * length, "bool")
        mask = (tape.tensor(masked * tape.tokens * length, tape.compute, differentiable=False),)
        tape.record("where", (wanted,), mask[0])
    if bias is not None:
        if bias.differentiable:
            seen = (tape.tensor(tape.sequence * length, "bool", differentiable=False),) if causal else ()
            bias = tape.record("where", (bias,), tape.tensor(bias.elements, bias.format), saves=seen)
        mask = (tape.to(bias, tape.compute),)
        bias = tape.record("expand", mask, tape.tensor(scores, tape.compute))
    return tape.record(
        "scaled_dot_product_attention",
        (query, key, value, *(() if bias is None else (bias,))),
        output,
        saves=(query, key, value, output, log_sum_exp, *mask),
        multiply_adds=scores * (heads.size + heads.value_size),
    )


def softmax(tape: Tape, x: Tensor, *, in_fp32: bool) -> Tensor:
    """Softmax keeps its output; autocast, or the model's own code, computes it in FP32. Megatron's fused one does so in
    registers and keeps the compute format.
    """
    wide = (in_fp32 or tape.autocast) and not tape.kernels.fused
    return tape.pointwise("softmax", tape.to(x, "fp32") if wide else x, saves_output=True)


def activation(tape: Tape, kind: Activation, x: Tensor) -> Tensor:
    """An activation function: one kernel that keeps its input or output, or several steps where it is Python."""
    if kind in ("relu", "tanh"):
        return tape.pointwise(kind, x, saves_output=True)
    if kind == "xielu":
        with tape.module("act_fn", tape.component):
            slopes = tuple(tape.weight(name, Size.of(1)) for name in ("alpha_p", "alpha_n"))
            return tape.record(kind, (x,), tape.tensor(x.elements, x.format), saves=(x,), weights=slopes)
    if kind == "gelu-function" and not tape.kernels.fused:
        return tape.record(
            kind, (x,), tape.tensor(x.elements, x.format), saves=(x,), backward_scratch=x.bytes * GELU_STEPS
        )
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
    inner_dropout: float = 0.0,
) -> Tensor:
    """down(act(gate(x)) · up(x)), or down(act(up(x))) without a gate, in the module being recorded.

    `joint` is one matrix for gate and up, `inner_norm` stands before the matrix down. Fused, only the joint output and
    the product are kept.
    """
    rows = tape.tokens if tokens is None else tokens
    if gated and (tape.kernels.fused or joint):
        with tape.module("gate_up_proj", tape.component):
            both = tape.linear(x, width, inner * 2, bias=bias, split="column", tokens=tokens)
        product = gated_product(tape, both, rows * inner, kind)
    elif gated:
        with tape.module("gate_proj", tape.component):
            gate = tape.linear(x, width, inner, bias=bias, split="column", tokens=tokens)
        if not tape.kernels.liger:
            gate = activation(tape, kind, gate)
        with tape.module("up_proj", tape.component):
            up = tape.linear(x, width, inner, bias=bias, split="column", tokens=tokens)
        product = liger_product(tape, gate, up) if tape.kernels.liger else tape.multiply(gate, up)
    else:
        with tape.module("up_proj", tape.component):
            product = tape.linear(x, width, inner, bias=bias, split="column", tokens=tokens)
        product = activation(tape, kind, product)
    product = tape.dropout(norm(tape, inner_norm, "ffn_sub_norm", product, inner, rows), inner_dropout)
    with tape.module("down_proj", tape.component):
        return tape.linear(product, inner, width, bias=bias, split="row", tokens=tokens)


def idle(tape: Tape, *weights: Weight) -> None:
    """Parameters that the class holds and a training pass does not use. Never a block's first operation, whose input
    is the block's.
    """
    tape.record("idle", (), tape.tensor(Size({}), tape.parameters), weights=weights)


def idle_linear(tape: Tape, into: Size, out: Size, *, bias: bool = True, tied: bool = False) -> None:
    """A linear layer that the class holds and a training pass does not run, in the module being recorded; `tied` to a
    matrix that stands elsewhere.
    """
    weights = [tape.matrix("weight", out, into)]
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
    weight = tape.matrix(name, out, inner, split="column")
    given = tape.to(x, tape.compute)
    casts = (tape.tensor(weight.elements, tape.compute),) if tape.casts_weights else ()
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
    router_in_fp32: bool = False,
    scores_in_fp32: bool = False,
    clamped: bool = False,
    narrow: tuple[Tensor, Size] | None = None,
) -> Tensor:
    """A router over all experts and the chosen experts' MLPs, as grouped matrix products over routed tokens.

    The router keeps its input and FP32 probabilities; each chosen expert keeps what its MLP keeps, for as many tokens
    as are routed to it; the outputs are kept for the gradient of the routing weights, which are FP32 or have the
    logits' format. Autocast knows nothing of grouped products: they run in the weights' format. `clamped` is gpt-oss's
    gate, which clamps both halves; `narrow` is what the experts read instead of `x`, and its width.
    """
    with tape.module("router", "router"):
        count = experts.count + experts.idle
        if router_in_fp32 and not (tape.autocast or tape.kernels.fused):
            logits = fp32_linear(tape, x, width, count)
        else:
            logits = tape.linear(x, width, count, bias=router_bias, adaptable=router_is_linear)
        if clamped:
            chosen = tape.tensor(tape.rows_of(x) * experts.per_token, logits.format)
            chosen = softmax(tape, tape.record("topk", (logits,), chosen), in_fp32=False)
        else:
            chosen = softmax(tape, logits, in_fp32=True)
    rows = tape.rows_of(x)
    routed = tape.routed(x, experts.per_token)
    format = x.format
    x, width = narrow or (x, width)
    with tape.module("experts", "routed_experts"):
        compute = tape.compute if tape.kernels.fused else tape.parameters
        weights_format = "fp32" if scores_in_fp32 else logits.format
        order = tape.tensor(routed * 4, "int64", differentiable=False)
        scores = tape.record("gather", (chosen,), tape.tensor(routed, weights_format), saves=(order,))
        given = tape.to(tape.record("gather", (x,), tape.tensor(routed * width, x.format)), compute)
        gates = 2 if gated else 1
        first = expert_matrices(
            tape, "gate_up_proj", given, experts, width, experts.inner * gates, routed, bias=expert_bias
        )
        if gated:
            product = gated_product(tape, first, routed * experts.inner, kind, clamped=clamped)
        else:
            product = activation(tape, kind, first)
        out = expert_matrices(tape, "down_proj", product, experts, experts.inner, width, routed, bias=expert_bias)
        if tape.kernels.fused:
            return tape.record("combine", (out, scores), tape.tensor(rows * width, out.format))
        weighted = tape.multiply(out, scores)
        restored = tape.copy(weighted)
        output = tape.tensor(rows * width, restored.format)
        return tape.to(tape.record("combine", (restored,), output, passes=True), format)


def fp32_linear(tape: Tape, x: Tensor, into: Size, out: Size) -> Tensor:
    """A router's matrix product in FP32, in the module being recorded: copies of its input and of its weights."""
    given, weight = tape.to(x, "fp32"), tape.matrix("weight", out, into)
    copied = () if tape.parameters == "fp32" else (tape.tensor(weight.elements, "fp32", differentiable=False),)
    output = tape.record(
        "linear",
        (given,),
        tape.tensor(tape.rows_of(x) * out, "fp32"),
        saves=(given, *copied),
        weights=(weight,),
        multiply_adds=tape.rows_of(x) * into * out,
        linear=Linear(weight.name.removesuffix(".weight"), into, out, "router"),
    )
    return tape.beside(given, output, into, out, tape.rows_of(x))


def gated_product(tape: Tape, both: Tensor, elements: Size, kind: Activation, *, clamped: bool = False) -> Tensor:
    """act(gate) · up of `elements`, for gate and up as halves of one tensor. Fused, that tensor alone is kept."""
    if tape.kernels.fused:
        return tape.record("glu", (both,), tape.tensor(elements, both.format), saves=(both,))
    up = tape.record("chunk", (both,), tape.tensor(elements, both.format), passes=True)
    gate = tape.record("chunk", (both,), tape.tensor(elements, both.format))
    if tape.kernels.liger:
        return liger_product(tape, gate, up, held=both.bytes)
    if clamped:
        gate = tape.record("clamp", (gate,), tape.tensor(elements, both.format), saves=(both,))
        up = tape.scale(tape.record("clamp", (up,), tape.tensor(elements, both.format), saves=(both,)), name="add_one")
        gate = tape.multiply(gate, tape.pointwise("sigmoid", tape.scale(gate), saves_output=True))
        return tape.multiply(up, gate)
    gate = tape.record(kind, (gate,), tape.tensor(elements, both.format), saves=(both,))
    return tape.record("mul", (gate, up), tape.tensor(elements, both.format), saves=(gate, both))


def liger_product(tape: Tape, gate: Tensor, up: Tensor, *, held: Size | None = None) -> Tensor:
    """Liger's act(gate) · up: keeps both factors and writes their gradients over them. Halves of one tensor, which the
    code still holds (`held` bytes), are copied first.
    """
    output = tape.tensor(up.elements, up.format)
    saves = (gate, up)
    return tape.record("liger_glu", (gate, up), output, saves=saves, in_place=True, forward_scratch=held)


def expert_matrices(
    tape: Tape, name: str, x: Tensor, experts: Experts, into: Size, out: Size, routed: Size, *, bias: bool = False
) -> Tensor:
    """One matrix for each expert, as a grouped product over the `routed` tokens, in the module being recorded."""
    count = experts.count + experts.idle if name == "gate_up_proj" else experts.count
    with tape.module(name, tape.component):
        weights = [tape.matrix("weight", into, out, copies=count, split="expert")]
        if bias:
            weights.append(tape.weight("bias", count * out, split="expert"))
        output = tape.record(
            "grouped_mm",
            (x,),
            tape.tensor(routed * out, x.format),
            saves_for_weights=(x,),
            weights=tuple(weights),
            multiply_adds=routed * into * out,
            linear=Linear(f"experts.{name}", into, out, "experts", experts.count),
        )
        stacked = 2 if name == "gate_up_proj" else 1
        return tape.beside(x, output, into, out, routed, copies=experts.count, stacked=stacked)
