"""Rounding against numbers enumerated from the definitions: every code, a million random patterns, every edge."""

from fractions import Fraction
from functools import cache

import numpy as np
import pytest
from enumerated_formats import PARAMETERS, Enumerated, enumerated
from hypothesis import given, settings
from hypothesis import strategies as st

from app.precision.formats import NUMBER_FORMATS
from app.precision.layouts import FixedPointLayout, FloatLayout, IntegerLayout
from app.precision.numerals import read
from app.precision.rounding import decode, round_to, units_in_the_last_place

SMALL = sorted(set(PARAMETERS) - {"fp32", "tf32"})
ENUMERABLE = sorted(set(PARAMETERS) - {"fp32"})
reference = cache(enumerated)

small = pytest.mark.parametrize("name", SMALL)
enumerable = pytest.mark.parametrize("name", ENUMERABLE)


def layout_of(name: str) -> FloatLayout:
    layout = NUMBER_FORMATS[name].layout
    assert isinstance(layout, FloatLayout)
    return layout


def rounded_code(name: str, numeral: str, *, saturate: bool = False) -> int:
    values = read([numeral]).odd
    return int(round_to(layout_of(name), values, saturate=saturate).codes[0])


def expected_overflow(name: str, *, negative: bool, saturate: bool) -> int:
    """The code that overflow gives by each format's definition."""
    format = reference(name)
    sign = int(negative) << (format.bits - 1)
    last = len(format.numbers) - 2
    if saturate or format.kind == "none":
        return sign | last
    if format.kind == "negative zero":
        return 1 << (format.bits - 1)
    return sign | (last + 1)  # infinity, or the NaN of all ones


@enumerable
def test_every_code_means_the_enumerated_number(name: str) -> None:
    format = reference(name)
    sign = 1 << (format.bits - 1)
    codes = np.arange(len(format.numbers) - 1, dtype=np.uint64)
    numbers = [float(number) for number in format.numbers[:-1]]
    assert decode(layout_of(name), codes).tolist() == numbers
    first = 1 if format.kind == "negative zero" else 0
    assert decode(layout_of(name), codes[first:] | np.uint64(sign)).tolist() == [-number for number in numbers[first:]]


@small
def test_every_code_comes_back(name: str) -> None:
    layout = layout_of(name)
    codes = np.arange(2**layout.bits, dtype=np.uint64)
    values = decode(layout, codes)
    numbers = ~np.isnan(values)
    assert np.array_equal(round_to(layout, values).codes[numbers], codes[numbers])
    assert np.isnan(round_to(layout, values).values[~numbers]).all()
    assert (~numbers).sum() == {"fp16": 2046, "bf16": 254, "fp8_e5m2": 6, "fp8_e4m3": 2}.get(name, "fnuz" in name)


@pytest.mark.parametrize("name", ["int8", "uint8", "int4", "uint4", "mxint8", "nf4"])
def test_every_integer_and_index_comes_back(name: str) -> None:
    layout = NUMBER_FORMATS[name].layout
    codes = np.arange(2**layout.bits, dtype=np.uint64)
    kept = codes != 128 if isinstance(layout, FixedPointLayout) else codes >= 0  # -2 is left unused
    found = round_to(layout, decode(layout, codes))
    assert np.array_equal(found.codes[kept], codes[kept])
    if isinstance(layout, IntegerLayout):
        assert sorted(found.values) == list(range(layout.smallest, layout.largest + 1))


@enumerable
def test_a_million_random_patterns_round_as_enumerated(name: str) -> None:
    format = reference(name)
    patterns = np.random.default_rng(20_261).integers(0, 2**32, 1_000_000, dtype=np.uint32)
    numbers = patterns.view(np.float32)
    values = numbers[~np.isnan(numbers)].astype(np.float64)
    found = round_to(layout_of(name), values)
    check_codes(format, values, found.codes, name)


