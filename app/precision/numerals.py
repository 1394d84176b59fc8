"""Numbers as people write them, exactly: decimal or hexadecimal text, and the three values that no numeral has.

`NaN`, `Infinity` and `-Infinity` are spelled so, going in and coming out; zero has a sign where one is written.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from fractions import Fraction
from typing import Self

import numpy as np

from app.precision.rounding import Mask, Values, to_odd

MAX_LENGTH = 1_000
MAX_EXPONENT = 99_999

_SPECIAL = ("NaN", "Infinity", "-Infinity")
_DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE]([+-]?\d+))?", re.ASCII)
_HEXADECIMAL = re.compile(
    r"([+-]?)0[xX](?=\.?[0-9a-fA-F])([0-9a-fA-F]*)(?:\.([0-9a-fA-F]*))?(?:[pP]([+-]?\d+))?", re.ASCII
)
_DIGITS = 2_500
"""More than any difference between a numeral of `MAX_LENGTH` digits and a float64 needs to be told to 17 digits."""

_EXACT = Context(prec=min(_DIGITS, MAX_PREC), Emax=MAX_EMAX, Emin=MIN_EMIN)

Exact = Decimal | Fraction


class WrittenNumber(float):
    """A number as it was written: a float, for whoever needs no more, and its text."""

    text: str

    def __new__(cls, text: str) -> Self:
        """The number that `text` says."""
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass(frozen=True, slots=True)
class Numerals:
    """Numbers as read: each exact value (None for NaN and infinities), and the float64 nearest to it."""

    exact: tuple[Exact | None, ...]
    nearest: Values
    inexact: Mask
    beyond: Mask

    @property
    def odd(self) -> Values:
        """The numbers as float64, rounded to odd: rounding these once more rounds the exact numbers once."""
        return to_odd(self.nearest, self.inexact, self.beyond)

    def distances(self, values: Values) -> Values:
        """How far each of `values` is from the exact number: NaN where either is not finite, infinite where no float64
        says it.
        """
        found: list[float] = []
        rows = zip(self.exact, self.inexact.tolist(), self.nearest.tolist(), values.tolist(), strict=True)
        for exact, inexact, nearest, value in rows:
            if exact is None or not math.isfinite(value):
                found.append(math.nan)
            elif not inexact:
                found.append(abs(nearest - value) if nearest != value else 0.0)
            elif isinstance(exact, Decimal):
                found.append(abs(float(_EXACT.subtract(exact, Decimal(value)))))
            else:
                found.append(_nearest(abs(exact - Fraction(value))))
        return np.array(found)


def read(numbers: Sequence[int | float | str]) -> Numerals:
    """The numbers, exactly: an integer or a float as it is, a text as the number it says.

    Raises ValueError for a text that is no number, with what can be written instead; its first argument is the index.
    """
    exact: list[Exact | None] = []
    nearest = np.empty(len(numbers))
    for index, number in enumerate(numbers):
        try:
            value, nearest[index] = _one(number)
        except ValueError as error:
            raise ValueError(index, str(error)) from None
        exact.append(value)
    flags = [_flags(value, float(near)) for value, near in zip(exact, nearest, strict=True)]
    inexact, beyond = (np.array(column, dtype=np.bool_) for column in zip(*flags, strict=True))
    return Numerals(tuple(exact), nearest, inexact, beyond)


def _flags(exact: Exact | None, nearest: float) -> tuple[bool, bool]:
    if exact is None or exact == nearest:
        return False, False
    return True, nearest > exact if nearest > 0 else nearest < exact if nearest < 0 else False


def _one(number: int | float | str) -> tuple[Exact | None, float]:
    if isinstance(number, str):
        return _read_text(number)
    if isinstance(number, WrittenNumber):
        return _read_text(number.text)
    if isinstance(number, float) and not math.isfinite(number):
        return None, number
    exact = Decimal(number)
    return exact, float(exact)


def _read_text(text: str) -> tuple[Exact | None, float]:
    if text in _SPECIAL:
        return None, float(text)
    if len(text) > MAX_LENGTH:
        raise ValueError(f"should have at most {MAX_LENGTH:,} characters, not {len(text):,}")
    if found := _DECIMAL.fullmatch(text):
        _check_exponent(found[1])
        return Decimal(text), float(text)
    if found := _HEXADECIMAL.fullmatch(text):
        sign, whole, fraction, power = found[1], found[2], found[3] or "", found[4]
        _check_exponent(power)
        magnitude = Fraction(int(whole + fraction, 16)) * Fraction(2) ** (int(power or 0) - 4 * len(fraction))
        nearest = _nearest(magnitude)
        return (-magnitude, -nearest) if sign == "-" else (magnitude, nearest)
    raise ValueError("should be a number: decimal such as 0.1 or -1e-45, hexadecimal such as 0x1.8p3, NaN or -Infinity")


def _nearest(magnitude: Fraction) -> float:
    try:
        return float(magnitude)
    except OverflowError:
        return math.inf


def _check_exponent(exponent: str | None) -> None:
    if exponent is not None and (len(exponent) > 6 or abs(int(exponent)) > MAX_EXPONENT):
        raise ValueError(f"should have an exponent between -{MAX_EXPONENT:,} and {MAX_EXPONENT:,}")
