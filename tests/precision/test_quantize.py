"""Whole tensors: against plain loops over blocks written from the definitions, and the same however they are read."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from app.precision import tiles
from app.precision.formats import NUMBER_FORMATS
from app.precision.quantize import Kept, Report, plan
from app.precision.rounding import Values
from app.precision.scheme import Scheme
from app.precision.tiles import InMemory


def quantized(array: np.ndarray, to: str, **scheme: object) -> tuple[Values, Report]:
    quantization = plan(NUMBER_FORMATS[to], Scheme.model_validate(scheme), array.shape, pointer="/scheme")
    kept = Kept(quantization)
    report = quantization.run(InMemory(array), kept)
    return kept.flat("stored").reshape(array.shape), report


def blocks_of(array: np.ndarray, size: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Runs of `size` along the last axis of the flattened rows, each with its place."""
    columns = array.shape[-1]
    for row in range(array.size // columns):
        for start in range(0, columns, size):
            place = slice(row * columns + start, row * columns + min(start + size, columns))
            yield place, array.reshape(-1)[place]


def nearest(grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The nearest of the sorted `grid`; of two the one at an even index of magnitudes."""
    signs, magnitudes = np.sign(values), np.abs(values)
    low = np.clip(np.searchsorted(grid, magnitudes, side="right") - 1, 0, len(grid) - 2)
    below, above = magnitudes - grid[low], grid[low + 1] - magnitudes
    return signs * grid[low + ((above < below) | ((above == below) & (low % 2 == 1)))]


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
E4M3 = np.array(
    [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]
)


@pytest.fixture
def weights() -> np.ndarray:
    generator = np.random.default_rng(7)
    return (generator.standard_normal((5, 150)) * np.exp(generator.standard_normal((5, 150)))).astype(np.float32)


@pytest.mark.parametrize(("to", "grid", "largest_exponent"), [("mxfp4", E2M1, 2), ("mxfp8", E4M3, 8)])
def test_microscaling(weights: np.ndarray, to: str, grid: np.ndarray, largest_exponent: int) -> None:
    expected = np.zeros(weights.size)
    scales = []
    for place, block in blocks_of(weights, 32):
        scale = 2.0 ** (math.floor(math.log2(np.abs(block).max())) - largest_exponent)
        scales.append(scale)
        expected[place] = nearest(grid, np.clip(block.astype(np.float64) / scale, -grid[-1], grid[-1])) * scale
    stored, report = quantized(weights, to)
    assert np.array_equal(stored.reshape(-1), expected)
    assert report.scales is not None
    assert report.scales.values == tuple(scales)
    assert report.scales.shape == (5, 5)


def test_microscaled_integers(weights: np.ndarray) -> None:
    expected = np.zeros(weights.size)
    for place, block in blocks_of(weights, 32):
        scale = 2.0 ** math.floor(math.log2(np.abs(block).max()))
        expected[place] = np.clip(np.rint(block.astype(np.float64) / scale * 64), -127, 127) / 64 * scale
    assert np.array_equal(quantized(weights, "mxint8")[0].reshape(-1), expected)


def test_a_block_of_microscaling_with_nan_is_nan_and_no_other(weights: np.ndarray) -> None:
    weights[2, 40], weights[3, 0] = np.nan, np.inf
    stored, report = quantized(weights, "mxfp4")
    assert np.isnan(stored[2, 32:64]).all()
    assert np.isnan(stored).sum() == report.errors.nans == 32
    assert report.scales is not None
    assert report.scales.values is not None
    assert [index for index, scale in enumerate(report.scales.values) if scale is None] == [11]
    assert (report.errors.overflows, np.isfinite(stored[3]).all()) == (report.errors.overflows, True)
    assert report.errors.overflows >= 1


def test_nvfp4_has_two_levels(weights: np.ndarray) -> None:
    of_tensor = np.float64(np.float32(np.abs(weights).max().astype(np.float64) / (6 * 448)))
    expected = np.zeros(weights.size)
    for place, block in blocks_of(weights, 16):
        wanted = np.abs(block).max().astype(np.float64) / 6 / of_tensor
        scale = float(nearest(E4M3, np.array([min(wanted, 448.0)]))[0]) * of_tensor
        expected[place] = nearest(E2M1, np.clip(block.astype(np.float64) / scale, -6, 6)) * scale
    stored, report = quantized(weights, "nvfp4")
    assert np.array_equal(stored.reshape(-1), expected)
    assert report.scales is not None
    assert report.scales.tensor_scale == of_tensor
    assert report.scales.largest == 448


def test_nf4_is_a_table_under_the_largest_magnitude_of_64_in_a_row(weights: np.ndarray) -> None:
    table = np.array(NUMBER_FORMATS["nf4"].layout.values)  # type: ignore[union-attr]
    flat = weights.reshape(-1).astype(np.float64)
    expected = np.zeros(flat.size)
    for start in range(0, flat.size, 64):
        block = flat[start : start + 64]
        scale = np.abs(block).max()
        expected[start : start + 64] = [table[np.abs(table - value / scale).argmin()] * scale for value in block]
    assert np.array_equal(quantized(weights, "nf4")[0].reshape(-1), expected)


def test_nested_scales_of_nf4_stay_near_the_plain_ones() -> None:
    array = np.random.default_rng(3).standard_normal((300, 256)).astype(np.float32)
    plain, double = quantized(array, "nf4")[1], quantized(array, "nf4-double")[1]
    assert plain.errors.sqnr_db is not None
    assert double.errors.sqnr_db is not None
    assert 0 < plain.errors.sqnr_db - double.errors.sqnr_db < 0.1
    assert double.scales is not None
    scales = np.abs(array.reshape(-1, 64)).max(axis=1)
    assert double.scales.offset == pytest.approx(float(scales.mean()), rel=1e-6)
    assert double.scales.count == 1200


def test_tiles_of_128_by_128_are_cut_at_the_edges() -> None:
    array = np.random.default_rng(4).standard_normal((200, 300)).astype(np.float32)
    stored, report = quantized(array, "fp8_e4m3_128x128")
    assert report.scales is not None
    assert report.scales.shape == (2, 3)
    expected = np.zeros(array.shape)
    for row in range(0, 200, 128):
        for column in range(0, 300, 128):
            tile = array[row : row + 128, column : column + 128].astype(np.float64)
            scale = np.float64(np.float32(np.abs(tile).max() / 448))
            expected[row : row + 128, column : column + 128] = nearest(E4M3, np.clip(tile / scale, -448, 448)) * scale
    assert np.array_equal(stored, expected)
    assert report.scales.values[0] == np.float64(np.float32(np.abs(array[:128, :128]).max().astype(np.float64) / 448))  # type: ignore[index]


@pytest.mark.parametrize("kind", ["symmetric", "affine"])
@pytest.mark.parametrize(("to", "lowest", "highest"), [("int8", -128, 127), ("int4", -8, 7), ("uint4", 0, 15)])
def test_linear_schemes(weights: np.ndarray, kind: str, to: str, lowest: int, highest: int) -> None:
    weights += 1
    values = weights.astype(np.float64)
    if kind == "affine":
        low, high = min(values.min(), 0), max(values.max(), 0)
        scale = np.float64(np.float32((high - low) / (highest - lowest)))
        zero = np.rint(lowest - low / scale)
        expected = (np.clip(np.rint(values / scale) + zero, lowest, highest) - zero) * scale
    else:
        most = (highest - lowest) // 2
        scale = np.float64(np.float32(np.abs(values).max() / most))
        expected = np.clip(np.rint(values / scale), -most, most) * scale
    stored, report = quantized(weights, to, kind=kind)
    assert np.array_equal(stored, expected)
    error = np.abs(values - expected)
    assert report.errors.max_absolute_error == error.max()
    assert report.errors.mean_absolute_error == pytest.approx(error.mean())
    assert report.errors.mean_squared_error == pytest.approx(np.square(error).mean())
    assert report.errors.sqnr_db == pytest.approx(10 * np.log10(np.square(values).sum() / np.square(error).sum()))


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
def test_calibration_by_percentile_covers_so_many(granularity: str) -> None:
    array = np.random.default_rng(5).standard_normal((8, 1000))
    groups = {"tensor": array.reshape(1, -1), "channel": array, "block": array.reshape(80, 100)}[granularity]
    ranks = np.sort(np.abs(groups), axis=1)[:, math.ceil(groups.shape[1] * 0.98) - 1]
    more = {"block_size": 100} if granularity == "block" else {}
    _, report = quantized(
        array, "int8", kind="symmetric", granularity=granularity, calibration="percentile", percentile=98.0, **more
    )
    assert report.scales is not None
    assert report.scales.values == tuple(float(np.float32(rank / 127)) for rank in ranks)
    assert report.errors.saturated_share == pytest.approx(0.02, abs=0.003)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_percentile_is_the_decimal_that_was_asked_for(granularity: str) -> None:
    """99.9 % of 1000 values are 999 of them, and 0.1 % one: not 1000 and two, as float64 has it."""
    array = np.arange(1.0, 1001.0).reshape(1, 1000)
    given: dict[str, object] = {"granularity": granularity, "calibration": "percentile"}
    _, report = quantized(array, "int8", kind="symmetric", **given)
    assert report.scales is not None
    assert report.scales.values == (float(np.float32(999 / 127)),)
    _, report = quantized(array - 500.5, "uint8", kind="affine", **given)
    assert report.scales is not None
    assert report.scales.values == (float(np.float32((498.5 + 499.5) / 255)),)


def test_calibration_by_percentile_of_values_to_one_side() -> None:
    array = np.linspace(-1, 9, 1001)
    _, report = quantized(array, "uint8", kind="affine", calibration="percentile", percentile=99.0)
    low, high = np.sort(array)[[math.ceil(1001 * 0.01) - 1, math.ceil(1001 * 0.99) - 1]]
    assert report.scales is not None
    assert report.scales.values == (float(np.float32((high - low) / 255)),)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_calibration_by_error_is_the_best_of_what_it_tries(granularity: str) -> None:
    array = np.random.default_rng(6).standard_t(3, (4, 2000))
    groups = array.reshape(1, -1) if granularity == "tensor" else array
    expected = []
    for group in groups:
        scales = np.abs(group).max() * 0.95 ** np.arange(48) / 7
        errors = [np.square(group - np.clip(np.rint(group / scale), -7, 7) * scale).sum() for scale in scales]
        expected.append(scales[int(np.argmin(errors))])
    _, report = quantized(array, "int4", kind="symmetric", granularity=granularity, calibration="mse")
    assert report.scales is not None
    assert report.scales.values == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("to", "scheme"),
    [
        ("bf16", {}),
        ("fp8_e4m3", {"kind": "symmetric", "scale_floats": True}),
        ("int8", {"kind": "affine", "granularity": "channel", "channel_axis": 1}),
        ("int4", {"kind": "symmetric", "granularity": "block", "block_size": 24}),
        ("int8", {"kind": "symmetric", "calibration": "percentile"}),
        ("int8", {"kind": "symmetric", "calibration": "mse"}),
        ("mxfp4", {}),
        ("nvfp4", {}),
        ("nf4", {}),
        ("nf4-double", {}),
        ("fp8_e4m3_128x128", {}),
    ],
)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("portion_elements", [16_384, 32_768])
def test_portions_change_nothing(
    to: str, scheme: dict[str, object], rounding: str, portion_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if rounding == "stochastic":
        if to.startswith("nf4"):
            pytest.skip("a table is rounded to the nearest")
        scheme = {**scheme, "rounding": rounding, "seed": 11}
    array = np.random.default_rng(8).standard_normal((3, 260, 500)).astype(np.float32)
    whole, of_whole = quantized(array, to, **scheme)
    monkeypatch.setattr(tiles, "PORTION_ELEMENTS", portion_elements)
    monkeypatch.setattr("app.precision.quantize.PORTION_ELEMENTS", portion_elements)
    monkeypatch.setattr(tiles, "_WIDEST_BAND_ELEMENTS", 2 * portion_elements)
    parts, of_parts = quantized(array, to, **scheme)
    assert np.array_equal(parts, whole)
    assert of_parts.scales == of_whole.scales
    assert of_parts.errors.mean_squared_error == pytest.approx(of_whole.errors.mean_squared_error)
    assert of_parts.errors.overflows == of_whole.errors.overflows


def test_what_reads_in_order_once_does_so() -> None:
    array = np.random.default_rng(9).standard_normal((3, 260, 500))

    class Ordered(InMemory):
        def read(self, start: int, stop: int) -> Values:
            assert start == seen[-1]
            seen.append(stop)
            return super().read(start, stop)

    for to in ("bf16", "int4", "mxfp4", "nf4", "fp8_e4m3_128x128"):
        seen = [0]
        quantization = plan(NUMBER_FORMATS[to], Scheme(), array.shape, pointer="")
        assert quantization.reads_in_order_once
        quantization.run(Ordered(array))
        assert seen[-1] == array.size
    assert not plan(NUMBER_FORMATS["nvfp4"], Scheme(), array.shape, pointer="").reads_in_order_once


def test_stochastic_rounding_is_repeatable_seeded_and_unbiased() -> None:
    array = np.full(100_000, 0.3)
    first, report = quantized(array, "int8", rounding="stochastic", seed=1)
    assert np.array_equal(first, quantized(array, "int8", rounding="stochastic", seed=1)[0])
    assert not np.array_equal(first, quantized(array, "int8", rounding="stochastic", seed=2)[0])
    assert set(first.tolist()) == {0.0, 1.0}
    assert first.mean() == pytest.approx(0.3, abs=0.01)
    assert report.errors.underflows == (first == 0).sum()


@pytest.mark.parametrize("to", sorted(NUMBER_FORMATS))
@pytest.mark.parametrize("shape", [(0,), (), (3, 0), (1,), (2, 1)])
def test_shapes_with_next_to_nothing_in_them(to: str, shape: tuple[int, ...]) -> None:
    stored, report = quantized(np.ones(shape), to)
    assert report.errors.values == stored.size
    assert np.allclose(stored, 1)


@pytest.mark.parametrize("to", ["int8", "mxfp4", "nvfp4", "nf4", "nf4-double", "fp8_e4m3_128x128"])
def test_zeros_stay_zeros(to: str) -> None:
    scheme = {"kind": "symmetric"} if to == "int8" else {}
    stored, report = quantized(np.zeros((4, 100)), to, **scheme)
    assert not stored.any()
    assert (report.errors.underflows, report.errors.overflows, report.errors.nans) == (0, 0, 0)