@enumerable
def test_a_million_patterns_in_the_format_s_own_range_round_as_enumerated(name: str) -> None:
    """Most random patterns overflow or underflow a narrow format: these do not."""
    format = reference(name)
    layout = layout_of(name)
    generator = np.random.default_rng(20_262)
    lowest = layout.smallest_exponent - layout.mantissa_bits - 2
    exponents = generator.uniform(lowest, min(layout.largest_exponent + 2, 127.99), 10**6)
    values = np.exp2(exponents).astype(np.float32).astype(np.float64) * generator.choice([-1.0, 1.0], 10**6)
    values = values[np.isfinite(values)]
    check_codes(format, values, round_to(layout, values).codes, name)


def check_codes(format: Enumerated, values: np.ndarray, codes: np.ndarray, name: str) -> None:
    magnitudes = format.nearest_of_many(values)
    overflows = magnitudes == len(format.numbers) - 1
    negative = np.signbit(values)
    if format.kind == "negative zero":
        negative &= magnitudes != 0
    expected = magnitudes | (negative.astype(np.int64) << (format.bits - 1))
    for sign in (False, True):
        expected[overflows & (np.signbit(values) == sign)] = expected_overflow(name, negative=sign, saturate=False)
    assert np.array_equal(codes.astype(np.int64), expected)


@st.composite
def edges(draw: st.DrawFn, name: str) -> Fraction:
    """A number of the format, halfway to the next, or a little to either side of these."""
    numbers = reference(name).numbers
    subnormals = 2 ** PARAMETERS[name][1]
    index = draw(
        st.one_of(
            st.integers(0, len(numbers) - 2),
            st.integers(0, min(2 * subnormals, len(numbers) - 2)),  # both edges of the subnormal range
            st.integers(max(0, len(numbers) - 6), len(numbers) - 2),  # and the upper end
        )
    )
    step = numbers[index + 1] - numbers[index]
    place = draw(st.sampled_from([Fraction(0), Fraction(1, 2), Fraction(1)]))
    aside = draw(st.sampled_from([Fraction(0), Fraction(1, 2**60), Fraction(-1, 2**60), Fraction(1, 10**30)]))
    exact = numbers[index] + step * (place + aside)
    return -exact if draw(st.booleans()) else exact


def numeral(exact: Fraction) -> str:
    """The hexadecimal or decimal text of a fraction whose denominator is a product of twos and tens."""
    power = 0
    while exact.denominator % 2 == 0 or exact.denominator % 5 == 0:
        exact *= 10
        power += 1
    return f"{exact.numerator}e-{power}"


@enumerable
@settings(max_examples=300, deadline=None)
@given(data=st.data(), saturate=st.booleans())
def test_what_is_almost_halfway_rounds_to_the_nearest(name: str, data: st.DataObject, saturate: bool) -> None:
    exact = data.draw(edges(name))
    format = reference(name)
    code = format.nearest(exact)
    text = numeral(exact)
    if code is None:
        expected = expected_overflow(name, negative=exact < 0, saturate=saturate)
    else:
        signed = exact < 0 and not (format.kind == "negative zero" and code == 0)
        expected = code | int(signed) << (format.bits - 1)
    assert rounded_code(name, text, saturate=saturate) == expected


