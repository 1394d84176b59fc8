"""Compute-optimal training: what a budget buys by the published laws, and where a given model stands.

Everything here is arithmetic on the table of `app.planning.scaling_laws`. A budget in GPU-hours or dollars becomes
operations first; the laws are asked; a model's own operations are counted exactly beside the 6ND that the laws mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from app.errors import InvalidInput
from app.planning.architecture import Architecture
from app.planning.scaling_budget import Budget, BudgetInputs, budget_of
from app.planning.scaling_laws import LAWS, TOKENS_FOR_LOSS, Counts, Fitted, Law, LawKey, evaluate
from app.planning.scaling_placement import Alternative, PlacedModel, place
from app.planning.scaling_search import cheapest_with_inference, with_repetition
from app.planning.sources import CHARACTERS_PER_TOKEN, CURATION, DATA_CONSTRAINED, EMBEDDING_PARAMETERS, INFERENCE_AWARE
from app.sources import Source

_FEW_EPOCHS = 4
"""Up to so many epochs, repeated tokens are almost as good as new ones (Muennighoff et al. 2023)."""

_LIKE_6ND = (0.8, 1.25)
"""How far a model's exact operations may be from 6ND before the answer warns: shared layers, long sequences."""

_EMBEDDINGS = "parameters + 47491 * parameters ** (1 / 3)"
_RAW = "unique_tokens * bytes_per_token / kept_share"


@dataclass(frozen=True, slots=True)
class TextInputs:
    """How tokens become text to collect."""

    bytes_per_token: float = 3.94
    kept_share_low: float = 0.01
    kept_share_high: float = 0.03


@dataclass(frozen=True, slots=True)
class ScalingInputs:
    """Everything `compute_optimal` needs, with names looked up."""

    budget: BudgetInputs
    law: LawKey = "besiroglu-2024"
    architecture: Architecture | None = None
    tokens: int | None = None
    """Tokens that the model is or was trained on."""
    tokens_source: str = "request"
    sequence_length: int | None = None
    unique_tokens: int | None = None
    inference_tokens: int | None = None
    text: TextInputs = TextInputs()


@dataclass(frozen=True, slots=True)
class Optimum:
    """What one law says of the budget. Every formula gives its number when evaluated with `constants` and the names of
    the other fields; `flops` is the budget's.
    """

    law: LawKey
    title: str
    parameters: int
    counts: Counts
    """Which parameters `parameters` are."""
    total_parameters: int
    """With embeddings: an estimate where the law counts none."""
    tokens: int
    tokens_per_parameter: float
    """Over `parameters`, as the law counts them."""
    predicted_loss: float | None
    """Nats per token, on the law's own data with its own tokenizer: not comparable between laws."""
    formulas: Mapping[str, str]
    constants: Mapping[str, float]
    compute: str
    """Which operations the law counts."""
    fitted: Fitted
    extrapolates: bool
    """Whether the answer lies outside of the runs that the law was fitted to."""
    note: str
    source: Source
    embeddings_source: Source | None
    """Where the estimate of embeddings in `total_parameters` comes from; null where the law counts them."""


@dataclass(frozen=True, slots=True)
class RawText:
    """Text to collect for the tokens of the leading law: `curated_bytes` are trained on, the raw ones are crawled."""

    unique_tokens: int
    epochs: float
    bytes_per_token: float
    kept_share_low: float
    kept_share_high: float
    curated_bytes: int
    raw_bytes_low: int
    """When `kept_share_high` survives curation."""
    raw_bytes_high: int
    """When `kept_share_low` survives."""
    formula: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Repetition:
    """The best use of the budget when there are only so many different tokens."""

    unique_tokens: int
    parameters: int
    tokens: int
    epochs: float
    effective_tokens: int
    """New tokens that would be worth as much."""
    predicted_loss: float
    loss_without_limit: float
    formula: str
    source: Source


@dataclass(frozen=True, slots=True)
class ScalingAnswer:
    """Compute-optimal parameters and tokens for a budget. The leading law's numbers come first, all laws' in `laws`."""

    law: LawKey
    parameters: int
    tokens: int
    tokens_per_parameter: float
    predicted_loss: float | None
    budget: Budget
    laws: tuple[Optimum, ...]
    raw_text: RawText
    data_constrained: Repetition | None
    inference_aware: Alternative | None
    model: PlacedModel | None
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]


