"""The published laws of compute-optimal training, as one table.

Each law says, for a budget of floating-point operations, how many parameters to train on how many tokens; some also say
which loss comes out. A law is its formulas and the constants they name: the same text that an answer prints is what is
evaluated, so that a formula and its number cannot disagree. Names in formulas: `flops` (operations of the training
run), `parameters` (those that the law counts), `tokens`, `loss` (nats per token), and the law's constants.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp
from types import CodeType, MappingProxyType
from typing import Literal

from app.planning.sources import (
    CHINCHILLA_ENVELOPE,
    CHINCHILLA_ISOFLOP,
    CHINCHILLA_PARAMETRIC,
    CHINCHILLA_REPLICATION,
    DATA_CONSTRAINED,
    DEEPSEEK_SCALING,
    KAPLAN,
    LLAMA_3_SCALING,
)
from app.sources import Source

PETAFLOP_S_DAY_FLOPS = 8.64e19
"""Operations of one petaFLOP/s-day: 10^15 per second for 86,400 seconds."""

LawKey = Literal[
    "kaplan-2020",
    "chinchilla-1",
    "chinchilla-2",
    "chinchilla-3",
    "chinchilla-3-unrounded",
    "besiroglu-2024",
    "muennighoff-2023",
    "deepseek-2024",
    "llama-3",
]
Counts = Literal["all parameters", "parameters without embeddings"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the runs behind a law spanned; null where the paper does not say. Outside of it the law extrapolates."""

    flops: tuple[float, float] | None = None
    parameters: tuple[float, float] | None = None
    tokens: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Law:
    """One published law. Formulas are Python expressions over `flops`, `parameters`, `tokens` and `constants`."""

    key: LawKey
    title: str
    counts: Counts
    """Which parameters it speaks of."""
    compute: str
    """Which operations it counts."""
    constants: Mapping[str, float]
    parameters: str
    """Compute-optimal parameters for `flops`."""
    tokens: str
    """Compute-optimal tokens for `flops` and the `parameters` above."""
    tokens_for_parameters: str
    """Tokens for which `parameters` are compute-optimal."""
    loss: str | None
    """Loss of `parameters` trained on `tokens`, or of the optimum for `flops`; None where the law predicts none."""
    fitted: Fitted
    note: str
    source: Source

    @property
    def is_parametric(self) -> bool:
        """Whether it has a loss for any parameters and tokens, E + A/N^α + B/D^β, and not for optima only."""
        return "E" in self.constants

    def value(self, formula: str, **values: float) -> float:
        """What one of its formulas gives for these values and its constants."""
        return evaluate(formula, {**self.constants, **values})

    def optimum(self, flops: float) -> tuple[float, float]:
        """Compute-optimal parameters, as the law counts them, and tokens for a budget in operations."""
        parameters = self.value(self.parameters, flops=flops)
        return parameters, self.value(self.tokens, flops=flops, parameters=parameters)

    def loss_at_optimum(self, flops: float) -> float | None:
        """The least loss for a budget in nats per token, or None where the law predicts none."""
        parameters, tokens = self.optimum(flops)
        if self.loss is None:
            return None
        return self.value(self.loss, flops=flops, parameters=parameters, tokens=tokens)

    def loss_of(self, parameters: float, tokens: float) -> float | None:
        """The loss of a model that need not be optimal; None unless the law is parametric."""
        if self.loss is None or not self.is_parametric:
            return None
        return self.value(self.loss, parameters=parameters, tokens=tokens)


@lru_cache(maxsize=256)
def _compiled(formula: str) -> CodeType:
    return compile(formula, "<formula>", "eval")


def evaluate(formula: str, values: Mapping[str, float]) -> float:
    """What a printed formula gives for these values. NameError on a missing name."""
    return float(eval(_compiled(formula), {"__builtins__": {}, "exp": exp}, dict(values)))  # noqa: S307 - our own text


SIX_ND = "6 * parameters * tokens: every parameter's multiply-adds, forward and backward; attention scores are not in"

