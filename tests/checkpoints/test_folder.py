"""Folders of shards: what the index must say, what goes along, and what config.json says afterwards."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoint_files import read, same_bits, write, write_folder

from app.checkpoints import Options, convert, prepare
from app.checkpoints.faults import UnusableCheckpoint, UnusableOutput
from app.checkpoints.header import InvalidHeader

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def numbers(shape: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.05).astype(np.float32)


SHARDS = {
    ONE: {"model.embed_tokens.weight": numbers((16, 8)), "model.layers.0.mlp.up_proj.weight": numbers((12, 8), 1)},
    TWO: {
        "model.layers.1.mlp.up_proj.weight": numbers((12, 8), 2),
        "model.norm.weight": numbers(8),
        "lm_head.weight": numbers((16, 8), 3),
    },
}
CONFIG = {"model_type": "llama", "torch_dtype": "float32", "vocab_size": 16, "text_config": {"dtype": "float32"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_folder(tmp_path / "in", SHARDS, config=CONFIG, other="stays")
    (made / "tokenizer.json").write_text('{"é": 1}')
    (made / "pytorch_model.bin").write_bytes(b"old")
    (made / "original").mkdir()
    return made


def converted(folder: Path, to: Any, **options: Any) -> tuple[Path, Any]:
    target = folder.with_name(f"out-{to}")
    return target, convert(prepare(folder, target, Options(to, **options)))


def config_of(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def test_shards_index_and_other_files_come_out(folder: Path) -> None:
    target, done = converted(folder, "bf16")
    for name, tensors in SHARDS.items():
        found = read(target / name)
        assert all(same_bits(found[tensor], values.astype(ml_dtypes.bfloat16)) for tensor, values in tensors.items())
    index, before = (json.loads((where / INDEX).read_text()) for where in (target, folder))
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"]["total_size"] * 2 == before["metadata"]["total_size"]
    assert index["other"] == "stays"
    assert config_of(target) == CONFIG | {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}
    assert (target / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert sorted(path.name for path in target.iterdir()) == sorted([ONE, TWO, INDEX, "config.json", "tokenizer.json"])
    assert done.notes == (
        "config.json: the dtype is bfloat16 instead of float32",
        "not copied, since not part of the checkpoint: original, pytorch_model.bin",
    )
    assert sorted(path.name for path in folder.parent.iterdir()) == ["in", "out-bf16"]


@pytest.mark.parametrize(
    ("to", "format", "kind"), [("fp8_e4m3", "float-quantized", "float"), ("int8", "int-quantized", "int")]
)
def test_scales_are_in_the_index_and_config_says_how_it_is_quantised(
    to: str, format: str, kind: str, folder: Path
) -> None:
    target, done = converted(folder, to)
    index = json.loads((target / INDEX).read_text())
    assert index["weight_map"]["model.layers.0.mlp.up_proj.weight_scale"] == ONE
    stored = {tensor: values for name in SHARDS for tensor, values in read(target / name).items()}
    assert stored.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(values.nbytes for values in stored.values())
    told = config_of(target)["quantization_config"]
    assert (told["quant_method"], told["format"]) == ("compressed-tensors", format)
    assert told["config_groups"]["group_0"]["weights"]["type"] == kind
    assert told["ignore"] == ["lm_head", "model.embed_tokens"]
    assert any("quantization_config" in note for note in done.notes)


def test_and_back_again_config_is_as_it_was(folder: Path) -> None:
    middle, _ = converted(folder, "fp8_e4m3")
    target, done = converted(middle, "fp32")
    assert config_of(target) == CONFIG
    assert (
        json.loads((target / INDEX).read_text())["weight_map"] == json.loads((folder / INDEX).read_text())["weight_map"]
    )
    assert any("is gone" in note for note in done.notes)
    kept, _ = converted(middle, "bf16", keep=("model.layers.0.*",))
    assert "quantization_config" in config_of(kept)


def test_a_format_that_no_config_can_say_leaves_it_as_it_was(folder: Path) -> None:
    target, done = converted(folder, "fp8_e5m2")
    assert (target / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert any("E4M3 only" in note for note in done.notes)


def test_a_scale_may_lie_in_another_shard(tmp_path: Path) -> None:
    stored = numbers((4, 300)).astype(ml_dtypes.float8_e4m3fn)
    scales = np.array([[1, 2, 4]], np.float32)
    folder = write_folder(
        tmp_path / "in",
        {ONE: {"a.weight": stored}, TWO: {"a.weight_scale_inv": scales, "n": np.ones(1, np.float32)}},
        config={
            "torch_dtype": "bfloat16",
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        },
    )
    target, _ = converted(folder, "bf16")
    spread = scales.repeat(128, axis=1)[:, :300]
    expected = (stored.astype(np.float32) * spread).astype(ml_dtypes.bfloat16)
    assert same_bits(read(target / ONE)["a.weight"], expected)
    assert read(target / TWO).keys() == {"n"}
    assert config_of(target) == {"torch_dtype": "bfloat16"}


def test_other_blocks_are_read_as_config_says(tmp_path: Path) -> None:
    stored, scales = np.ones((4, 6), ml_dtypes.float8_e4m3fn), np.arange(6, dtype=np.float32).reshape(2, 3)
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "model.safetensors", {"a.weight": stored, "a.weight_scale_inv": scales})
    quantization = {"quant_method": "fp8", "weight_block_size": [2, 2]}
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    target, _ = converted(folder, "fp32")
    assert np.array_equal(read(target / "model.safetensors")["a.weight"], scales.repeat(2, 0).repeat(2, 1))


def test_links_as_hub_caches_have_them_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    target, _ = converted(snapshot, "bf16")
    assert not any(path.is_symlink() for path in target.iterdir())
    assert read(target / ONE).keys() == SHARDS[ONE].keys()


def edit_index(folder: Path, **changes: Any) -> None:
    path = folder / INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WEIGHT_MAP = {tensor: name for name, tensors in SHARDS.items() for tensor in tensors}
LIES: dict[str, tuple[Any, str]] = {
    "a shard is missing": (lambda folder: (folder / TWO).unlink(), "lacks shards that its index names: model-00002"),
    "a tensor is missing": (
        lambda folder: edit_index(folder, weight_map=WEIGHT_MAP | {"x": ONE}),
        "lacks tensors that the index names for it: x",
    ),
    "a tensor is in another shard": (
        lambda folder: edit_index(folder, weight_map=WEIGHT_MAP | {"model.norm.weight": ONE}),
        r"lacks tensors that the index names for it: model\.norm",
    ),
    "a tensor too many": (
        lambda folder: edit_index(
            folder, weight_map={name: file for name, file in WEIGHT_MAP.items() if "norm" not in name}
        ),
        r"has tensors besides those that the index names for it: model\.norm",
    ),
    "up and out": (lambda folder: edit_index(folder, weight_map={"x": "../x.safetensors"}), "plain file name"),
    "from the root": (lambda folder: edit_index(folder, weight_map={"x": "/x.safetensors"}), "plain file name"),
    "backslashes": (lambda folder: edit_index(folder, weight_map={"x": "..\\x.safetensors"}), "plain file name"),
    "NUL": (lambda folder: edit_index(folder, weight_map={"x": "\0.safetensors"}), "plain file name"),
    "no safetensors": (lambda folder: edit_index(folder, weight_map={"x": "config.json"}), "plain file name"),
    "a number for a file": (lambda folder: edit_index(folder, weight_map={"x": 1}), "weight_map"),
    "no map": (lambda folder: edit_index(folder, weight_map=[]), "weight_map"),
    "an empty map": (lambda folder: edit_index(folder, weight_map={}), "weight_map"),
    "metadata is a text": (lambda folder: edit_index(folder, metadata="x"), "metadata"),
    "no JSON": (lambda folder: (folder / INDEX).write_text("{"), "is not JSON"),
    "a list": (lambda folder: (folder / INDEX).write_text("[]"), "must be a JSON object"),
    "a name twice": (
        lambda folder: (folder / INDEX).write_text('{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}'),
        "twice",
    ),
    "two indexes": (
        lambda folder: (folder / "other.safetensors.index.json").write_text("{}"),
        "several indexes",
    ),
    "config is no JSON": (lambda folder: (folder / "config.json").write_bytes(b"\xff"), "config.json is not JSON"),
    "somebody else's numbers": (
        lambda folder: (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}'),
        "quantised by 'gptq'",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_is_not_what_its_index_says_is_refused(lie: str, folder: Path) -> None:
    spoil, said = LIES[lie]
    spoil(folder)
    with pytest.raises(UnusableCheckpoint, match=said):
        converted(folder, "bf16")
    assert [path.name for path in folder.parent.iterdir()] == ["in"]


def test_a_damaged_shard_is_named(folder: Path) -> None:
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:-1])
    with pytest.raises(InvalidHeader, match=rf"{TWO}: .*truncated"):
        converted(folder, "bf16")


def test_a_folder_without_weights_or_with_several_files_and_no_index_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "in"
    empty.mkdir()
    with pytest.raises(UnusableCheckpoint, match="no safetensors file"):
        converted(empty, "bf16")
    for name in ("a.safetensors", "b.safetensors"):
        write(empty / name, {"x": numbers(1)})
    with pytest.raises(UnusableCheckpoint, match="no index"):
        converted(empty, "bf16")
    with pytest.raises(UnusableCheckpoint, match="does not exist"):
        converted(tmp_path / "nowhere", "bf16")


@pytest.mark.parametrize("where", ["in", "in/out", "."])
def test_input_and_output_must_lie_apart(where: str, folder: Path) -> None:
    with pytest.raises(UnusableOutput):
        prepare(folder, folder.parent / where, Options("bf16"), force=True)
