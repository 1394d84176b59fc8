"""A given model against the laws: under- or over-trained, which loss, and what would reach that loss for less."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from app.errors import InvalidInput
from app.planning.architecture import Architecture
from app.planning.scaling_laws import LAWS, SAME_LOSS_FLOPS, Counts, Law, LawKey
from app.planning.sizes import total
from app.planning.sources import FLOP_COUNTER
from app.sources import Source

Verdict = Literal["under-trained", "compute-optimal", "over-trained"]

NEAR_OPTIMAL = (0.8, 1.25)
"""A model within these multiples of its compute-optimal tokens is called compute-optimal."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another way to spend: parameters, tokens, what they take and what comes out."""

    parameters: int
    tokens: int
    training_flops: float
    inference_flops: float
    predicted_loss: float
    saved_flops_share: float
    """Share of the operations that the first way takes which this one saves."""
    formula: str
    source: Source


@dataclass(frozen=True, slots=True)
class Placement:
    """A model against one law."""

    law: LawKey
    counted_parameters: int
    counts: Counts
    tokens_per_parameter: float
    optimal_tokens: int
    """Tokens for which a model of this size is compute-optimal."""
    tokens_over_optimal: float
    verdict: Verdict
    predicted_loss: float | None
    same_loss: Alternative | None
    """The cheapest training that reaches the same loss; null where the law has no loss for such a model."""
    formulas: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ExactFlops:
    """Operations of a model's training, counted operation by operation: two per multiply-add, and backward twice the
    forward pass. Attention scores are in, over the whole square of the sequence; recomputation is not. `formula` gives
    `training_flops` when evaluated with `sizes` and the model's `tokens`.
    """

    training_flops: float
    over_6nd: float
    sequence_length: int
    formula: str
    sizes: Mapping[str, int]
    source: Source


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A model, its tokens, the operations of its training, and where each law puts it."""

    name: str
    parameters: int
    active_parameters: int
    """What a token meets; the laws are asked with these."""
    parameters_without_embeddings: int
    """Active ones without embeddings and output layer."""
    tokens: int
    tokens_source: str
    flops_6nd: float
    """6 × active parameters × tokens, as the laws count (Kaplan et al. 2020, section 2.1)."""
    exact: ExactFlops | None
    """Null for encoder-decoder models, whose source and target have tokens of their own."""
    laws: tuple[Placement, ...]


def place(architecture: Architecture, *, tokens: int, tokens_source: str, sequence_length: int | None) -> PlacedModel:
    """A model that is or was trained on `tokens`, against every law. `sequence_length` is what its exact operations are
    counted for. Raises InvalidInput where the model takes no sequence of that length.
    """
    active = architecture.active_parameters
    outer = sum(count.parameters for count in architecture.components if count.name == "lm_head")
    inner = active - architecture.embedding_parameters - outer
    return PlacedModel(
        name=architecture.name,
        parameters=architecture.parameters,
        active_parameters=active,
        parameters_without_embeddings=inner,
        tokens=tokens,
        tokens_source=tokens_source,
        flops_6nd=6.0 * active * tokens,
        exact=exact_flops(architecture, tokens, sequence_length),
        laws=tuple(
            _placement(law, active if law.counts == "all parameters" else inner, tokens) for law in LAWS.values()
        ),
    )


def exact_flops(architecture: Architecture, tokens: int, sequence_length: int | None = None) -> ExactFlops | None:
    """Operations of training on `tokens` in sequences of `sequence_length` (default 2,048, or the longest the model
    takes). None where source and target have tokens of their own. Raises InvalidInput for a length that cannot be.
    """
    if architecture.family.family == "encoder-decoder":
        if sequence_length is not None:
            raise InvalidInput.at(
                "/sequence_length",
                "an encoder-decoder model has source and target sequences, and its operations are not counted by one "
                "length; leave it out",
            )
        return None
    longest = architecture.shapes.longest_sequence
    length = sequence_length or min(2048, longest)
    if length > longest:
        raise InvalidInput.at("/sequence_length", f"the model takes {longest} tokens at most; send no more")
    forward = total(segment.repeats * segment.multiply_adds for segment in architecture.ledger())
    lengths = {"micro_batch_size": 1, "sequence_length": length, "target_sequence_length": length}
    sizes = {**architecture.sizes, **lengths}
    flops = 6.0 * forward.evaluate(sizes) / length * tokens
    return ExactFlops(
        training_flops=flops,
        over_6nd=flops / (6.0 * architecture.active_parameters * tokens),
        sequence_length=length,
        formula=f"6 * ({forward}) / sequence_length * tokens",
        sizes={name: sizes[name] for name in sorted(forward.names)},
        source=FLOP_COUNTER,
    )


def _placement(law: Law, parameters: int, tokens: int) -> Placement:
    optimal = law.value(law.tokens_for_parameters, parameters=parameters)
    ratio = tokens / optimal
    low, high = NEAR_OPTIMAL
    loss = law.loss_of(parameters, tokens)
    formulas = {"optimal_tokens": law.tokens_for_parameters}
    if loss is not None and law.loss is not None:
        formulas["predicted_loss"] = law.loss
    return Placement(
        law=law.key,
        counted_parameters=parameters,
        counts=law.counts,
        tokens_per_parameter=tokens / parameters,
        optimal_tokens=round(optimal),
        tokens_over_optimal=ratio,
        verdict="under-trained" if ratio < low else "over-trained" if ratio > high else "compute-optimal",
        predicted_loss=loss,
        same_loss=None if loss is None else _same_loss(law, parameters, tokens, loss),
        formulas=formulas,
    )


def _same_loss(law: Law, parameters: int, tokens: int, loss: float) -> Alternative:
    flops = law.value(SAME_LOSS_FLOPS, loss=loss)
    least, fewest = law.optimum(flops)
    return Alternative(
        parameters=round(least),
        tokens=round(fewest),
        training_flops=flops,
        inference_flops=0.0,
        predicted_loss=loss,
        saved_flops_share=max(0.0, 1 - flops / (6.0 * parameters * tokens)),
        formula=SAME_LOSS_FLOPS,
        source=law.source,
    )
