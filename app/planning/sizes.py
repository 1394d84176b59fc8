"""Amounts as polynomials over named sizes, so that a formula and its number cannot disagree.

A `Size` is built with ordinary arithmetic from names (`sequence_length`), prints as the formula people read, and
evaluates on integers for one layout or on NumPy int64 arrays for a whole grid of layouts. Parameters, tensor elements,
bytes and floating-point operations are all Sizes.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, reduce
from itertools import accumulate, pairwise
from math import gcd
from types import CodeType
from typing import Any, TypeAlias

import numpy as np

Sizes: TypeAlias = Mapping[str, Any]
"""Values by name: `int`, or NumPy int64 arrays of one shape."""

_NAME = re.compile(r"[a-z][a-z_0-9]*\b(?!\()")
_PRINTED_FIRST = ("num_hidden_layers", "micro_batch_size", "sequence_length")


def ceil_div_numbers(amount: Any, divisor: Any) -> Any:
    """The smallest whole number of shards that holds `amount`, for integers and integer arrays."""
    return -(-amount // divisor)


def largest_number(*amounts: Any) -> Any:
    """The largest of some integers, or elementwise of some arrays."""
    if any(isinstance(amount, np.ndarray) for amount in amounts):
        return reduce(np.maximum, amounts)
    return max(amounts)


def smallest_number(*amounts: Any) -> Any:
    """The smallest of some integers, or elementwise of some arrays."""
    if any(isinstance(amount, np.ndarray) for amount in amounts):
        return reduce(np.minimum, amounts)
    return min(amounts)


def reaches_number(amount: Any, bound: Any) -> Any:
    """1 where `amount` is at least `bound`, else 0: for integers and integer arrays."""
    return (amount >= bound) * 1


_FUNCTIONS: dict[str, Callable[..., Any] | dict[str, Any]] = {
    "__builtins__": {},
    "ceil_div": ceil_div_numbers,
    "max": largest_number,
    "min": smallest_number,
    "reaches": reaches_number,
}


class Size:
    """A polynomial with integer coefficients over named sizes, such as `2 * micro_batch_size * sequence_length`.

    Each term maps a sorted tuple of factors to its coefficient; a factor is a name or a call such as `ceil_div(a, b)`.
    """

    __slots__ = ("_code", "_hash", "_terms", "_text")

    def __init__(self, terms: Mapping[tuple[str, ...], int]) -> None:
        self._terms = {factors: coefficient for factors, coefficient in terms.items() if coefficient}
        self._hash: int | None = None
        self._text: str | None = None
        self._code: CodeType | None = None

    @classmethod
    def of(cls, value: "int | Size") -> "Size":
        """A Size from a Size or a plain integer."""
        return value if isinstance(value, Size) else cls({(): value})

    def __add__(self, other: "int | Size") -> "Size":
        terms = dict(self._terms)
        for factors, coefficient in Size.of(other)._terms.items():
            terms[factors] = terms.get(factors, 0) + coefficient
        return Size(terms)

    __radd__ = __add__

    def __sub__(self, other: "int | Size") -> "Size":
        terms = dict(self._terms)
        for factors, coefficient in Size.of(other)._terms.items():
            terms[factors] = terms.get(factors, 0) - coefficient
        return Size(terms)

    def __mul__(self, other: "int | Size") -> "Size":
        terms: dict[tuple[str, ...], int] = {}
        for factors, coefficient in self._terms.items():
            for more, times in Size.of(other)._terms.items():
                key = tuple(sorted(factors + more, key=_reading_order))
                terms[key] = terms.get(key, 0) + coefficient * times
        return Size(terms)

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Size) and self._terms == other._terms

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = hash(frozenset(self._terms.items()))
        return self._hash

    def __bool__(self) -> bool:
        return bool(self._terms)

    def __repr__(self) -> str:
        return f"Size({self})"

    def __str__(self) -> str:
        """The formula, factored: `4 * micro_batch_size * sequence_length * (2 * hidden_size + vocab_size)`."""
        if self._text is None:
            self._text = _factored(self._terms)
        return self._text

    @property
    def names(self) -> frozenset[str]:
        """The names it is made of."""
        return frozenset(name for factors in self._terms for factor in factors for name in _NAME.findall(factor))

    def renamed(self, names: Mapping[str, str]) -> "Size":
        """The same amount over other names: `{"vocab_size": "vocab_size_per_rank"}`."""
        if not names or self.names.isdisjoint(names):
            return self
        terms: dict[tuple[str, ...], int] = {}
        for factors, coefficient in self._terms.items():
            changed = (_NAME.sub(lambda found: names.get(found[0], found[0]), factor) for factor in factors)
            key = tuple(sorted(changed, key=_reading_order))
            terms[key] = terms.get(key, 0) + coefficient
        return Size(terms)

    def covers(self, other: "Size") -> bool:
        """Whether it is at least `other` whatever the sizes are, as long as none is negative: term by term."""
        mine, theirs = self._terms, other._terms
        return all(mine.get(factors, 0) >= coefficient for factors, coefficient in theirs.items()) and all(
            coefficient >= 0 for factors, coefficient in mine.items() if factors not in theirs
        )

    def evaluate(self, sizes: Sizes) -> Any:
        """The number for these sizes: an int, or an int64 array where they are arrays. KeyError on a missing name."""
        if self._code is None:
            self._code = _compiled(_summed(self._terms))
        return eval(self._code, _FUNCTIONS, sizes)  # noqa: S307 - compiled from our own terms


class Series:
    """Sizes that are evaluated together: each as what differs from the one before, and products of names only once.
    Cheap where neighbours are alike, as the moments of a step are.
    """

    __slots__ = ("_code", "names")

    def __init__(self, amounts: Iterable[Size]) -> None:
        steps = [after - before for before, after in pairwise((Size({}), *amounts))]
        products = dict.fromkeys(factors for step in steps for factors in step._terms)
        places = {factors: f"product_{place}" for place, factors in enumerate(products)}
        sums = [_summed({(places[factors],): times for factors, times in step._terms.items()}) for step in steps]
        values = ["*".join(factors) or "1" for factors in products]
        self.names = Size(dict.fromkeys(products, 1)).names
        """The names that they are made of."""
        self._code = _compiled(f"(lambda {', '.join(places.values())}: [{', '.join(sums)}])({', '.join(values)})")

    def evaluate(self, sizes: Sizes) -> list[Any]:
        """The number of each, as `Size.evaluate` gives it."""
        return list(accumulate(eval(self._code, _FUNCTIONS, sizes)))  # noqa: S307 - compiled from our own terms


def named(name: str) -> Size:
    """The size with this name, as a request or a model's shapes spell it."""
    return Size({(name,): 1})