_RATIO = "(alpha * A / (beta * B)) ** (1 / (alpha + beta))"
_REST = "flops / (6 * parameters)"

SAME_LOSS_FLOPS = (
    f"6 * ((A * ({_RATIO}) ** -alpha + B * ({_RATIO}) ** beta) / (loss - E)) ** ((alpha + beta) / (alpha * beta))"
)
"""The least operations that reach `loss`: a parametric law's loss at the optimum, solved for `flops`."""

TOKENS_FOR_LOSS = "(B / (loss - E - A / parameters ** alpha)) ** (1 / beta)"
"""Tokens after which `parameters` reach `loss`, by a parametric law."""

_CHINCHILLA_RUNS = Fitted(parameters=(70e6, 16e9), tokens=(5e9, 500e9))


def _parametric(
    key: LawKey,
    title: str,
    constants: tuple[float, float, float, float, float],
    fitted: Fitted,
    note: str,
    source: Source,
) -> Law:
    return Law(
        key=key,
        title=title,
        counts="all parameters",
        compute=SIX_ND,
        constants=MappingProxyType(dict(zip(("E", "A", "B", "alpha", "beta"), constants, strict=True))),
        parameters=f"{_RATIO} * (flops / 6) ** (beta / (alpha + beta))",
        tokens=_REST,
        tokens_for_parameters="(beta * B * parameters ** alpha / (alpha * A)) ** (1 / beta)",
        loss="E + A / parameters ** alpha + B / tokens ** beta",
        fitted=fitted,
        note=note,
        source=source,
    )


def _power(
    key: LawKey, title: str, factor: float, exponent: float, *, fitted: Fitted, note: str, source: Source
) -> Law:
    return Law(
        key=key,
        title=title,
        counts="all parameters",
        compute=SIX_ND,
        constants=MappingProxyType({"factor": factor, "exponent": exponent}),
        parameters="factor * flops ** exponent",
        tokens=_REST,
        tokens_for_parameters="(parameters / factor) ** (1 / exponent) / (6 * parameters)",
        loss=None,
        fitted=fitted,
        note=note,
        source=source,
    )


