"""Numbers into formats, exactly: from the numeral to the format they are in, and from there to others, bit by bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import starmap
from math import isinf, prod
from typing import Literal

import numpy as np

from app.errors import InvalidInput
from app.precision.definition import Format
from app.precision.layouts import CodebookLayout, FixedPointLayout, FloatLayout, Layout
from app.precision.numerals import Numerals, WrittenNumber, read
from app.precision.quantize import Kept, Scales, plan, takes
from app.precision.rounding import Codes, Mask, Rounded, Values, round_to, units_in_the_last_place
from app.precision.scheme import Scheme, ShapedScheme
from app.precision.tiles import InMemory
from app.precision.totals import ErrorSummary, ErrorTotals, is_subnormal

Status = Literal["exact", "rounded", "overflow", "underflow", "subnormal", "nan"]
Number = float | Literal["NaN", "Infinity", "-Infinity"]
Numeral = int | float | str

MAX_VALUES = 16_384
MAX_CONVERSIONS = 65_536

_SPELLED: dict[str, Number] = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


@dataclass(slots=True)  # not frozen as other results are: thousands are made at once, in a quarter of the time
class BitFields:
    """The bits of a code by what they mean. An integer has no exponent; an index into a table is all mantissa."""

    sign: str
    exponent: str
    mantissa: str


@dataclass(slots=True)  # as above
class ConvertedValue:
    """One number in one format. `NaN`, `Infinity` and `-Infinity` are spelled so; -0 is `-0.0`."""

    input: Numeral
    """What was sent."""
    source: Number
    """What it is in the format that it comes from: errors are told against this."""
    stored: Number | None
    """What the format holds, scale included; null for a NaN that it has no code for."""
    bits: str | None
    """The code, its most significant bit first; under scales, that of the element."""
    fields: BitFields | None
    absolute_error: float | None
    """|stored - source|; null where one of them is not finite."""
    relative_error: float | None
    """That divided by |source|; null where it is 0."""
    ulp_error: float | None
    """That in units of the target's last place there; null for indices into a table, whose steps differ."""
    status: Status
    """`nan`, `overflow` (beyond the largest number, whatever became of it), `underflow` (not 0 and now 0), `subnormal`,
    `rounded` or `exact`; the first of these that holds.
    """