def total(amounts: Iterable[Size]) -> Size:
    """The sum of some sizes; zero for none."""
    return reduce(Size.__add__, amounts, Size({}))


def ceil_div(amount: Size, divisor: Size) -> Size:
    """`amount` cut into `divisor` equal shards, rounded up: the one place where bytes or elements become a shard."""
    return named(f"ceil_div({amount}, {divisor})")


def smallest(*amounts: Size) -> Size:
    """The smallest of some sizes."""
    return named(f"min({', '.join(map(str, amounts))})")


def largest(*amounts: Size) -> Size:
    """The largest of some sizes."""
    return named(f"max({', '.join(map(str, amounts))})")


def reaches(amount: Size, bound: "int | Size") -> Size:
    """1 where `amount` is at least `bound`, else 0."""
    return named(f"reaches({amount}, {bound})")


def evaluate(formula: str, sizes: Sizes) -> Any:
    """What a printed formula gives for these sizes: the same arithmetic that made the answer's number."""
    return eval(_compiled(formula), _FUNCTIONS, sizes)  # noqa: S307 - formulas are printed by Size only


@lru_cache(maxsize=8192)
def _compiled(formula: str) -> CodeType:
    return compile(formula, "<formula>", "eval")


def _reading_order(factor: str) -> tuple[int, str]:
    return (_PRINTED_FIRST.index(factor) if factor in _PRINTED_FIRST else len(_PRINTED_FIRST)), factor


def _summed(terms: Mapping[tuple[str, ...], int]) -> str:
    """The sum of products as it stands: quick to print, for evaluation only."""
    return " + ".join("*".join((str(coefficient), *factors)) for factors, coefficient in terms.items()) or "0"


def _factored(terms: Mapping[tuple[str, ...], int]) -> str:
    """Horner-like: what all terms share comes first, then the factor that most of them share, again and again."""
    if not terms:
        return "0"
    if len(terms) == 1:
        ((factors, coefficient),) = terms.items()
        return " * ".join([*([str(coefficient)] if coefficient != 1 or not factors else []), *factors])
    divisor = 1 if () in terms else gcd(*terms.values())
    shared = [factor for factor in _factors(terms) if all(factor in factors for factors in terms)]
    if divisor != 1 or shared:
        inner = {_without(factors, shared): coefficient // divisor for factors, coefficient in terms.items()}
        outer = " * ".join([*([str(divisor)] if divisor != 1 else []), *shared])
        return f"{outer} * ({_factored(inner)})"
    commonest = max(_factors(terms), key=lambda factor: sum(factor in factors for factors in terms))
    having = {factors: coefficient for factors, coefficient in terms.items() if commonest in factors}
    if len(having) > 1:
        others = {factors: coefficient for factors, coefficient in terms.items() if factors not in having}
        return _sum([_factored(having), _factored(others)])
    return _sum([_factored({factors: coefficient}) for factors, coefficient in terms.items()])


def _factors(terms: Mapping[tuple[str, ...], int]) -> list[str]:
    return sorted({factor for factors in terms for factor in factors}, key=_reading_order)


def _without(factors: tuple[str, ...], shared: list[str]) -> tuple[str, ...]:
    rest = list(factors)
    for factor in shared:
        rest.remove(factor)
    return tuple(rest)


def _sum(parts: list[str]) -> str:
    return " + ".join(parts).replace("+ -", "- ")