_ALL: tuple[Law, ...] = (
    Law(
        key="kaplan-2020",
        title="Kaplan et al. 2020",
        counts="parameters without embeddings",
        compute=(
            f"{SIX_ND}; trained at the critical batch size, which takes twice the least operations C_min that the law "
            "is stated in"
        ),
        constants=MappingProxyType(
            {
                "N_e": 1.3e9,
                "p_N": 0.73,
                "C_c": 3.1e8,
                "alpha_C": 0.050,
                "batch_overhead": 2.0,
                "petaflop_s_day": PETAFLOP_S_DAY_FLOPS,
            }
        ),
        parameters="N_e * (flops / (batch_overhead * petaflop_s_day)) ** p_N",
        tokens=_REST,
        tokens_for_parameters="batch_overhead * petaflop_s_day * (parameters / N_e) ** (1 / p_N) / (6 * parameters)",
        loss="(C_c * batch_overhead * petaflop_s_day / flops) ** alpha_C",
        fitted=Fitted(parameters=(768, 1.5e9), tokens=(22e6, 23e9)),
        note=(
            "for comparison: it asks for models too large and tokens too few, because small models were counted "
            "without embeddings and trained under one learning-rate schedule (Hoffmann et al. 2022; Pearce, Song 2024)"
        ),
        source=KAPLAN,
    ),
    _power(
        "chinchilla-1",
        "Chinchilla, approach 1 (envelope of training curves)",
        0.099349,
        0.498092,
        fitted=Fitted(parameters=(70e6, 10e9), tokens=(5e9, 500e9)),
        note=(
            "the paper prints the exponent as 0.50 and no factor; both are the least-squares line through the rows of "
            "its table 3 but that of 67 billion, which is printed in round numbers"
        ),
        source=CHINCHILLA_ENVELOPE,
    ),
    _power(
        "chinchilla-2",
        "Chinchilla, approach 2 (IsoFLOP profiles)",
        0.145574,
        0.489927,
        fitted=Fitted(flops=(6e18, 3e21), parameters=(70e6, 16e9), tokens=(5e9, 500e9)),
        note=(
            "the paper prints the exponent as 0.49 and no factor; both are the least-squares line through the rows of "
            "its table A3 but that of 67 billion, which lies off the line of the others"
        ),
        source=CHINCHILLA_ISOFLOP,
    ),
    _parametric(
        "chinchilla-3",
        "Chinchilla, approach 3 (parametric loss) as printed",
        (1.69, 406.4, 410.7, 0.34, 0.28),
        _CHINCHILLA_RUNS,
        (
            "the constants of equation 10 are rounded: with them Gopher's budget gives 32 billion parameters, with "
            "those before rounding the paper's own 40 billion (chinchilla-3-unrounded); besiroglu-2024 corrects the fit"
        ),
        CHINCHILLA_PARAMETRIC,
    ),
    _parametric(
        "chinchilla-3-unrounded",
        "Chinchilla, approach 3 (parametric loss) before rounding",
        (1.6934, 406.4, 410.7, 0.3392, 0.2849),
        _CHINCHILLA_RUNS,
        "what figure 4 and table A3 of the paper follow; its optimizer stopped early, which besiroglu-2024 corrects",
        CHINCHILLA_REPLICATION,
    ),
    _parametric(
        "besiroglu-2024",
        "Chinchilla, approach 3 as corrected by Besiroglu et al. 2024",
        (1.8172, 482.01, 2085.43, 0.3478, 0.3658),
        _CHINCHILLA_RUNS,
        (
            "agrees with approaches 1 and 2 on about 20 tokens per parameter; standard errors are 0.03 for E, 125 for "
            "A, 1293 for B, 0.02 for both exponents"
        ),
        CHINCHILLA_REPLICATION,
    ),
    _parametric(
        "muennighoff-2023",
        "Muennighoff et al. 2023, on C4 without repetition",
        (1.86914, 520.825, 1487.72, 0.3526596, 0.3526596),
        Fitted(parameters=(7e6, 9e9), tokens=(1e8, 900e9)),
        "exponents were held equal; with `unique_tokens`, its decay of repeated tokens is what `data_constrained` uses",
        DATA_CONSTRAINED,
    ),
    Law(
        key="deepseek-2024",
        title="DeepSeek LLM",
        counts="parameters without embeddings",
        compute="M * tokens, with M the operations per token without the vocabulary's, attention scores included",
        constants=MappingProxyType({"m": 0.1715, "a": 0.5243, "d": 5.8316, "b": 0.4757}),
        parameters="m * flops ** a / 6",
        tokens="d * flops ** b",
        tokens_for_parameters="d * (6 * parameters / m) ** (b / a)",
        loss=None,
        fitted=Fitted(flops=(1e17, 3e20)),
        note="the law speaks of M, operations per token; M has attention in, so M / 6 is the most parameters it allows",
        source=DEEPSEEK_SCALING,
    ),
    Law(
        key="llama-3",
        title="Llama 3",
        counts="all parameters",
        compute=SIX_ND,
        constants=MappingProxyType({"A": 0.29, "alpha": 0.53}),
        parameters="flops ** (1 - alpha) / (6 * A)",
        tokens=_REST,
        tokens_for_parameters="A * (6 * A * parameters) ** (alpha / (1 - alpha))",
        loss=None,
        fitted=Fitted(flops=(6e18, 1e22), parameters=(40e6, 16e9)),
        note=(
            "the printed constants are rounded and give 10.5 trillion tokens at 3.8e25 operations, where the paper "
            "itself projects 402 billion parameters on 16.55 trillion"
        ),
        source=LLAMA_3_SCALING,
    ),
)

LAWS: Mapping[LawKey, Law] = MappingProxyType({law.key: law for law in _ALL})
"""All laws by key, oldest first within a line of work."""
