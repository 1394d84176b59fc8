import math
import sys
from fractions import Fraction

import pytest

from app.errors import InvalidInput
from app.precision.convert import Conversion, Converted, Numeral, convert
from app.precision.formats import NUMBER_FORMATS
from app.precision.numerals import WrittenNumber
from app.precision.scheme import ShapedScheme


def converted(values: list[Numeral], *to: str, source: str = "fp32", **scheme: object) -> Conversion:
    targets = [NUMBER_FORMATS[name] for name in to]
    return convert(values, NUMBER_FORMATS[source], targets, ShapedScheme.model_validate(scheme))


def only(conversion: Conversion) -> Converted:
    [result] = conversion.results
    return result


def test_pi() -> None:
    found = converted([3.141592653589793], "fp16", "bf16", "int8")
    assert found.source.values[0].stored == 3.1415927410125732
    assert [result.values[0].stored for result in found.results] == [3.140625, 3.140625, 3.0]
    half, brain, whole = (result.values[0] for result in found.results)
    assert (half.bits, brain.bits, whole.bits) == ("0100001001001000", "0100000001001001", "00000011")
    assert half.fields is not None
    assert (half.fields.sign, half.fields.exponent, half.fields.mantissa) == ("0", "10000", "1001001000")
    assert half.status == brain.status == whole.status == "rounded"
    error = Fraction(3.1415927410125732) - Fraction(3.140625)
    assert half.absolute_error == float(error)
    assert half.relative_error == pytest.approx(float(error) / 3.1415927410125732)
    assert half.ulp_error == float(error * 2**9)
    assert brain.ulp_error == float(error * 2**6)
    assert whole.ulp_error == pytest.approx(0.1415927410125732)


def test_what_was_sent_is_told_beside_what_it_is() -> None:
    value = converted(["0.1"], "bf16").source.values[0]
    assert (value.input, value.source, value.stored) == ("0.1", 0.1, 0.10000000149011612)
    assert value.absolute_error == pytest.approx(1.4901161193847656e-9)


@pytest.mark.parametrize(
    ("numeral", "source", "exact", "stored"),
    [
        ("0.1", "fp64", Fraction(1, 10), 0.1),
        (WrittenNumber("0.1"), "fp64", Fraction(1, 10), 0.1),
        ("1.00000000000000000000000000000000000001", "fp32", 1 + Fraction(1, 10**38), 1.0),
        ("-0x1.00000000000001p0", "fp16", -1 - Fraction(1, 2**56), -1.0),
    ],
)
def test_what_no_float64_says_is_lost_all_the_same(
    numeral: Numeral, source: str, exact: Fraction, stored: float
) -> None:
    found = converted([numeral], "bf16", source=source).source
    [value] = found.values
    error = float(abs(exact - Fraction(stored)))
    assert (value.stored, value.status, value.absolute_error) == (stored, "rounded", error)
    assert found.summary.max_absolute_error == error
    assert found.summary.sqnr_db is not None


def test_an_error_beyond_float64_has_no_number() -> None:
    found = converted(["0x1p2000", "-1e400", "5"], "fp16", source="fp4_e2m1").source
    assert [(value.stored, value.status, value.absolute_error) for value in found.values] == [
        (6.0, "overflow", None),
        (-6.0, "overflow", None),
        (4.0, "rounded", 1.0),
    ]
    assert found.summary.max_absolute_error == 1


def test_a_number_goes_by_way_of_the_format_it_comes_from() -> None:
    """1 + 2^-8 + 2^-30 rounds up in bf16; as FP32 it is the very half already, and goes to even."""
    value = str(1 + 2**-8 + 2**-30)
    assert only(converted([value], "bf16", source="fp64")).values[0].stored == 1 + 2**-7
    assert only(converted([value], "bf16", source="fp32")).values[0].stored == 1.0


