from fractions import Fraction

import pytest

from app.errors import UnknownName
from app.precision.formats import FORMATS, NUMBER_FORMATS, format_named
from app.precision.layouts import FloatLayout

PUBLISHED = {
    # name: largest, smallest normal, smallest subnormal, epsilon; IEEE 754 table 3.5, OFP8 table 1, MX tables 2 to 6
    "fp64": ("0x1.fffffffffffffp1023", "0x1p-1022", "0x1p-1074", "0x1p-52"),
    "fp32": ("0x1.fffffep127", "0x1p-126", "0x1p-149", "0x1p-23"),
    "tf32": ("0x1.ffcp127", "0x1p-126", "0x1p-136", "0x1p-10"),
    "fp16": ("65504", "0x1p-14", "0x1p-24", "0x1p-10"),
    "bf16": ("0x1.fep127", "0x1p-126", "0x1p-133", "0x1p-7"),
    "fp8_e4m3": ("448", "0x1p-6", "0x1p-9", "0.125"),
    "fp8_e5m2": ("57344", "0x1p-14", "0x1p-16", "0.25"),
    "fp8_e4m3fnuz": ("240", "0x1p-7", "0x1p-10", "0.125"),
    "fp8_e5m2fnuz": ("57344", "0x1p-15", "0x1p-17", "0.25"),
    "fp6_e2m3": ("7.5", "1", "0.125", "0.125"),
    "fp6_e3m2": ("28", "0.25", "0.0625", "0.25"),
    "fp4_e2m1": ("6", "1", "0.5", "0.5"),
}
BYTES = {
    "fp64": 8,
    "fp32": 4,
    "tf32": 4,
    "fp16": 2,
    "bf16": 2,
    "fp8_e4m3": 1,
    "fp6_e2m3": 0.75,
    "fp4_e2m1": 0.5,
    "int8": 1,
    "uint4": 0.5,
    "nf4": 0.5625,
    "nf4-double": 0.515869140625,
    "mxfp8": 1.03125,
    "mxfp6": 0.78125,
    "mxfp4": 0.53125,
    "mxint8": 1.03125,
    "nvfp4": 0.5625,
    "fp8_e4m3_128x128": 1 + 4 / 16384,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_limits_are_the_published_ones(name: str) -> None:
    layout = NUMBER_FORMATS[name].layout
    assert isinstance(layout, FloatLayout)
    found = (layout.largest, layout.smallest_normal, layout.smallest_subnormal, layout.epsilon)
    assert found == tuple(float.fromhex(text) if "x" in text else float(text) for text in PUBLISHED[name])


def test_every_float_format_is_compared() -> None:
    assert PUBLISHED.keys() == {name for name, format in NUMBER_FORMATS.items() if format.kind == "float"}


@pytest.mark.parametrize("name", BYTES)
def test_a_parameter_costs_its_scales_too(name: str) -> None:
    assert NUMBER_FORMATS[name].bytes_per_parameter == Fraction(BYTES[name])


def test_one_number_per_tensor_is_told_apart() -> None:
    once = {name: format.bytes_per_tensor for name, format in NUMBER_FORMATS.items() if format.bytes_per_tensor}
    assert once == {"nvfp4": 4, "nf4-double": 4}


def test_the_planner_keeps_its_element_types() -> None:
    assert {name: element.bytes for name, element in FORMATS.items()} == {
        "fp32": 4,
        "bf16": 2,
        "fp16": 2,
        "fp8": 1,
        "int8": 1,
        "bool": 1,
        "int64": 8,
    }


@pytest.mark.parametrize(
    ("name", "native_on"),
    [
        ("fp16", {"6.0", "7.0", "7.5", "8.0", "8.9", "9.0", "10.0", "12.0"}),
        ("bf16", {"8.0", "8.9", "9.0", "10.0", "12.0"}),
        ("tf32", {"8.0", "8.9", "9.0", "10.0", "12.0"}),
        ("fp8_e4m3", {"8.9", "9.0", "10.0", "12.0"}),
        ("fp8_e4m3fnuz", set()),
        ("int8", {"7.0", "7.5", "8.0", "8.9", "9.0", "10.0", "12.0"}),
        ("int4", {"7.5", "8.0", "8.9"}),
        ("mxfp4", {"10.0", "12.0"}),
        ("nvfp4", {"10.0", "12.0"}),
        ("nf4", set()),
        ("mxint8", set()),
    ],
)
def test_units_by_compute_capability(name: str, native_on: set[str]) -> None:
    asked = ("6.0", "7.0", "7.5", "8.0", "8.9", "9.0", "10.0", "12.0")
    units = NUMBER_FORMATS[name].native
    assert {version for version in asked if any(unit.cover(version) for unit in units)} == native_on


@pytest.mark.parametrize(
    ("name", "since"),
    [
        ("fp64", 2021),
        ("fp32", 2020),
        ("tf32", 2023),
        ("fp16", 2020),
        ("bf16", 2020),
        ("fp8_e4m3", 2025),
        ("fp8_e4m3fnuz", 2023),
        ("int8", 2020),
        ("uint8", None),
        ("mxfp4", 2025),
        ("nvfp4", None),
    ],
)
def test_units_of_amd(name: str, since: int | None) -> None:
    assert [units.since for units in NUMBER_FORMATS[name].native if units.vendor == "AMD"] == ([since] if since else [])


def test_every_format_says_where_it_is_from_and_what_it_is_for() -> None:
    for format in NUMBER_FORMATS.values():
        assert format.sources
        assert format.used_for
        assert all(unit.source.url.startswith("https://") for unit in format.native)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="nearest: fp8_e4m3") as error:
        format_named("fp8_e4m4", pointer="/to/0")
    assert error.value.errors[0].pointer == "/to/0"
