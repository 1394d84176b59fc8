"""What somebody at a keyboard sees of `tonnage convert`."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import read, write, write_folder

from app.cli import main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    values = (np.random.default_rng(0).standard_normal((64, 64)) * 0.05).astype(np.float32)
    values[0, 0] = 1e6
    return write(
        tmp_path / "in.safetensors", {"layers.0.up.weight": values, "layers.0.norm.weight": np.ones(8, np.float32)}
    )


def convert(*arguments: Any) -> int:
    return main(["convert", *map(str, arguments)])


def test_one_line_says_what_was_done_and_a_table_what_lost_most(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(source, tmp_path / "out.safetensors", "--to", "bf16") == 0
    said = capsys.readouterr()
    assert "2 tensors to bf16, 0 as they were; 16.2" in said.out
    assert "layers.0.up.weight" in said.out
    assert "layers.0.norm.weight" not in said.out
    assert said.err == ""


def test_overflow_is_said_loudly_and_may_be_a_failure(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.safetensors"
    assert convert(source, target, "--to", "fp16", "--fail-on-overflow") == 1
    assert not target.exists()
    assert "1 numbers overflowed, the first in layers.0.up.weight" in capsys.readouterr().err
    assert convert(source, target, "--to", "fp16") == 0
    assert (
        "WARNING: 1 finite numbers are not finite in fp16, the first in layers.0.up.weight" in capsys.readouterr().err
    )
    assert convert(source, target, "--to", "fp16", "--saturate", "--force") == 0
    assert "1 numbers beyond the largest of fp16 were clipped" in capsys.readouterr().err


def test_the_report_has_every_tensor(source: Path, tmp_path: Path) -> None:
    assert convert(source, tmp_path / "out.safetensors", "--to", "fp16", "--report", tmp_path / "report.json") == 0
    told = json.loads((tmp_path / "report.json").read_text())
    assert {one["name"]: one["overflowed"] for one in told["tensors"]} == {
        "layers.0.up.weight": 1,
        "layers.0.norm.weight": 0,
    }
    assert (told["format"], told["overflowed"], told["underflowed"]) == ("fp16", 1, 0)
    assert told["bytes_after"] == (tmp_path / "out.safetensors").stat().st_size


def test_a_folder_says_what_it_changed_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = {"m.safetensors": {"a.weight": np.ones((2, 2), np.float32), "experts.up": np.ones((2, 2, 2), np.float32)}}
    folder = write_folder(tmp_path / "in", shards, config={"torch_dtype": "float32"})
    (folder / "old.bin").touch()
    assert convert(folder, tmp_path / "out", "--to", "int8", "--report", tmp_path / "out" / "report.json") == 0
    assert capsys.readouterr().err.splitlines() == [
        "tonnage convert: config.json: quantization_config says int-quantized, as compressed-tensors has it",
        "tonnage convert: not copied, since not part of the checkpoint: old.bin",
        "tonnage convert: 1 tensor of more than two axes stayed as they were, such as experts.up; see --include",
    ]
    assert (tmp_path / "out" / "report.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "out", "--to", "bf16"), "nowhere does not exist"),
        (("in.safetensors", "in.safetensors", "--to", "bf16"), "is the input itself"),
        (("in.safetensors", "there", "--to", "bf16"), "--force"),
        (("in.safetensors", "out", "--to", "int8", "--no-saturate"), "leave it out"),
        (("in.safetensors", "out", "--to", "bf16", "--keep", "nothing"), "matches no tensor"),
        (("bad.safetensors", "out", "--to", "bf16"), "truncated or not a safetensors file"),
        (("in.safetensors", "out", "--to", "bf16", "--report", "nowhere/report.json"), "a folder that exists"),
        (("in.safetensors", "out", "--to", "bf16", "--report", "out"), "the report cannot be written"),
        (("in.safetensors", "out", "--to", "bf16", "--report", "in.safetensors"), "the report cannot be written"),
        (("in.safetensors", "pipe", "--to", "bf16", "--force"), "a device or a pipe"),
        (("in.safetensors", "out", "--to", "bf16", "--report", "pipe"), "the report cannot be written"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_and_status_two(
    arguments: tuple[str, ...],
    said: str,
    source: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(source.parent)
    Path("there").touch()
    os.mkfifo("pipe")
    Path("bad.safetensors").write_bytes(b"PK\x03\x04")
    assert convert(*arguments) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.startswith("tonnage convert: ")
    assert told.count("\n") == 1
    assert sorted(path.name for path in source.parent.iterdir()) == [
        "bad.safetensors",
        "in.safetensors",
        "pipe",
        "there",
    ]
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("arguments", [("a", "b"), ("a", "b", "--to", "fp4"), ("a", "--to", "bf16")])
def test_wrong_usage_is_status_two(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as left:
        convert(*arguments)
    assert left.value.code == 2


def test_a_name_is_shown_as_it_is_and_commands_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["plain[/red]", "[bold]:smile:", "clear\x1b[2J\nline"]
    values = np.linspace(0, 3, 64, dtype=np.float32).reshape(8, 8, 1)
    source = write(tmp_path / "in.safetensors", dict.fromkeys(names, values))
    assert convert(source, tmp_path / "out.safetensors", "--to", "bf16") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("plain[/red]", "[bold]:smile:", r"clear\x1b[2J\nline"))
    assert convert(source, tmp_path / "copy.safetensors", "--to", "int8") == 0
    assert r"such as [bold]:smile:" in capsys.readouterr().err


def test_a_path_that_is_no_text_is_in_the_report(source: Path, tmp_path: Path) -> None:
    target = tmp_path / os.fsdecode(b"out\xff.safetensors")
    assert convert(source, target, "--to", "bf16", "--report", tmp_path / "report.json") == 0
    assert json.loads((tmp_path / "report.json").read_bytes())["output"] == str(target)


def test_stopped_before_it_began_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    command = [sys.executable, "-m", "app.cli", "convert", str(tmp_path), str(tmp_path) + "-out", "--to", "bf16"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        with (tmp_path / "model.safetensors.index.json").open("w"):  # opens once it is being read
            process.send_signal(signal.SIGINT)
            assert process.wait() == 1
        assert process.stderr is not None
        assert process.stderr.read() == "tonnage convert: stopped; nothing was written\n"


def test_there_is_a_bar_on_a_terminal(source: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "app.cli",
        "convert",
        str(source),
        str(tmp_path / "out.safetensors"),
        "--to",
        "bf16",
    ]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    ran = subprocess.run(command, stderr=theirs, stdout=subprocess.PIPE, env=environment, check=False)
    os.close(theirs)
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    assert ran.returncode == 0
    assert "converting" in said
    assert read(tmp_path / "out.safetensors").keys() == read(source).keys()