@pytest.mark.parametrize(
    ("numeral", "to", "stored", "bits", "status"),
    [
        ("1", "fp16", 1.0, "0011110000000000", "exact"),
        ("-0", "fp16", -0.0, "1000000000000000", "exact"),
        ("-0", "fp8_e4m3fnuz", 0.0, "00000000", "exact"),
        ("65520", "fp16", "Infinity", "0111110000000000", "overflow"),
        ("-1e9", "fp8_e4m3", "NaN", "11111111", "overflow"),
        ("9", "fp4_e2m1", 6.0, "0111", "overflow"),
        ("Infinity", "bf16", "Infinity", "0111111110000000", "exact"),
        ("-Infinity", "fp8_e4m3", "NaN", "11111111", "overflow"),
        ("NaN", "fp8_e5m2", "NaN", "01111110", "nan"),
        ("NaN", "int8", None, None, "nan"),
        ("1e-8", "fp16", 0.0, "0000000000000000", "underflow"),
        ("-1e-8", "fp16", -0.0, "1000000000000000", "underflow"),
        ("0x1p-24", "fp16", 2**-24, "0000000000000001", "subnormal"),
        ("0x.8", "fp16", 0.5, "0011100000000000", "exact"),
        ("0X1.", "fp16", 1.0, "0011110000000000", "exact"),
        ("0x1.8p-24", "fp16", 2**-23, "0000000000000010", "subnormal"),
        ("0x1p-14", "fp16", 2**-14, "0000010000000000", "exact"),
        ("-3", "int8", -3.0, "11111101", "exact"),
        ("300", "uint8", 255.0, "11111111", "overflow"),
        ("-1", "uint4", 0.0, "0000", "overflow"),
        ("0.5", "tf32", 0.5, "0011111100000000000", "exact"),
    ],
)
def test_one_number(numeral: str, to: str, stored: object, bits: str | None, status: str) -> None:
    value = only(converted([numeral], to)).values[0]
    assert (value.stored, value.bits, value.status) == (stored, bits, status)
    if isinstance(stored, float):
        assert isinstance(value.stored, float)
        assert math.copysign(1, value.stored) == math.copysign(1, stored)
    if value.fields is not None:
        assert value.fields.sign + value.fields.exponent + value.fields.mantissa == bits


def test_beyond_float64_is_not_beyond_reading() -> None:
    found = converted(["1e400", "-1e-400", "1" + "0" * 400], "fp32", source="fp64", saturate=True)
    assert [value.stored for value in found.source.values] == ["Infinity", -0.0, "Infinity"]
    assert [value.status for value in found.source.values] == ["overflow", "underflow", "overflow"]


def test_the_summary_counts_and_measures() -> None:
    result = only(converted(["1.0625", "1e9", "1e-9", "0x1p-8", "NaN", "2"], "fp8_e4m3"))
    assert [value.status for value in result.values] == [
        "rounded",
        "overflow",
        "underflow",
        "subnormal",
        "nan",
        "exact",
    ]
    summary = result.summary
    assert (summary.values, summary.overflows, summary.underflows, summary.subnormals, summary.nans) == (6, 1, 1, 1, 1)
    assert summary.max_absolute_error == 0.0625
    tiny = Fraction(converted(["1e-9"], "fp32").source.values[0].stored)  # type: ignore[arg-type]
    error = (Fraction("0.0625") ** 2 + tiny**2) / 4
    signal = (Fraction("1.0625") ** 2 + tiny**2 + Fraction(1, 2**16) + 4) / 4
    assert summary.mean_squared_error == pytest.approx(float(error))
    assert summary.sqnr_db == pytest.approx(10 * math.log10(signal / error))


@pytest.mark.parametrize("calibration", ["max", "percentile", "mse"])
@pytest.mark.parametrize(
    ("to", "scheme"),
    [
        ("int8", {"kind": "symmetric"}),
        ("int8", {"kind": "affine", "rounding": "stochastic"}),
        ("uint4", {"kind": "affine", "granularity": "block"}),
        ("fp6_e2m3", {"kind": "symmetric", "scale_floats": True, "rounding": "stochastic"}),
    ],
)
def test_the_ends_of_float64_have_figures_too(to: str, scheme: dict[str, object], calibration: str) -> None:
    """FP32 scales do not reach that far: all saturates, and nothing but that is said."""
    found = converted(["1.7e308", "-1.7e308", "1.7e308"], to, source="fp64", calibration=calibration, **scheme)
    assert [value.status for value in only(found).values] == ["overflow"] * 3
    summary = only(found).summary
    assert summary.saturated_share == 1
    assert summary.max_absolute_error == pytest.approx(1.7e308)
    assert summary.mean_absolute_error <= sys.float_info.max


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_without_a_scale_they_saturate_too(rounding: str) -> None:
    found = only(converted(["1.7e308", "-1.7e308"], "fp6_e2m3", source="fp64", rounding=rounding))
    assert [value.stored for value in found.values] == [7.5, -7.5]


