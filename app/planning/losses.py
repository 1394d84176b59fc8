"""The head of a language model: the vocabulary projection and the cross-entropy loss, as each framework runs them."""

from app.planning.ledger import Component, Linear, Tape, Tensor, Weight, promoted
from app.planning.sizes import Size


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
    softcap: bool = False,
    offset: bool = False,
    scaled: bool = False,
) -> None:
    """The vocabulary projection over all positions and the cross-entropy loss.

    Hugging Face casts the logits of causal models to FP32; of masked and encoder-decoder models it takes log-softmax in
    the logits' own format, and autocast casts its result for the loss. `softcap` is a tanh that caps the logits,
    `offset` a constant added to them, in the weights' format, `scaled` a product with a number.
    """
    if bias:
        with tape.module("lm_head_bias", "head_other"):
            added = tape.weight("bias", rows, split="vocabulary")
            x = tape.record("bias", (x,), x, weights=(added,), passes=True)
    with tape.module("lm_head", component):
        if tape.kernels.fused_cross_entropy and not tape.kernels.sharded_loss:
            _fused_linear_cross_entropy(tape, x, width, rows, tied_to)
            return
        changed = softcap or offset or scaled
        if changed or tape.kernels.shifted_loss == "in-model":
            with tape.releasing():
                logits = tape.linear(x, width, rows, split="vocabulary", tied_to=tied_to)
                logits = tape.scale(logits) if softcap else logits
        else:
            logits = tape.linear(x, width, rows, split="vocabulary", tied_to=tied_to)
        if offset:
            format = promoted(tape.parameters, logits.format)
            logits = tape.record("add", (logits,), tape.tensor(logits.elements, format), passes=True)
        elif softcap:
            logits = tape.scale(tape.pointwise("tanh", logits, saves_output=True))
        elif scaled:
            logits = tape.scale(logits)
        if tape.kernels.sharded_loss:
            _vocab_parallel_cross_entropy(tape, logits)
        else:
            _cross_entropy(tape, tape.to(logits, "fp32") if loss_in_fp32 else logits)


def _cross_entropy(tape: Tape, logits: Tensor) -> None:
    """PyTorch's loss keeps the log-probabilities and makes two gradients of their size; one that works in place keeps
    the logits and writes their gradient over them. Either takes a copy of the logits where they are shifted.
    """
    if tape.kernels.shifted_loss != "never":
        logits = tape.copy(logits)
    if tape.kernels.in_place_loss:
        loss = tape.tensor(tape.tokens, "fp32")
        tape.record("in_place_cross_entropy", (logits,), loss, saves=(logits,), in_place=True)
        return
    loss = tape.pointwise("log_softmax", logits, saves_output=True)
    if tape.autocast:
        loss = tape.to(loss, "fp32")
    tape.record("nll_loss", (loss,), tape.tensor(Size.of(1), "fp32"), saves=(loss,))


def _fused_linear_cross_entropy(tape: Tape, x: Tensor, width: Size, rows: Size, tied_to: Weight | None) -> None:
    """Liger's loss never holds all logits: it walks over chunks of about T·h/V tokens, so that the logits of one are
    about as large as the hidden states, and keeps the gradients of its inputs instead.
    """
    weight = tied_to or tape.matrix("weight", rows, width, split="vocabulary")
    given = tape.to(x, tape.compute)
    gradient = tape.tensor(given.elements, given.format, differentiable=False)
    weight_gradient = tape.tensor(weight.elements, tape.parameters, differentiable=False)
    casts = tape.tensor(weight.elements, tape.compute).bytes if tape.casts_weights else Size({})
    loss = tape.record(
        "fused_linear_cross_entropy",
        (given,),
        tape.tensor(x.elements, "fp32"),
        saves=(gradient, weight_gradient),
        weights=() if tied_to else (weight,),
        tied=(tied_to,) if tied_to else (),
        in_place=True,
        forward_scratch=tape.tensor(x.elements, tape.compute).bytes + casts,
        multiply_adds=tape.tokens * width * rows,
        linear=Linear("lm_head", width, rows),
    )
    tape.record("nll_loss", (loss,), tape.tensor(Size.of(1), "fp32"))


def _vocab_parallel_cross_entropy(tape: Tape, logits: Tensor) -> None:
    """Cross entropy over the vocabulary of one tensor-parallel rank, whose gradient is written over what was kept.

    Megatron makes one FP32 copy of the logits and turns it into probabilities where it stands, fused or not. nanotron
    subtracts the maximum into a tensor beside the FP32 copy.
    """
    loss = tape.tensor(tape.tokens, "fp32")
    kept = wide = tape.to(logits, "fp32")
    if not tape.kernels.fused:
        kept = tape.tensor(logits.elements, "fp32", differentiable=False)
    tape.record("vocab_parallel_cross_entropy", (wide,), loss, saves=(kept,), in_place=True)
