"""The two questions about a budget that have no closed form: repeated data, and inference to come."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, log, sqrt

from app.planning.scaling_laws import LAWS, TOKENS_FOR_LOSS, Law, evaluate

EFFECTIVE = "unique + unique * star * (1 - exp(-(amount / unique - 1) / star))"
"""What `amount` is worth of which only `unique` is not repetition; `star` says how fast repetition loses its worth."""

REPEATED_TOKENS_STAR = 15.387756
EXCESS_PARAMETERS_STAR = 5.309743

_STEPS = 400
_GOLDEN = (sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Repeated:
    """The best training with a limit on different tokens."""

    parameters: float
    tokens: float
    effective_tokens: float
    loss: float
    formula: str


def with_repetition(flops: float, unique_tokens: float) -> Repeated:
    """The parameters and tokens of least loss for a budget in operations, when only `unique_tokens` are different.

    Repeated tokens and parameters beyond what is optimal for the unique ones are worth less and less (Muennighoff et
    al. 2023, equations 5 and 6).
    """
    law = LAWS["muennighoff-2023"]

    def worth(parameters: float) -> tuple[float, float]:
        tokens = flops / (6 * parameters)
        unique = min(unique_tokens, tokens)
        enough = min(_parameters_for(law, unique), parameters)
        return effective_amount(parameters, enough, EXCESS_PARAMETERS_STAR), effective_amount(
            tokens, unique, REPEATED_TOKENS_STAR
        )

    def loss(parameters: float) -> float:
        parameters_worth, tokens_worth = worth(parameters)
        return law.value(law.loss or "", parameters=parameters_worth, tokens=tokens_worth)

    unlimited, _ = law.optimum(flops)
    parameters = _least(loss, unlimited / 1e4, min(unlimited * 1e4, flops / 6))
    return Repeated(
        parameters=parameters,
        tokens=flops / (6 * parameters),
        effective_tokens=worth(parameters)[1],
        loss=loss(parameters),
        formula=(
            f"least {law.loss} over parameters with tokens = flops / (6 * parameters), each first made {EFFECTIVE}; "
            f"star is {REPEATED_TOKENS_STAR} for tokens, {EXCESS_PARAMETERS_STAR} for parameters"
        ),
    )


def cheapest_with_inference(law: Law, loss: float, inference_tokens: float) -> tuple[float, float]:
    """Parameters and training tokens that reach `loss` with the fewest operations of training and inference together,
    6ND + 2N per token served (Sardana et al. 2024, equation 3). `law` is parametric and `loss` above its E.
    """
    fewest = (law.constants["A"] / (loss - law.constants["E"])) ** (1 / law.constants["alpha"])

    def cost(parameters: float) -> float:
        return parameters * (6 * law.value(TOKENS_FOR_LOSS, parameters=parameters, loss=loss) + 2 * inference_tokens)

    parameters = _least(cost, fewest * (1 + 1e-6), fewest * 1e6)
    return parameters, law.value(TOKENS_FOR_LOSS, parameters=parameters, loss=loss)


def _parameters_for(law: Law, tokens: float) -> float:
    """Parameters for which `tokens` are compute-optimal, by a law whose two exponents are equal."""
    one = law.value(law.tokens_for_parameters, parameters=1.0)
    return tokens / one


def effective_amount(amount: float, unique: float, star: float) -> float:
    """What `amount` of tokens or parameters is worth when only `unique` of it is not repetition or excess."""
    return evaluate(EFFECTIVE, {"amount": amount, "unique": unique, "star": star})


def _least(value: Callable[[float], float], low: float, high: float) -> float:
    """Where `value` is least between two positive bounds: the best of a logarithmic grid, then a golden section around
    it.
    """
    step = log(high / low) / _STEPS
    best = min(range(_STEPS + 1), key=lambda place: value(low * exp(step * place)))
    left, right = log(low) + step * max(best - 1, 0), log(low) + step * min(best + 1, _STEPS)
    while right - left > 1e-9:
        inner, outer = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        if value(exp(inner)) <= value(exp(outer)):
            right = outer
        else:
            left = inner
    return exp((left + right) / 2)
