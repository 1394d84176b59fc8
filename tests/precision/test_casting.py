"""Values through a format and back, and the sums of what they lost."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.precision.casting import FORMATS, Losses, compare, convert, largest_magnitudes, scales_for, widened

FLOATS = [name for name in FORMATS if name != "int8"]
ANY_FP32 = arrays.arrays(np.uint32, st.integers(0, 40)).map(lambda bits: bits.view(np.float32))


@pytest.mark.parametrize("name", FLOATS)
@given(values=ANY_FP32)
def test_a_cast_has_the_bits_of_ml_dtypes_nan_included(name: str, values: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = values.astype(FORMATS[name])
    assert convert(values, FORMATS[name])[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.int8]
)
def test_widening_is_exact_for_every_pattern_of_bits(dtype: type) -> None:
    size = np.dtype(dtype).itemsize
    every = np.arange(2 ** (8 * size), dtype=f"u{size}").view(dtype)
    assert np.array_equal(widened(every), every.astype(np.float32), equal_nan=True)


def losses_one_by_one(before: np.ndarray, after: np.ndarray) -> Losses:
    """The definitions, in Python's own numbers."""
    total = Losses()
    with np.errstate(invalid="ignore"):  # signalling NaN
        pairs = zip(before.astype(float).tolist(), after.astype(float).tolist(), strict=True)
    for value, stored in pairs:
        if math.isnan(value) or math.isinf(value):
            total += Losses(1, nan=int(math.isnan(value)), inf=int(math.isinf(value)))
        elif not math.isfinite(stored):
            total += Losses(1, overflowed=1)
        else:
            error = abs(value - stored)
            total += Losses(
                1,
                underflowed=int(value != 0 and stored == 0),
                max_abs_error=error,
                max_relative_error=error / abs(value) if value else 0.0,
                sum_squared_error=error**2,
                sum_squares=value**2,
            )
    return total


def assert_same(found: Losses, expected: Losses) -> None:
    for name in ("elements", "nan", "inf", "overflowed", "saturated", "underflowed"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.max_abs_error == pytest.approx(expected.max_abs_error, rel=1e-6)
    assert found.max_relative_error == pytest.approx(expected.max_relative_error, rel=1e-5)
    assert found.sum_squared_error == pytest.approx(expected.sum_squared_error, rel=1e-4, abs=0)
    assert found.sum_squares == pytest.approx(expected.sum_squares, rel=1e-4, abs=0)


@pytest.mark.parametrize("name", FLOATS)
@given(values=ANY_FP32)
def test_losses_are_what_their_definitions_say(name: str, values: np.ndarray) -> None:
    stored, found = convert(values, FORMATS[name])
    assert_same(found, losses_one_by_one(values, stored))


@pytest.mark.parametrize("magnitude", [1e-42, 1e-30, 1e-20, 1e-3, 1.0, 1e15, 1e25, 3e37])
@pytest.mark.parametrize("elements", [1, 4095, 4096, 4097, 50_000])
def test_sums_are_right_at_every_magnitude(magnitude: float, elements: int) -> None:
    values = (np.random.default_rng(1).standard_normal(elements) * magnitude).astype(np.float32)
    found = compare(values, (values * np.float32(1.001)).astype(np.float32))
    exact = values.astype(np.float64)
    errors = (values - (values * np.float32(1.001)).astype(np.float32)).astype(np.float64)
    finite = np.isfinite(errors)
    assert found.sum_squares == pytest.approx(float((exact[finite] ** 2).sum()), rel=1e-5, abs=0)
    assert found.sum_squared_error == pytest.approx(float((errors[finite] ** 2).sum()), rel=1e-5, abs=0)


@pytest.mark.parametrize(
    ("name", "largest"), [("fp16", 65504), ("bf16", 3.3895313892515355e38), ("fp8_e4m3", 448), ("fp8_e5m2", 57344)]
)
def test_saturating_clips_what_would_round_beyond_and_leaves_the_rest(name: str, largest: float) -> None:
    big = np.float32(largest)
    values = np.array(
        [big, np.nextafter(big, np.inf, dtype=np.float32), -np.inf, np.inf, 1.0, np.nan, 3.4e38], np.float32
    )
    stored, losses = convert(values, FORMATS[name], saturate=True)
    back = stored.astype(np.float32)
    assert back[[0, 1, 3, 6]].tolist() == [largest] * 4
    assert back[2] == -largest
    assert back[4] == 1
    assert np.isnan(back[5])
    assert losses.saturated == 3
    assert (losses.nan, losses.inf, losses.overflowed) == (1, 2, 0)
    loud = convert(values, FORMATS[name])[1]
    assert (loud.overflowed, loud.saturated) == (1, 0)


@given(values=arrays.arrays(np.float32, st.integers(1, 50), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_a_scale_brings_the_largest_number_to_the_end_of_the_range(values: np.ndarray) -> None:
    largest, has_nan = largest_magnitudes(values, np.array([0]))
    assert not has_nan
    assert largest[0] == np.abs(values).max()
    for name, of_range, half_step in (("fp8_e4m3", 448, 1 / 16), ("fp8_e5m2", 57344, 1 / 8), ("int8", 127, 0.5 / 127)):
        scales = scales_for(largest, FORMATS[name])
        stored, losses = convert(values, FORMATS[name], scales=scales, saturate=True)
        assert losses.saturated == 0
        assert losses.max_abs_error <= largest[0] * half_step * 1.001
        if largest[0] > 1e-30:
            assert np.abs(stored.astype(np.float32)).max() == of_range


def test_zeros_have_the_scale_one_and_numbers_too_small_for_a_scale_are_no_trouble() -> None:
    assert scales_for(np.zeros(2, np.float32), FORMATS["int8"]).tolist() == [1, 1]
    tiny = np.array([1e-45, 0], np.float32)
    scales = scales_for(largest_magnitudes(tiny, np.array([0]))[0], FORMATS["fp8_e4m3"])
    stored, losses = convert(tiny, FORMATS["fp8_e4m3"], scales=scales)
    assert np.isfinite(stored.astype(np.float32)).all()
    assert losses.elements == 2


def test_rows_are_looked_at_one_by_one_and_infinities_do_not_set_a_scale() -> None:
    values = np.array([1, -3, np.inf, 2, np.nan, 5, 0], np.float32)
    largest, has_nan = largest_magnitudes(values, np.array([0, 2, 6]))
    assert largest.tolist() == [3, 5, 0]
    assert has_nan


def test_errors_whose_squares_no_format_holds_are_told_as_far_as_they_can_be() -> None:
    values = np.array([1e200, 1.0, np.nan])
    stored, losses = convert(values, FORMATS["fp32"], saturate=True)
    assert np.isfinite(stored[:2]).all()
    assert (losses.saturated, losses.nan, losses.max_abs_error) == (1, 1, pytest.approx(1e200))
    assert losses.sum_squared_error == math.inf
    assert compare(np.array([1.7e308]), np.array([-1.7e308])).elements == 1
