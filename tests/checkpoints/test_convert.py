"""One file into another: the bits of `ml_dtypes`, the layout of the format's own library, and an honest report."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import NUMPY, as_bytes, read, same_bits, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from app.checkpoints import Conversion, Options, convert, prepare
from app.checkpoints.faults import UnusableCheckpoint, UnusableOption
from app.checkpoints.report import TensorReport
from app.checkpoints.stream import BLOCK_ELEMENTS, CHUNK_ELEMENTS

PLAIN = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
SCALED = {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}
IN_PLACE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def convert_file(source: Path, to: Any, **options: Any) -> tuple[Path, Conversion]:
    target = source.with_name(f"{to}-{source.name}")
    target.unlink(missing_ok=True)
    return target, convert(prepare(source, target, Options(to, **options)))


def numbers(shape: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.05).astype(np.float32)


def report_of(done: Conversion, name: str) -> TensorReport:
    return next(one for one in done.tensors if one.name == name)


FLOATING = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]
WORDS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "U8": 1, "BOOL": 1, "C64": 8}


@st.composite
def any_tensor(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Any bits in any dtype and shape: NaN with payloads, infinities, subnormals, no elements, no axes."""
    dtype = draw(st.sampled_from(list(WORDS)))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    if dtype == "BOOL":
        return draw(arrays.arrays(np.bool_, shape))
    whole = (*shape[:-1], shape[-1] * WORDS[dtype]) if shape else (WORDS[dtype],)
    return draw(arrays.arrays(np.uint8, whole)).view(NUMPY[dtype]).reshape(shape)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")