def compute_optimal(inputs: ScalingInputs) -> ScalingAnswer:
    """What the budget buys by every law, and where the model stands. Raises InvalidInput, pointing into the request,
    for a budget that cannot be meant and for questions that the chosen law cannot answer.
    """
    assumptions: list[str] = []
    law = LAWS[inputs.law]
    if inputs.inference_tokens is not None and not law.is_parametric:
        able = ", ".join(key for key, other in LAWS.items() if other.is_parametric)
        raise InvalidInput.at(
            "/inference_tokens", f"{law.key} predicts no loss to trade inference for; send `law` as one of: {able}"
        )
    own_flops = None
    if inputs.architecture is not None and inputs.tokens is not None:
        own_flops = 6.0 * inputs.architecture.active_parameters * inputs.tokens
    budget = budget_of(inputs.budget, own_flops, assumptions)
    optima = tuple(_optimum(one, budget.flops) for one in LAWS.values())
    leading = next(optimum for optimum in optima if optimum.law == inputs.law)
    model = None if inputs.architecture is None else _placed(inputs, inputs.architecture, budget.flops)
    repetition = None if inputs.unique_tokens is None else _repetition(budget.flops, inputs.unique_tokens)
    return ScalingAnswer(
        law=inputs.law,
        parameters=leading.parameters,
        tokens=leading.tokens,
        tokens_per_parameter=leading.tokens_per_parameter,
        predicted_loss=leading.predicted_loss,
        budget=budget,
        laws=optima,
        raw_text=_raw_text(leading.tokens, inputs),
        data_constrained=repetition,
        inference_aware=None if inputs.inference_tokens is None else _inference_aware(law, leading, inputs),
        model=model,
        assumptions=(*assumptions, *_assumptions(inputs)),
        warnings=tuple(_warnings(inputs, leading, model)),
    )


def _optimum(law: Law, flops: float) -> Optimum:
    parameters, tokens = law.optimum(flops)
    whole = parameters if law.counts == "all parameters" else evaluate(_EMBEDDINGS, {"parameters": parameters})
    formulas = {"parameters": law.parameters, "tokens": law.tokens}
    if law.counts != "all parameters":
        formulas["total_parameters"] = _EMBEDDINGS
    if law.loss is not None:
        formulas["predicted_loss"] = law.loss
    return Optimum(
        law=law.key,
        title=law.title,
        parameters=round(parameters),
        counts=law.counts,
        total_parameters=round(whole),
        tokens=round(tokens),
        tokens_per_parameter=tokens / parameters,
        predicted_loss=law.loss_at_optimum(flops),
        formulas=formulas,
        constants=dict(law.constants),
        compute=law.compute,
        fitted=law.fitted,
        extrapolates=bool(_outside(law, flops, parameters, tokens)),
        note=law.note,
        source=law.source,
        embeddings_source=None if law.counts == "all parameters" else EMBEDDING_PARAMETERS,
    )


def _outside(law: Law, flops: float | None, parameters: float, tokens: float) -> list[str]:
    """In which quantity, and how far, a point lies outside of the runs that the law was fitted to."""
    found = []
    for name, value in (("flops", flops), ("parameters", parameters), ("tokens", tokens)):
        span: tuple[float, float] | None = getattr(law.fitted, name)
        if span is None or value is None:
            continue
        low, high = span
        if value > high:
            found.append(f"{name} {value / high:.3g} times the largest, {high:.3g}")
        elif value < low:
            found.append(f"{name} {low / value:.3g} times below the smallest, {low:.3g}")
    return found


def _raw_text(tokens: int, inputs: ScalingInputs) -> RawText:
    unique = tokens if inputs.unique_tokens is None else min(tokens, inputs.unique_tokens)
    text = inputs.text
    curated = unique * text.bytes_per_token
    return RawText(
        unique_tokens=unique,
        epochs=tokens / unique,
        bytes_per_token=text.bytes_per_token,
        kept_share_low=text.kept_share_low,
        kept_share_high=text.kept_share_high,
        curated_bytes=round(curated),
        raw_bytes_low=round(curated / text.kept_share_high),
        raw_bytes_high=round(curated / text.kept_share_low),
        formula=_RAW,
        sources=(CHARACTERS_PER_TOKEN, CURATION),
    )


