"""Polynomials over named sizes: what they print is what they evaluate."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.planning.sizes import Series, Size, ceil_div, evaluate, largest, named, reaches, smallest, total

NAMES = ("a", "b", "c")
leaves = st.integers(-9, 9).map(Size.of) | st.sampled_from(NAMES).map(named)
polynomials = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] - pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
    ),
    max_leaves=12,
)
values = st.fixed_dictionaries({name: st.integers(0, 50) for name in NAMES})


@given(polynomials, polynomials, values)
def test_arithmetic_on_formulas_is_arithmetic_on_numbers(x: Size, y: Size, sizes: dict[str, int]) -> None:
    a, b = x.evaluate(sizes), y.evaluate(sizes)
    assert (x + y).evaluate(sizes) == a + b
    assert (x - y).evaluate(sizes) == a - b
    assert (x * y).evaluate(sizes) == a * b
    assert (x * 3).evaluate(sizes) == 3 * a


@given(polynomials, values)
def test_a_printed_formula_is_an_expression_with_the_same_value(x: Size, sizes: dict[str, int]) -> None:
    assert evaluate(str(x), sizes) == x.evaluate(sizes) == eval(str(x), {}, sizes)  # noqa: S307 - our own text


@given(st.lists(polynomials, max_size=5), st.lists(values, min_size=1, max_size=3))
def test_a_series_gives_each_of_its_sizes_for_numbers_and_arrays(amounts: list[Size], points: list[Any]) -> None:
    series = Series(amounts)
    assert series.names == {name for amount in amounts for name in amount.names}
    for sizes in points:
        assert series.evaluate(sizes) == [amount.evaluate(sizes) for amount in amounts]
    arrays = {name: np.array([sizes[name] for sizes in points]) for name in NAMES}
    for found, amount in zip(series.evaluate(arrays), amounts, strict=True):
        assert np.array_equal(np.broadcast_to(found, len(points)), [amount.evaluate(sizes) for sizes in points])


def test_formulas_are_printed_factored() -> None:
    batch, length, hidden, inner = map(named, ("micro_batch_size", "sequence_length", "hidden_size", "width"))
    amount = batch * length * (hidden * 16 + inner * 8)
    assert str(amount) == "8 * micro_batch_size * sequence_length * (2 * hidden_size + width)"
    assert str(total([])) == "0"
    assert str(Size.of(7)) == "7"


@given(st.integers(0, 10**12), st.integers(1, 10**6))
def test_shards_hold_the_whole_and_less_than_one_element_more_each(amount: int, shards: int) -> None:
    shard = ceil_div(named("amount"), named("shards")).evaluate({"amount": amount, "shards": shards})
    assert amount <= shard * shards < amount + shards


def test_a_threshold_is_reached_or_not_for_numbers_and_arrays() -> None:
    threshold = reaches(named("a") * 2, 6)
    assert str(threshold) == "reaches(2 * a, 6)"
    assert [threshold.evaluate({"a": a}) for a in (2, 3, 4)] == [0, 1, 1]
    assert threshold.evaluate({"a": np.array([2, 3, 4])}).tolist() == [0, 1, 1]


def test_largest_and_smallest() -> None:
    sizes = {"a": 3, "b": 5}
    assert largest(named("a"), named("b")).evaluate(sizes) == 5
    assert smallest(named("a"), Size.of(4)).evaluate(sizes) == 3