@IN_PLACE
@pytest.mark.parametrize("to", PLAIN)
@given(tensors=st.dictionaries(NAMES, any_tensor(), max_size=4), metadata=st.sampled_from([None, {"format": "pt"}]))
def test_a_cast_is_the_file_that_ml_dtypes_and_the_library_make(
    to: str, tensors: dict[str, Any], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    source = write(tmp_path / "in.safetensors", tensors, metadata)
    target, done = convert_file(source, to)
    with np.errstate(all="ignore"):
        expected = {
            name: values.astype(PLAIN[to]) if _is_floating(values) else values for name, values in tensors.items()
        }
    assert target.read_bytes() == as_bytes(expected, metadata)
    assert {one.name for one in done.tensors} == tensors.keys()


def _is_floating(values: np.ndarray[Any, Any]) -> bool:
    return values.dtype.name.startswith(("float", "bfloat"))


EDGES = [
    (BLOCK_ELEMENTS - 1,),
    (BLOCK_ELEMENTS + 1,),
    (CHUNK_ELEMENTS - 1,),
    (CHUNK_ELEMENTS,),
    (CHUNK_ELEMENTS + 1,),
    (3, CHUNK_ELEMENTS // 2 + 5),
    (2 * CHUNK_ELEMENTS // 1031 + 1, 1031),
]


@pytest.mark.parametrize("shape", EDGES)
def test_nothing_is_lost_at_the_edges_of_blocks_and_chunks(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = numbers(shape)
    source = write(tmp_path / "in.safetensors", {"a": values, "b": numbers(5)})
    for to, dtype in PLAIN.items():
        target, done = convert_file(source, to)
        assert same_bits(read(target)["a"], values.astype(dtype))
        report = report_of(done, "a")
        if report.losses is not None:
            assert report.losses.elements == values.size
    for to, axis in (("fp8_e4m3", None), ("int8", tuple(range(1, values.ndim)) if values.ndim > 1 else None)):
        target, _ = convert_file(source, to, include=("a",))
        found = read(target)
        largest = 448 if to == "fp8_e4m3" else 127
        scale = (np.abs(values).max(axis=axis, keepdims=values.ndim > 1) / np.float32(largest)).astype(np.float32)
        scale = scale.reshape(1) if scale.size == 1 else scale
        assert same_bits(found["a_scale"], scale)
        scaled = values / scale
        expected = scaled.astype(SCALED[to]) if to in SCALED else np.rint(scaled).astype(np.int8)
        assert same_bits(found["a"], expected)


def test_a_report_says_what_was_lost(tmp_path: Path) -> None:
    values = numbers((64, 64))
    values[0, :4] = (1e6, -1e-9, np.nan, np.inf)
    source = write(tmp_path / "in.safetensors", {"w": values, "ids": np.arange(3)})
    _, done = convert_file(source, "fp16")
    told = report_of(done, "w").as_json()
    assert {key: told[key] for key in ("overflowed", "underflowed", "nan", "inf", "saturated", "elements")} == {
        "overflowed": 1, "underflowed": 1, "nan": 1, "inf": 1, "saturated": 0, "elements": 4096,
    }  # fmt: skip
    assert told["max_relative_error"] == 1
    finite = np.isfinite(values) & (values < 1e5)
    before, after = values[finite].astype(float), values[finite].astype(np.float16).astype(float)
    assert told["mean_squared_error"] == pytest.approx(((before - after) ** 2).mean(), rel=1e-5)
    assert told["sqnr_db"] == pytest.approx(10 * np.log10((before**2).sum() / ((before - after) ** 2).sum()), abs=1e-3)
    assert told["max_abs_error"] == pytest.approx(np.abs(before - after).max(), rel=1e-6)
    assert report_of(done, "ids").as_json() == {
        "name": "ids", "shard": "in.safetensors", "shape": [3], "dtype_before": "I64", "dtype_after": "I64",
        "what": "not floating", "scale_name": None,
    }  # fmt: skip


MODEL = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.mlp.gate_proj.weight": (12, 8),
    "model.layers.0.mlp.gate.weight": (4, 8),
    "model.layers.0.block_sparse_moe.gate.weight": (4, 8),
    "model.layers.0.mlp.shared_expert_gate.weight": (1, 8),
    "model.layers.0.mlp.shared_experts.up_proj.weight": (12, 8),
    "model.layers.0.mlp.experts.3.down_proj.weight": (8, 12),
    "model.layers.0.mlp.experts.gate_up_proj": (4, 8, 12),
    "model.layers.0.router.layer.weight": (4, 8),
    "transformer.h.0.ln_1.weight": (8, 8),
    "transformer.wte.weight": (16, 8),
    "relative_attention_bias.weight": (4, 4),
    "score.weight": (2, 8),
    "lm_head.weight": (16, 8),
}
CONVERTED = {
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.shared_experts.up_proj.weight",
    "model.layers.0.mlp.experts.3.down_proj.weight",
}


@pytest.mark.parametrize("to", ["fp8_e4m3", "fp8_e5m2", "int8"])
def test_what_loses_most_stays_high_in_formats_with_scales(to: str, tmp_path: Path) -> None:
    tensors = {name: numbers(shape) for name, shape in MODEL.items()}
    target, done = convert_file(write(tmp_path / "in.safetensors", tensors), to)
    found = read(target)
    assert {one.name for one in done.tensors if one.losses is not None} == CONVERTED
    assert found.keys() == tensors.keys() | {f"{name}_scale" for name in CONVERTED}
    for name in tensors.keys() - CONVERTED:
        assert same_bits(found[name], tensors[name])
    assert {found[f"{name}_scale"].shape for name in CONVERTED} == ({(8, 1), (12, 1)} if to == "int8" else {(1,)})


def test_patterns_keep_and_include(tmp_path: Path) -> None:
    source = write(tmp_path / "in.safetensors", {name: numbers(shape) for name, shape in MODEL.items()})
    _, done = convert_file(source, "int8", keep=("*experts*",), include=("lm_head.*", "*.gate_up_proj"))
    converted = {one.name for one in done.tensors if one.losses is not None}
    assert converted == {name for name in CONVERTED if "experts" not in name} | {"lm_head.weight"}
    target, done = convert_file(source, "int8", include=("*.gate_up_proj",))
    assert read(target)["model.layers.0.mlp.experts.gate_up_proj_scale"].shape == (4, 1, 1)
    _, done = convert_file(source, "bf16", keep=("*norm*",))
    assert {one.name for one in done.tensors if one.losses is None} == {"model.layers.0.input_layernorm.weight"}


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        ("bf16", {"include": ("*",)}, "--include is for"),
        ("int8", {"saturate": False}, "no infinity"),
        ("bf16", {"keep": ("*.wieght",)}, "matches no tensor; names look like"),
        ("int8", {"include": ("ids",)}, "only floating numbers convert"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(to: Any, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.safetensors", {"a.weight": numbers((2, 2)), "ids": np.arange(2)})
    with pytest.raises(UnusableOption, match=said):
        prepare(source, tmp_path / "out.safetensors", Options(to, **options))


@IN_PLACE
@given(
    values=arrays.arrays(
        np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1e9, 1e9, width=32)
    ),
    to=st.sampled_from(["fp8_e4m3", "fp8_e5m2", "int8"]),
)
def test_there_and_back_again_is_what_the_report_said(values: np.ndarray[Any, Any], to: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.safetensors", {"a.weight": values})
    middle, done = convert_file(source, to)
    back, _ = convert_file(middle, "fp32")
    found, stored = read(back), read(middle)
    assert found.keys() == {"a.weight"}
    assert same_bits(found["a.weight"], stored["a.weight"].astype(np.float32) * stored["a.weight_scale"])
    losses = report_of(done, "a.weight").losses
    assert losses is not None
    assert losses.max_abs_error == pytest.approx(float(np.abs(values - found["a.weight"]).max()), rel=1e-6)
    again, _ = convert_file(middle, to)
    assert again.read_bytes() == middle.read_bytes()


def test_from_one_scaled_format_into_another(tmp_path: Path) -> None:
    values = numbers((6, 7))
    middle, _ = convert_file(write(tmp_path / "in.safetensors", {"a.weight": values}), "int8")
    found = read(convert_file(middle, "fp8_e4m3")[0])
    stored = read(middle)
    back = stored["a.weight"].astype(np.float32) * stored["a.weight_scale"]
    scale = (np.abs(back).max() / np.float32(448)).reshape(1)
    assert same_bits(found["a.weight_scale"], scale)
    assert same_bits(found["a.weight"], (back / scale).astype(ml_dtypes.float8_e4m3fn))


@pytest.mark.parametrize("shape", [(128, 128), (200, 300), (129, 1), (1, 257)])
@pytest.mark.parametrize("scale_dtype", [np.float32, ml_dtypes.bfloat16, ml_dtypes.float8_e8m0fnu])
def test_scales_for_blocks_as_deepseek_has_them_are_read(
    shape: tuple[int, int], scale_dtype: Any, tmp_path: Path
) -> None:
    stored = numbers(shape).astype(ml_dtypes.float8_e4m3fn)
    blocks = tuple(-(-size // 128) for size in shape)
    scales = (2.0 ** np.random.default_rng(2).integers(-3, 4, blocks)).astype(scale_dtype)
    source = write(tmp_path / "in.safetensors", {"a.weight": stored, "a.weight_scale_inv": scales})
    spread = scales.astype(np.float32).repeat(128, axis=0).repeat(128, axis=1)[: shape[0], : shape[1]]
    found = read(convert_file(source, "fp32")[0])
    assert found.keys() == {"a.weight"}
    assert same_bits(found["a.weight"], stored.astype(np.float32) * spread)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"a.weight_scale": np.ones((3, 1), np.float32)}, "is no scale for"),
        ({"a.weight_scale": np.ones(1, np.float64)}, "a scale is one of"),
        ({"a.weight_scale": np.ones(1, np.float32), "a.weight_zero_point": np.zeros(1, np.int8)}, "zero points"),
    ],
)
def test_scales_that_cannot_be_read_are_refused(beside: dict[str, Any], said: str, tmp_path: Path) -> None:
    source = write(tmp_path / "in.safetensors", {"a.weight": np.ones((2, 2), np.int8), **beside})
    with pytest.raises(UnusableCheckpoint, match=said):
        prepare(source, tmp_path / "out.safetensors", Options("fp32"))


def test_a_tensor_already_called_like_a_scale_is_not_overwritten(tmp_path: Path) -> None:
    source = write(tmp_path / "in.safetensors", {"a.weight": numbers((2, 2)), "a.weight_scale": numbers(1)})
    with pytest.raises(UnusableCheckpoint, match=r"--keep 'a\.weight'"):
        prepare(source, tmp_path / "out.safetensors", Options("int8"))


@pytest.mark.parametrize(
    ("to", "saturate", "at_the_end"), [("fp8_e4m3", None, 448), ("fp8_e5m2", None, 57344), ("fp8_e5m2", False, np.inf)]
)
def test_nan_and_infinities_do_not_spoil_a_scale(
    to: str, saturate: bool | None, at_the_end: float, tmp_path: Path
) -> None:
    values = numbers((4, 4))
    values[1, 1:3] = (np.inf, np.nan)
    target, done = convert_file(write(tmp_path / "in.safetensors", {"a.weight": values}), to, saturate=saturate)
    found = read(target)
    back = found["a.weight"].astype(np.float32)
    assert back[1, 1] == at_the_end
    assert np.isnan(back[1, 2])
    assert np.isfinite(found["a.weight_scale"]).all()
    losses = report_of(done, "a.weight").losses
    assert losses is not None
    assert (losses.nan, losses.inf, losses.saturated) == (1, 1, 1 if saturate is None else 0)


def test_nan_has_no_place_in_int8(tmp_path: Path) -> None:
    values = numbers((4, 4))
    values[3, 3] = np.nan
    source = write(tmp_path / "in.safetensors", {"a.weight": values})
    with pytest.raises(UnusableCheckpoint, match=r"--keep 'a\.weight'"):
        convert_file(source, "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_fp16_overflows_unless_it_saturates(tmp_path: Path) -> None:
    source = write(tmp_path / "in.safetensors", {"a": np.array([1e6, -1e6, 1], np.float32)})
    assert read(convert_file(source, "fp16")[0])["a"].tolist() == [np.inf, -np.inf, 1]
    target, done = convert_file(source, "fp16", saturate=True)
    assert read(target)["a"].tolist() == [65504, -65504, 1]
    losses = report_of(done, "a").losses
    assert losses is not None
    assert (losses.saturated, losses.overflowed) == (2, 0)


def test_stored_numbers_beyond_fp32_are_read_back_as_infinite_without_a_word_from_numpy(tmp_path: Path) -> None:
    tensors = {"a.weight": np.full((2, 2), 100, np.int8), "a.weight_scale": np.array([3e38], np.float32)}
    target, done = convert_file(write(tmp_path / "in.safetensors", tensors), "fp32")
    assert np.isinf(read(target)["a.weight"]).all()
    losses = report_of(done, "a.weight").losses
    assert losses is not None
    assert losses.inf == 4