@dataclass(frozen=True, slots=True)
class Converted:
    """All numbers in one format."""

    to: str
    scheme: Scheme | None
    """What gave the format its scales; null where it has none, or brings its own way to find them."""
    values: tuple[ConvertedValue, ...]
    summary: ErrorSummary
    scales: Scales | None


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of the numbers: in the format they come from, and from there in each other one."""

    source: Converted
    results: tuple[Converted, ...]


def convert(numerals: Sequence[Numeral], source: Format, targets: Sequence[Format], scheme: ShapedScheme) -> Conversion:
    """Each number, rounded once to `source` from what the numeral says, and from there to each of `targets`.

    Raises InvalidInput, pointing into a request of `values`, `from`, `to` and `scheme`.
    """
    _check(numerals, source, targets, scheme)
    shape = tuple(scheme.shape or (len(numerals),))
    try:
        numbers = read(numerals)
    except ValueError as error:
        index, detail = error.args
        raise InvalidInput.at(f"/values/{index}", detail) from None
    rounded = _held(numbers, source.layout)
    held = rounded.values
    results = tuple(_converted(numerals, held, target, scheme, shape) for target in targets)
    return Conversion(_from_numerals(numerals, numbers, rounded, source), results)


def _from_numerals(numerals: Sequence[Numeral], numbers: Numerals, rounded: Rounded, source: Format) -> Converted:
    """The first rounding, whose errors are told against the numerals themselves."""
    held, errors = rounded.values, numbers.distances(rounded.values)
    out_of_float64 = numbers.inexact & ((numbers.nearest == 0) | np.isinf(numbers.nearest))
    sent = np.where(out_of_float64, numbers.odd, numbers.nearest)
    column = _Column(rounded.codes, held, held, np.ones(held.shape), rounded.overflowed)
    totals = ErrorTotals()
    totals.add(sent, held, rounded, source.layout, errors=errors)
    values = _values(numerals, sent, column, source, np.where(np.isinf(sent) & (sent == held), 0.0, errors))
    return Converted(source.name, None, values, totals.summary(), None)


@dataclass(frozen=True, slots=True)
class _Column:
    """What values became, in their own order."""

    codes: Codes
    elements: Values
    stored: Values
    factors: Values
    overflowed: Mask


def _check(numerals: Sequence[Numeral], source: Format, targets: Sequence[Format], scheme: ShapedScheme) -> None:
    if source.scales:
        raise InvalidInput.at(
            "/from", f"{source.name} has scales, so a number alone cannot be in it; send its element, or fp32"
        )
    names = [target.name for target in targets]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InvalidInput.at(f"/to/{index}", f"{name} is there twice; name each format once")
    if len(numerals) * len(targets) > MAX_CONVERSIONS:
        raise InvalidInput.at(
            "/values",
            f"{len(numerals):,} values in {len(targets)} formats are more than {MAX_CONVERSIONS:,}; send fewer at "
            "once, or the tensor as a file to POST /v1/precision/tensors",
        )
    if scheme.shape is not None and prod(scheme.shape) != len(numerals):
        raise InvalidInput.at(
            "/scheme/shape", f"a tensor of this shape has {prod(scheme.shape):,} values, not {len(numerals):,}"
        )
    if scheme.kind != "none" and not any(takes(target, scheme) for target in targets):
        raise InvalidInput.at(
            "/scheme/kind",
            f"none of {', '.join(names)} takes kind {scheme.kind}: integers do, and floats of 8 bits or less with "
            "scale_floats; leave kind out otherwise",
        )


def _held(numbers: Numerals, layout: Layout) -> Rounded:
    """The numbers in the format they come from, rounded once."""
    if isinstance(layout, FloatLayout) and layout.bits == 64:
        exact = round_to(layout, numbers.nearest)
        return Rounded(exact.codes, exact.values, np.isinf(numbers.nearest) & numbers.inexact)
    return round_to(layout, numbers.odd)


def _converted(
    numerals: Sequence[Numeral], held: Values, target: Format, scheme: ShapedScheme, shape: tuple[int, ...]
) -> Converted:
    quantization = plan(target, scheme, shape, pointer="/scheme")
    kept = Kept(quantization)
    report = quantization.run(InMemory(held), kept)
    column = _Column(
        *(kept.flat(name) for name in ("codes", "elements", "stored", "factors", "overflowed")),
    )
    applied = Scheme.model_validate(scheme.model_dump(exclude={"shape"})) if takes(target, scheme) else None
    with np.errstate(invalid="ignore"):
        errors = np.where(held == column.stored, 0.0, np.abs(held - column.stored))
    return Converted(
        target.name, applied, _values(numerals, held, column, target, errors), report.errors, report.scales
    )


def _values(
    numerals: Sequence[Numeral], source: Values, column: _Column, target: Format, errors: Values
) -> tuple[ConvertedValue, ...]:
    layout = target.layout
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative = errors / np.abs(source)
        ulps = errors / (_steps(layout, source, column.factors))
    coded = np.ones(source.shape, np.bool_) if _has_nan(layout) else ~np.isnan(column.elements)
    columns = (
        [_echo(numeral) for numeral in numerals],
        _spelled(source),
        [number if there else None for number, there in zip(_spelled(column.stored), coded.tolist(), strict=True)],
        *_bits(layout, column.codes, coded),
        _finite(errors),
        _finite(relative),
        _finite(ulps),
        _statuses(source, column, layout, errors),
    )
    return tuple(starmap(ConvertedValue, zip(*columns, strict=True)))


def _bits(layout: Layout, codes: Codes, coded: Mask) -> tuple[list[str | None], list[BitFields | None]]:
    sign = layout.sign_bits
    mantissa = sign + (layout.exponent_bits if isinstance(layout, FloatLayout) else 0)
    pattern = f"0{layout.bits}b"
    texts = [
        format(code, pattern) if there else None for code, there in zip(codes.tolist(), coded.tolist(), strict=True)
    ]
    fields = [None if text is None else BitFields(text[:sign], text[sign:mantissa], text[mantissa:]) for text in texts]
    return texts, fields


def _statuses(source: Values, column: _Column, layout: Layout, errors: Values) -> list[Status]:
    """What is written later comes before the others."""
    found = np.where(errors == 0, "exact", "rounded").astype("<U9")
    found[is_subnormal(layout, column.elements)] = "subnormal"
    found[(column.stored == 0) & (source != 0)] = "underflow"
    found[np.isnan(column.stored)] = "nan"
    found[column.overflowed] = "overflow"
    found[np.isnan(source)] = "nan"
    statuses: list[Status] = found.tolist()
    return statuses


def _steps(layout: Layout, source: Values, factors: Values) -> Values:
    if isinstance(layout, CodebookLayout):
        return np.full(source.shape, np.nan)
    if isinstance(layout, FloatLayout):
        return units_in_the_last_place(layout, source / factors) * factors
    return factors * (layout.step if isinstance(layout, FixedPointLayout) else 1.0)


def _echo(numeral: Numeral) -> Numeral:
    """A number beyond float64 can be sent as JSON, but is answered as a text: few readers could take it."""
    return numeral.text if isinstance(numeral, WrittenNumber) and isinf(numeral) else numeral


def _has_nan(layout: Layout) -> bool:
    return isinstance(layout, FloatLayout) and layout.has_nan


def _spelled(values: Values) -> list[Number]:
    numbers: list[Number] = values.tolist()
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        numbers[index] = _SPELLED[str(numbers[index])]
    return numbers


def _finite(values: Values) -> list[float | None]:
    numbers: list[float | None] = values.tolist()
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        numbers[index] = None
    return numbers