def _repetition(flops: float, unique_tokens: int) -> Repetition:
    found = with_repetition(flops, unique_tokens)
    return Repetition(
        unique_tokens=unique_tokens,
        parameters=round(found.parameters),
        tokens=round(found.tokens),
        epochs=max(found.tokens / unique_tokens, 1.0),
        effective_tokens=round(found.effective_tokens),
        predicted_loss=found.loss,
        loss_without_limit=LAWS["muennighoff-2023"].loss_at_optimum(flops) or found.loss,
        formula=found.formula,
        source=DATA_CONSTRAINED,
    )


def _inference_aware(law: Law, leading: Optimum, inputs: ScalingInputs) -> Alternative:
    loss = leading.predicted_loss or 0.0
    served = float(inputs.inference_tokens or 0)
    parameters, tokens = cheapest_with_inference(law, loss, served)
    training, inference = 6 * parameters * tokens, 2 * parameters * served
    first = 6.0 * leading.parameters * leading.tokens + 2.0 * leading.parameters * served
    return Alternative(
        parameters=round(parameters),
        tokens=round(tokens),
        training_flops=training,
        inference_flops=inference,
        predicted_loss=loss,
        saved_flops_share=max(0.0, 1 - (training + inference) / first),
        formula=f"least 6 * parameters * tokens + 2 * parameters * inference_tokens, with tokens = {TOKENS_FOR_LOSS}",
        source=INFERENCE_AWARE,
    )


def _placed(inputs: ScalingInputs, architecture: Architecture, flops: float) -> PlacedModel:
    tokens, source = inputs.tokens, inputs.tokens_source
    if tokens is None:
        tokens, source = max(1, round(flops / (6 * architecture.active_parameters))), "the budget, as 6ND of this model"
    return place(architecture, tokens=tokens, tokens_source=source, sequence_length=inputs.sequence_length)


def _assumptions(inputs: ScalingInputs) -> list[str]:
    text, found = inputs.text, []
    if text.bytes_per_token == TextInputs().bytes_per_token:
        found.append("bytes_per_token: 3.94, English text with a vocabulary of 128,000 (one byte per character)")
    shares = (text.kept_share_low, text.kept_share_high)
    if shares == (TextInputs().kept_share_low, TextInputs().kept_share_high):
        found.append("kept_share_low and kept_share_high: 0.01 and 0.03 of the raw text survive curation")
    if inputs.architecture is not None:
        found.extend(inputs.architecture.assumptions)
        if inputs.sequence_length is None:
            found.append("sequence_length of the exact count: 2,048, or the longest the model takes if that is shorter")
    return found


def _warnings(inputs: ScalingInputs, leading: Optimum, model: PlacedModel | None) -> list[str]:
    law = LAWS[inputs.law]
    found = []
    if outside := _outside(law, None, leading.parameters, leading.tokens):
        found.append(f"{law.key} extrapolates beyond the runs it was fitted to: {'; '.join(outside)}")
    if law.key == "kaplan-2020":
        found.append(f"{law.key} is {law.note}")
    epochs = leading.tokens / min(leading.tokens, inputs.unique_tokens or leading.tokens)
    if epochs > _FEW_EPOCHS:
        found.append(
            f"{leading.tokens:,} tokens are {epochs:.3g} epochs of the {inputs.unique_tokens:,} unique ones: beyond "
            f"{_FEW_EPOCHS}, repeated tokens are worth less and less; see data_constrained"
        )
    if model is None or inputs.architecture is None:
        return found
    family = inputs.architecture.family.family
    if family != "decoder-only":
        found.append(f"the laws were fitted to decoder-only language models; {model.name} is {family}")
    if model.active_parameters != model.parameters:
        found.append(
            "the laws were fitted to dense models; a mixture of experts is asked about with its active parameters, "
            "and does better than they say"
        )
    if model.exact is not None and not _LIKE_6ND[0] <= model.exact.over_6nd <= _LIKE_6ND[1]:
        found.append(
            f"{model.name} takes {model.exact.over_6nd:.3g} times the 6ND that the laws count, at sequences of "
            f"{model.exact.sequence_length:,} tokens: they do not see that"
        )
    if outside := _outside(law, None, model.active_parameters, model.tokens):
        found.append(f"{model.name} is outside of the runs behind {law.key}: {'; '.join(outside)}")
    return found
