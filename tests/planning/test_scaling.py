"""Compute-optimal training: what the papers print comes out, and what must hold whatever the budget."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import catalog
from app.errors import InvalidInput
from app.planning.architecture import from_config, from_parameters
from app.planning.scaling import ScalingAnswer, ScalingInputs, TextInputs, compute_optimal
from app.planning.scaling_budget import BudgetInputs
from app.planning.scaling_laws import LAWS, Law, LawKey, evaluate
from app.planning.scaling_placement import exact_flops
from app.planning.scaling_search import (
    EXCESS_PARAMETERS_STAR,
    REPEATED_TOKENS_STAR,
    cheapest_with_inference,
    effective_amount,
    with_repetition,
)

PUBLISHED: Mapping[str, list[dict[str, Any]]] = tomllib.loads((Path(__file__).parent / "scaling.toml").read_text())
PARAMETRIC = [law for law in LAWS.values() if law.is_parametric]
MODELS = catalog.load().models
H100 = catalog.load().gpus["h100-sxm-80gb"]

budgets = st.floats(min_value=1e15, max_value=1e30)
every_law = pytest.mark.parametrize("law", LAWS.values(), ids=lambda law: law.key)
parametric_laws = pytest.mark.parametrize("law", PARAMETRIC, ids=lambda law: law.key)


def case(name: str) -> Any:
    rows = PUBLISHED[name]
    return pytest.mark.parametrize("row", rows, ids=[str(row.get("law", name)) for row in rows])


def ask(flops: float = 5.76e23, **more: Any) -> ScalingAnswer:
    return compute_optimal(ScalingInputs(budget=BudgetInputs("flops", flops), **more))


@case("optimum")
def test_published_optima_come_out(row: dict[str, Any]) -> None:
    found = dict(zip(("parameters", "tokens"), LAWS[row["law"]].optimum(row["flops"]), strict=True))
    expected = {name: row[name] for name in found if name in row}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=row["tolerance"])


@case("exponent")
def test_published_exponents_come_out(row: dict[str, Any]) -> None:
    law = LAWS[row["law"]]
    (few, fewer_tokens), (many, more_tokens) = law.optimum(1e20), law.optimum(1e21)
    exponent = evaluate("many / few", {"many": many, "few": few})
    assert exponent == pytest.approx(10 ** row["parameters"], abs=10 ** row["parameters"] * 2.31 * row["tolerance"])
    assert more_tokens / fewer_tokens * exponent == pytest.approx(10, rel=1e-3)


@case("loss")
def test_published_losses_come_out(row: dict[str, Any]) -> None:
    law = LAWS[row["law"]]
    found = law.loss_at_optimum(row["flops"]) if "flops" in row else law.loss_of(row["parameters"], row["tokens"])
    assert found == pytest.approx(row["loss"], rel=row["tolerance"])


@case("ratio")
def test_published_ratios_come_out(row: dict[str, Any]) -> None:
    parameters, tokens = LAWS[row["law"]].optimum(1e22)
    assert parameters / tokens == pytest.approx(row["parameters_per_token"], rel=row["tolerance"])


@case("inference")
def test_the_cheapest_model_to_train_and_serve_is_the_published_one(row: dict[str, Any]) -> None:
    law = replace(LAWS["chinchilla-3"], constants=row["constants"])
    usual = law.value(law.tokens_for_parameters, parameters=row["parameters"])
    loss = law.loss_of(row["parameters"], usual)
    assert loss is not None
    parameters, tokens = cheapest_with_inference(law, loss, row["inference_tokens"])
    assert parameters == pytest.approx(row["cheapest_parameters"], rel=row["tolerance"])
    assert tokens / usual == pytest.approx(row["times_the_tokens"], rel=row["tolerance"])


def test_repeated_tokens_are_worth_less_and_less() -> None:
    unique = 10e9
    assert effective_amount(unique, unique, REPEATED_TOKENS_STAR) == unique  # one epoch
    assert effective_amount(10 * unique, unique, REPEATED_TOKENS_STAR) == pytest.approx(78.14e9, rel=1e-4)  # by hand
    endless = effective_amount(1e6 * unique, unique, REPEATED_TOKENS_STAR)
    assert endless == pytest.approx((1 + 15.387756) * unique)  # "no matter how many times we repeat the data"
    assert effective_amount(1e18, 1e9, EXCESS_PARAMETERS_STAR) == pytest.approx((1 + 5.309743) * 1e9)


def test_the_printed_constants_of_the_parametric_loss() -> None:
    law = LAWS["chinchilla-3"]
    assert dict(law.constants) == {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    assert law.loss_of(70e9, 1.4e12) == pytest.approx(1.69 + 0.0835 + 0.1632, abs=1e-4)


def test_the_names_in_a_request_are_those_of_the_table() -> None:
    assert tuple(LAWS) == get_args(LawKey)


@parametric_laws
@given(flops=budgets, factor=st.floats(min_value=0.01, max_value=100))
def test_no_other_split_of_the_budget_has_less_loss(law: Law, flops: float, factor: float) -> None:
    parameters, tokens = law.optimum(flops)
    best, other = law.loss_of(parameters, tokens), law.loss_of(parameters * factor, tokens / factor)
    assert best is not None
    assert other is not None
    assert other >= best * (1 - 1e-12)


@every_law
@given(flops=budgets, more=st.floats(min_value=1.001, max_value=1e3))
def test_more_budget_buys_more_of_both_and_less_loss(law: Law, flops: float, more: float) -> None:
    (parameters, tokens), (more_parameters, more_tokens) = law.optimum(flops), law.optimum(flops * more)
    assert more_parameters > parameters
    assert more_tokens > tokens
    loss, less_loss = law.loss_at_optimum(flops), law.loss_at_optimum(flops * more)
    assert (loss is None) == (less_loss is None)
    if loss is not None and less_loss is not None:
        assert less_loss < loss


@every_law
@given(flops=budgets)
def test_the_optimum_spends_the_budget_and_is_found_again_from_its_size(law: Law, flops: float) -> None:
    parameters, tokens = law.optimum(flops)
    assert 6 * parameters * tokens == pytest.approx(flops, rel=1e-3)
    assert law.value(law.tokens_for_parameters, parameters=parameters) == pytest.approx(tokens, rel=1e-3)


@given(flops=st.floats(min_value=1e13, max_value=1e31), mfu=st.floats(min_value=0.01, max_value=1))
def test_equal_budgets_in_different_units_agree(flops: float, mfu: float) -> None:
    rate = mfu * 989e12
    rated = {"gpu": H100, "mfu": mfu}
    ways = (
        BudgetInputs("flops", flops),
        BudgetInputs("petaflop_s_days", flops / 8.64e19),
        BudgetInputs("gpu_hours", flops / rate / 3600, **rated),
        BudgetInputs("gpu_hours", flops / rate / 3600, achieved_flops_per_second=rate),
        BudgetInputs("cost_usd", flops / rate / 3600 * 2.5, price_per_gpu_hour_usd=2.5, **rated),
    )
    answers = [compute_optimal(ScalingInputs(budget=way)) for way in ways]
    first = answers[0]
    for answer in answers:
        assert answer.budget.flops == pytest.approx(flops, rel=1e-9)
        assert answer.budget.petaflop_s_days == pytest.approx(flops / 8.64e19, rel=1e-9)
        assert answer.parameters == pytest.approx(first.parameters, rel=1e-9, abs=1)
        assert answer.tokens == pytest.approx(first.tokens, rel=1e-9, abs=1)
    assert answers[1].budget.petaflop_s_days == ways[1].amount
    assert answers[2].budget.gpu_hours == ways[2].amount
    assert answers[4].budget.cost_usd == ways[4].amount


@given(flops=budgets)
def test_every_number_of_a_law_follows_from_its_formula_and_constants(flops: float) -> None:
    for optimum in ask(flops).laws:
        values = {**optimum.constants, "flops": flops, "parameters": optimum.parameters, "tokens": optimum.tokens}
        assert {"parameters", "tokens"} <= set(optimum.formulas)
        for name, formula in optimum.formulas.items():
            assert evaluate(formula, values) == pytest.approx(getattr(optimum, name), rel=1e-4)


def test_the_chosen_law_leads_the_answer_and_its_text() -> None:
    answer = ask(law="chinchilla-1")
    leading = next(optimum for optimum in answer.laws if optimum.law == "chinchilla-1")
    assert (answer.parameters, answer.tokens) == (leading.parameters, leading.tokens)
    assert answer.predicted_loss is None
    assert answer.raw_text.unique_tokens == leading.tokens


def test_raw_text_is_what_curation_leaves_a_hundredth_of() -> None:
    text = ask(6e20, text=TextInputs(4.0, 0.01, 0.04)).raw_text
    assert text.curated_bytes == text.unique_tokens * 4
    assert text.raw_bytes_high == text.curated_bytes * 100
    assert text.raw_bytes_low == text.curated_bytes * 25


def test_an_extrapolating_law_says_how_far() -> None:
    assert not LAWS["besiroglu-2024"].fitted.flops
    inside, outside = ask(1e21), ask(5.76e23)
    assert not any("extrapolates" in warning for warning in inside.warnings)
    assert any("parameters 4.52 times the largest" in warning for warning in outside.warnings)
    by_law = {optimum.law: optimum.extrapolates for optimum in inside.laws}
    assert by_law["besiroglu-2024"] is False
    assert by_law["kaplan-2020"] is True


def test_enough_different_text_changes_nothing_and_too_little_costs() -> None:
    law = LAWS["muennighoff-2023"]
    parameters, tokens = law.optimum(1e22)
    enough = with_repetition(1e22, tokens * 2)
    assert (enough.parameters, enough.tokens) == pytest.approx((parameters, tokens), rel=1e-3)
    assert enough.loss == pytest.approx(law.loss_at_optimum(1e22), rel=1e-9)
    losses = [with_repetition(1e22, tokens / part).loss for part in (1, 4, 16, 64)]
    assert losses == sorted(losses)
    assert losses[1] / losses[0] < 1.01  # four epochs cost almost nothing, says the paper
    scarce = with_repetition(1e22, tokens / 16)
    assert scarce.tokens > tokens  # more epochs of a smaller model, as it advises


@parametric_laws
@given(loss_above=st.floats(min_value=0.01, max_value=2), served=st.floats(min_value=1e6, max_value=1e15))
def test_nothing_near_the_cheapest_model_to_train_and_serve_is_cheaper(
    law: Law, loss_above: float, served: float
) -> None:
    loss = law.constants["E"] + loss_above
    parameters, tokens = cheapest_with_inference(law, loss, served)
    assert law.loss_of(parameters, tokens) == pytest.approx(loss, rel=1e-9)
    cost = 6 * parameters * tokens + 2 * parameters * served
    for factor in (0.99, 1.01):
        size = parameters * factor
        left = loss - law.constants["E"] - law.constants["A"] / size ** law.constants["alpha"]
        if left > 0:
            needed = (law.constants["B"] / left) ** (1 / law.constants["beta"])
            assert 6 * size * needed + 2 * size * served >= cost * (1 - 1e-9)


@pytest.mark.parametrize(
    ("tokens", "verdict"),
    [(10_000_000_000, "under-trained"), (160_000_000_000, "compute-optimal"), (15_000_000_000_000, "over-trained")],
)
def test_a_model_is_placed_by_its_tokens(tokens: int, verdict: str) -> None:
    model = MODELS["meta-llama/Llama-3.1-8B"].architecture
    answer = compute_optimal(ScalingInputs(budget=BudgetInputs(), architecture=model, tokens=tokens))
    assert answer.model is not None
    assert answer.budget.flops == answer.model.flops_6nd == pytest.approx(6 * 8_030_261_248 * tokens)
    placed = {placement.law: placement for placement in answer.model.laws}
    assert placed["besiroglu-2024"].verdict == verdict
    assert placed["besiroglu-2024"].counted_parameters == 8_030_261_248
    assert placed["kaplan-2020"].counted_parameters == 8_030_261_248 - 2 * 128_256 * 4096
    assert placed["kaplan-2020"].predicted_loss is None


@parametric_laws
def test_the_same_loss_for_less_is_on_the_frontier(law: Law) -> None:
    model = MODELS["meta-llama/Llama-3.1-8B"].architecture
    inputs = ScalingInputs(budget=BudgetInputs(), architecture=model, tokens=15_000_000_000_000)
    found = compute_optimal(inputs).model
    assert found is not None
    (placement,) = (placement for placement in found.laws if placement.law == law.key)
    same = placement.same_loss
    assert same is not None
    assert law.loss_of(same.parameters, same.tokens) == pytest.approx(placement.predicted_loss, rel=1e-9)
    assert law.loss_at_optimum(same.training_flops) == pytest.approx(placement.predicted_loss, rel=1e-9)
    assert same.saved_flops_share == pytest.approx(1 - same.training_flops / found.flops_6nd)
    assert same.parameters > placement.counted_parameters  # it is over-trained


def test_exact_operations_of_a_llama_by_hand() -> None:
    model = MODELS["meta-llama/Llama-3.1-8B"].architecture
    hidden, inner, layers, vocabulary, length = 4096, 14336, 32, 128_256, 4096
    projections = layers * (2 * hidden * hidden + 2 * hidden * 1024 + 3 * hidden * inner) + hidden * vocabulary
    scores = layers * 2 * hidden * length
    exact = exact_flops(model, 1000, length)
    assert exact is not None
    assert exact.training_flops == 1000 * 6 * (projections + scores)
    assert evaluate(exact.formula, {**exact.sizes, "tokens": 1000}) == exact.training_flops


@case("counted")
def test_exact_operations_are_those_that_pytorch_counts(row: dict[str, Any]) -> None:
    exact = exact_flops(from_config(row["config"]), row["tokens"], row["tokens"])
    assert exact is not None
    assert exact.training_flops == row["flops"]


def test_operations_of_two_sequences_are_not_counted_by_one_length() -> None:
    model = MODELS["google-t5/t5-base"].architecture
    assert exact_flops(model, 1000) is None
    with pytest.raises(InvalidInput, match="source and target") as refused:
        exact_flops(model, 1000, 512)
    assert refused.value.errors[0].pointer == "/sequence_length"


def test_a_mixture_of_experts_is_asked_about_with_what_a_token_meets() -> None:
    model = MODELS["mistralai/Mixtral-8x7B-v0.1"].architecture
    answer = ask(architecture=model)
    assert answer.model is not None
    assert answer.model.flops_6nd == pytest.approx(6 * model.active_parameters * answer.model.tokens)
    assert answer.model.flops_6nd == pytest.approx(5.76e23, rel=1e-9)
    assert answer.model.exact is not None
    assert answer.model.exact.over_6nd == pytest.approx(1, abs=0.05)
    assert any("mixture of experts" in warning for warning in answer.warnings)


def test_operations_that_the_laws_do_not_see_are_warned_of() -> None:
    model = MODELS["meta-llama/Llama-3.1-8B"].architecture
    short, long = (ask(architecture=model, tokens=10**12, sequence_length=length) for length in (4096, 131_072))
    assert not any("times the 6ND" in warning for warning in short.warnings)
    assert any("times the 6ND" in warning for warning in long.warnings)


def test_inferred_shapes_are_said_to_be() -> None:
    answer = ask(architecture=from_parameters(7_000_000_000))
    assert any("inferred" in assumption for assumption in answer.assumptions)


@pytest.mark.parametrize(
    ("budget", "pointer", "says"),
    [
        (BudgetInputs(), "", "exactly one of"),
        (BudgetInputs("gpu_hours", 1e6), "/gpu_hours", "achieved_flops_per_second"),
        (BudgetInputs("cost_usd", 1e6, gpu=H100, mfu=0.4), "/cost_usd", "price_per_gpu_hour_usd"),
        (BudgetInputs("flops", 1e20, mfu=0.4), "/mfu", "needs gpu"),
        (BudgetInputs("flops", 1e20, format="fp8"), "/format", "needs gpu"),
        (BudgetInputs("gpu_hours", 1e6, gpu=H100), "/gpu", "needs mfu"),
        (BudgetInputs("gpu_hours", 1e6, gpu=H100, mfu=0.4, format="nf4"), "/format", "bf16"),
        (BudgetInputs("flops", 1e20, price_per_gpu_hour_usd=2.0), "/price_per_gpu_hour_usd", "needs gpu"),
        (BudgetInputs("gpu_hours", 1, gpu=H100, mfu=0.4, achieved_flops_per_second=1e14), "/mfu", "not both"),
        (BudgetInputs("gpu_hours", 1, gpu=H100, achieved_flops_per_second=1e16), "/achieved_flops_per_second", "peak"),
        (BudgetInputs("flops", 1e6), "/flops", "1e+12"),
        (BudgetInputs("petaflop_s_days", 1e15), "/petaflop_s_days", "1e+32"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_budget_that_cannot_be_read_is_refused(budget: BudgetInputs, pointer: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        compute_optimal(ScalingInputs(budget=budget))
    assert refused.value.errors[0].pointer == pointer
    assert says in refused.value.detail


def test_a_law_without_a_loss_cannot_trade_inference() -> None:
    with pytest.raises(InvalidInput, match="besiroglu-2024") as refused:
        ask(law="chinchilla-1", inference_tokens=10**12)
    assert refused.value.errors[0].pointer == "/inference_tokens"
    saved = ask(inference_tokens=10**13).inference_aware
    assert saved is not None
    assert saved.saved_flops_share > 0.2
    assert saved.parameters < ask().parameters


def test_every_law_says_what_it_counts_where_it_was_fitted_and_where_it_is_from() -> None:
    for law in LAWS.values():
        assert law.source.url.startswith("https://arxiv.org/")
        assert law.compute
        assert any(getattr(law.fitted, field.name) for field in fields(law.fitted))