@settings(max_examples=500, deadline=None)
@given(st.from_regex(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?(e[+-]?[0-9]{1,2})?", fullmatch=True))
def test_decimal_text_is_rounded_to_fp32_once(text: str) -> None:
    """Against fractions: the neighbours in FP32 are further away, or as far and odd."""
    exact, layout = abs(Fraction(text)), layout_of("fp32")
    code = int(round_to(layout, read([text]).odd).codes[0]) & (2**31 - 1)
    if code == 0xFF << 23:
        assert exact >= Fraction(layout.largest) + Fraction(2) ** 103
        return
    codes = np.array([max(code - 1, 0), code, code + 1], np.uint64)
    below, found, above = (
        Fraction(float(value)) if np.isfinite(value) else Fraction(2) ** 128 for value in decode(layout, codes)
    )
    for other in {below, above} - {found}:
        near, far = abs(exact - found), abs(exact - other)
        assert near < far or (near == far and code % 2 == 0)


def test_a_decimal_between_two_float64_is_not_rounded_by_way_of_them() -> None:
    """2^-60 above half of an FP32 step: as a float64 it is the very half, and would go down to even."""
    above = "1.00000005960464477626" + "0" * 10  # 1 + 2^-24 is 1.000000059604644775390625
    assert float(above) == 1 + 2**-24
    assert rounded_code("fp32", above) == 0x3F800001
    assert rounded_code("fp32", "1.000000059604644775390625") == 0x3F800000


def test_a_float64_is_rounded_once() -> None:
    """A little above halfway in bf16, and exactly halfway once it were an FP32."""
    value = np.array([1 + 2**-8 + 2**-40])
    assert round_to(layout_of("bf16"), value).values.tolist() == [1 + 2**-7]


@pytest.mark.parametrize(
    ("name", "values", "plain", "saturated"),
    [
        ("fp16", [65519.99, 65520.0, -1e9], [65504, np.inf, -np.inf], [65504, 65504, -65504]),
        ("fp8_e4m3", [464.0, 464.5, -1e9], [448, np.nan, np.nan], [448, 448, -448]),
        ("fp8_e5m2", [61439.0, 61440.0, -np.inf], [57344, np.inf, -np.inf], [57344, 57344, -57344]),
        ("fp8_e4m3fnuz", [247.0, 248.0, -np.inf], [240, np.nan, np.nan], [240, 240, -240]),
        ("fp6_e3m2", [29.0, 31.0, -np.inf], [28, 28, -28], [28, 28, -28]),
        ("fp4_e2m1", [5.1, 7.5, -np.inf], [6, 6, -6], [6, 6, -6]),
        ("int8", [127.4, 127.6, -1e9], [127, 127, -128], [127, 127, -128]),
        ("bf16", [3.38e38, 3.4e38, np.inf], [3.3762391e38, np.inf, np.inf], [3.3762391e38, 3.3895314e38, 3.3895314e38]),
    ],
)
def test_overflow_follows_the_format_or_saturates(
    name: str, values: list[float], plain: list[float], saturated: list[float]
) -> None:
    layout = NUMBER_FORMATS[name].layout
    for saturate, expected in ((False, plain), (True, saturated)):
        found = round_to(layout, np.array(values), saturate=saturate)
        np.testing.assert_allclose(found.values, expected, rtol=1e-6)


def test_nan_without_a_code_stays_nan() -> None:
    for name in ("fp6_e2m3", "fp4_e2m1", "int8", "nf4", "mxint8"):
        found = round_to(NUMBER_FORMATS[name].layout, np.array([np.nan, 1.0]))
        assert np.isnan(found.values[0])
        assert found.codes[0] == 0
        assert not found.overflowed.any()


@small
def test_stochastic_rounding_takes_the_two_neighbours_and_is_right_in_the_mean(name: str) -> None:
    layout = layout_of(name)
    numbers = [float(number) for number in reference(name).numbers]
    index = len(numbers) // 2
    low, high = numbers[index], numbers[index + 1]
    draws = (np.arange(10_000) + 0.5) / 10_000
    values = np.full(10_000, low + 0.3 * (high - low))
    found = round_to(layout, values, draws=draws).values
    assert set(found.tolist()) == {low, high}
    assert np.mean(found == high) == pytest.approx(0.3, abs=1e-3)
    negative = round_to(layout, -values, draws=draws).values
    assert np.mean(negative == -high) == pytest.approx(0.3, abs=1e-3)


def test_units_in_the_last_place() -> None:
    layout = layout_of("fp16")
    values = np.array([1.0, 1.999, 2.0, 65504.0, 1e9, 2**-14, 2**-20, 0.0, -3.0])
    assert units_in_the_last_place(layout, values).tolist() == [
        2**-10,
        2**-10,
        2**-9,
        32,
        32,
        2**-24,
        2**-24,
        2**-24,
        2**-9,
    ]