def test_saturation_is_counted_as_overflow_all_the_same() -> None:
    result = only(converted(["1e9", "1"], "fp8_e4m3", saturate=True))
    assert result.values[0].stored == 448
    assert (result.values[0].status, result.summary.overflows, result.summary.saturated_share) == ("overflow", 1, 0.5)


def test_scales_and_zero_points_by_channel() -> None:
    result = only(
        converted([0.0, 15.0, 30.0, -2.0, 0.0, 1.0], "uint4", kind="affine", granularity="channel", shape=[2, 3])
    )
    assert result.scales is not None
    assert result.scales.values == (2.0, pytest.approx(0.2))
    assert result.scales.zero_points == (0, 10)
    assert [value.bits for value in result.values] == ["0000", "1000", "1111", "0000", "1010", "1111"]


def test_channels_may_be_counted_by_another_axis() -> None:
    result = only(
        converted(
            [1.0, 10.0, 2.0, 20.0, -4.0, 5.0],
            "int8",
            kind="symmetric",
            granularity="channel",
            channel_axis=1,
            shape=[3, 2],
        )
    )
    assert result.scales is not None
    assert result.scales.values == (pytest.approx(4 / 127), pytest.approx(20 / 127))
    assert [value.bits for value in result.values] == [
        f"{code & 255:08b}" for code in (32, 64, 64, 127, -127, 32)
    ]  # 31.75, 63.5, 63.5, 127, -127, 31.75


@pytest.mark.parametrize(
    ("values", "to", "source", "scheme", "pointer", "word"),
    [
        (["1", "one"], ["fp16"], "fp32", {}, "/values/1", "should be a number"),
        (["1e100000"], ["fp16"], "fp32", {}, "/values/0", "exponent"),
        (["1" * 1001], ["fp16"], "fp32", {}, "/values/0", "1,000 characters"),
        (["0x"], ["fp16"], "fp32", {}, "/values/0", "should be a number"),
        (["-0x."], ["fp16"], "fp32", {}, "/values/0", "should be a number"),
        (["0x.p1"], ["fp16"], "fp32", {}, "/values/0", "should be a number"),
        (["inf"], ["fp16"], "fp32", {}, "/values/0", "-Infinity"),
        ([1], ["fp16"], "mxfp4", {}, "/from", "fp32"),
        ([1], ["fp16", "bf16", "fp16"], "fp32", {}, "/to/2", "once"),
        ([1], ["fp16"], "fp32", {"kind": "symmetric"}, "/scheme/kind", "integers"),
        ([1, 2, 3], ["int8"], "fp32", {"shape": [2, 2]}, "/scheme/shape", "4 values, not 3"),
        ([1.0] * 16_000, ["fp16", "bf16", "int8", "int4", "nf4"], "fp32", {}, "/values", "65,536"),
        (
            [1],
            ["int8"],
            "fp32",
            {"kind": "affine", "granularity": "channel", "channel_axis": 1},
            "/scheme/channel_axis",
            "axis 1",
        ),
        ([1], ["nf4"], "fp32", {"rounding": "stochastic"}, "/scheme/rounding", "nearest"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    values: list[Numeral], to: list[str], source: str, scheme: dict[str, object], pointer: str, word: str
) -> None:
    with pytest.raises(InvalidInput, match=word) as error:
        converted(values, *to, source=source, **scheme)
    assert error.value.errors[0].pointer == pointer


@pytest.mark.parametrize(
    "scheme",
    [
        {"granularity": "channel"},
        {"kind": "symmetric", "block_size": 64},
        {"kind": "symmetric", "percentile": 99.0},
        {"seed": 3},
        {"kind": "affine", "scale_floats": True},
    ],
)
def test_a_field_that_would_do_nothing_is_refused(scheme: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="needs"):
        ShapedScheme.model_validate(scheme)
