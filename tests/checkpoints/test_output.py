"""Whole or not at all: refusals before anything is written, and every way in which a run can end in the middle."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import read, write, write_folder

from app.checkpoints import Options, convert, prepare
from app.checkpoints.faults import ChangedMeanwhile, OutputFailed, Overflowed, UnusableOutput
from app.checkpoints.header import write_header

BF16 = Options("bf16")


def numbers(shape: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.05).astype(np.float32)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in.safetensors", {name: numbers((64, 64)) for name in "abcdef"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = {f"model-{number}.safetensors": {f"{number}.weight": numbers((64, 64), number)} for number in range(4)}
    return write_folder(tmp_path / "in", shards, config={"torch_dtype": "float32"})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_exists_is_not_replaced_unless_asked(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"precious")
    with pytest.raises(UnusableOutput, match="--force"):
        prepare(source, target, BF16)
    assert target.read_bytes() == b"precious"
    convert(prepare(source, target, BF16, force=True))
    assert read(target).keys() == set("abcdef")


def test_a_folder_that_exists_is_replaced_as_a_whole_and_an_empty_one_is_filled(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    convert(prepare(folder, target, BF16))
    first = contents(target)
    (target / "stale").touch()
    with pytest.raises(UnusableOutput, match="--force"):
        prepare(folder, target, BF16)
    convert(prepare(folder, target, BF16, force=True))
    assert contents(target) == first
    assert names(tmp_path) == ["in", "out"]


@pytest.mark.parametrize("link", ["itself", "symbolic link", "hard link", "another way"])
def test_the_input_is_not_written_over(link: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "link.safetensors"
    if link == "itself":
        target = source
    elif link == "symbolic link":
        target.symlink_to(source)
    elif link == "hard link":
        target.hardlink_to(source)
    else:
        (tmp_path / "way").symlink_to(tmp_path)
        target = tmp_path / "way" / source.name
    before = source.read_bytes()
    with pytest.raises(UnusableOutput, match="input itself"):
        prepare(source, target, BF16, force=True)
    assert source.read_bytes() == before


def test_a_shard_is_not_written_over_by_what_is_made_of_a_link_to_it(source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(source)
    with pytest.raises(UnusableOutput, match="input itself"):
        prepare(link, source, BF16, force=True)


def test_a_link_in_the_place_of_the_output_is_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "out.safetensors"
    link.symlink_to(tmp_path / "disk" / "out.safetensors")
    convert(prepare(source, link, BF16))
    assert link.is_symlink()
    assert names(tmp_path / "disk") == ["out.safetensors"]


def test_file_and_folder_are_not_mixed_up(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UnusableOutput, match="name a file"):
        prepare(source, tmp_path / "there", BF16)
    with pytest.raises(UnusableOutput, match="make it first"):
        prepare(source, tmp_path / "nowhere" / "out.safetensors", BF16)


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    free = os.statvfs(tmp_path)
    rows = 4 * free.f_bavail * free.f_frsize // 4096 + 1
    header, first_bytes = write_header([("a", "F32", (rows, 1024))], {})
    with source.open("wb") as file:
        file.write(first_bytes)
        file.truncate(header.file_bytes)  # sparse: takes no room itself
    with pytest.raises(OutputFailed, match="make room"):
        convert(prepare(source, tmp_path / "out.safetensors", BF16))
    assert names(tmp_path) == ["in.safetensors"]


class Stop(Exception):
    """What comes in between."""


def stop_after(count: int) -> Any:
    """A listener to progress that ends the run the count-th time."""
    left = iter(range(count))

    def told(_: int) -> None:
        if next(left, None) is None:
            raise Stop

    return told


def test_a_file_that_broke_off_leaves_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    with pytest.raises(Stop):
        convert(prepare(source, target, BF16), progress=stop_after(2))
    assert names(tmp_path) == ["in.safetensors"]


def test_a_folder_that_broke_off_is_gone_on_with(folder: Path, tmp_path: Path) -> None:
    whole, target = tmp_path / "whole", tmp_path / "out"
    expected = convert(prepare(folder, whole, BF16))
    with pytest.raises(Stop):
        convert(prepare(folder, target, BF16), progress=stop_after(2))
    assert not target.exists()
    assert ".out.tonnage-partial" in names(tmp_path)
    done = convert(prepare(folder, target, BF16))
    assert done.resumed_shards == 2
    assert done.tensors == expected.tensors
    assert contents(target) == contents(whole)
    assert names(tmp_path) == ["in", "out", "whole"]


@pytest.mark.parametrize("change", ["options", "input"])
def test_what_another_conversion_left_is_not_gone_on_with(change: str, folder: Path, tmp_path: Path) -> None:
    target, options = tmp_path / "out", BF16
    with pytest.raises(Stop):
        convert(prepare(folder, target, BF16), progress=stop_after(2))
    if change == "options":
        options = Options("fp16")
    else:
        write(folder / "model-0.safetensors", {"0.weight": numbers((64, 64), 9)})
    assert convert(prepare(folder, target, options)).resumed_shards == 0
    whole = tmp_path / "whole"
    convert(prepare(folder, whole, options))
    assert contents(target) == contents(whole)


def test_a_folder_that_broke_off_in_its_first_shard_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        convert(prepare(folder, tmp_path / "out", BF16), progress=stop_after(0))
    assert names(tmp_path) == ["in"]


def test_overflow_can_be_made_a_failure_that_leaves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "in.safetensors", {"a": np.array([1e6], np.float32)})
    folder = write_folder(tmp_path / "in", {"m.safetensors": {"a": np.array([1e6], np.float32)}})
    for given in (source, folder):
        with pytest.raises(Overflowed, match="1 numbers overflowed, the first in a"):
            convert(prepare(given, tmp_path / "out", Options("fp16")), fail_on_overflow=True)
    assert names(tmp_path) == ["in", "in.safetensors"]


@pytest.mark.parametrize("change", ["longer", "shorter"])
def test_an_input_that_changes_meanwhile_is_not_believed(change: str, source: Path, tmp_path: Path) -> None:
    job = prepare(source, tmp_path / "out.safetensors", BF16)
    with source.open("r+b") as file:
        file.truncate(source.stat().st_size + (1 if change == "longer" else -20_000))
    with pytest.raises(ChangedMeanwhile, match="nobody writes to it"):
        convert(job)
    assert names(tmp_path) == ["in.safetensors"]


def test_two_runs_do_not_write_to_the_same_place(source: Path, folder: Path, tmp_path: Path) -> None:
    for given, name in ((source, "out.safetensors"), (folder, "out")):
        refused = []

        def second(_: int, given: Path = given, name: str = name, refused: list[str] = refused) -> None:
            with pytest.raises(OutputFailed, match="another run is writing") as error:
                convert(prepare(given, tmp_path / name, BF16))
            refused.append(str(error.value))

        convert(prepare(given, tmp_path / name, BF16), progress=second)
        assert refused


RUN = """
import sys
from pathlib import Path
from app.checkpoints import Options, convert, prepare

left = int(sys.argv[3])

def told(_):
    global left
    left -= 1
    if left == 0:
        print("in the middle", flush=True)
        sys.stdin.read()  # until killed

convert(prepare(Path(sys.argv[1]), Path(sys.argv[2]), Options("bf16")), progress=told)
"""


@contextmanager
def in_the_middle(source: Path, target: Path, steps: int) -> Iterator[subprocess.Popen[str]]:
    """A process that stands still in the middle of a conversion."""
    command = [sys.executable, "-c", RUN, str(source), str(target), str(steps)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle\n"
        yield process


def test_a_killed_file_is_begun_anew_by_the_next_run(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    with in_the_middle(source, target, 3) as process:
        process.kill()
    assert names(tmp_path) == [".out.safetensors.tonnage-partial", "in.safetensors"]
    convert(prepare(source, target, BF16))
    whole = tmp_path / "whole.safetensors"
    convert(prepare(source, whole, BF16))
    assert target.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == ["in.safetensors", "out.safetensors", "whole.safetensors"]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_killed_folder_is_gone_on_with_to_the_identical_result(steps: int, folder: Path, tmp_path: Path) -> None:
    target, whole = tmp_path / "out", tmp_path / "whole"
    expected = convert(prepare(folder, whole, BF16))
    with in_the_middle(folder, target, steps) as process:
        process.kill()
    assert not target.exists()
    done = convert(prepare(folder, target, BF16))
    assert done.resumed_shards == steps - 1
    assert done.tensors == expected.tensors
    assert contents(target) == contents(whole)
    assert names(tmp_path) == ["in", "out", "whole"]


def test_a_replacement_killed_between_its_two_renames_is_put_back(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    convert(prepare(folder, target, BF16))
    before = contents(target)
    target.rename(tmp_path / ".out.tonnage-replaced")
    with pytest.raises(UnusableOutput, match="--force"):
        convert(prepare(folder, target, BF16))
    assert contents(target) == before


def test_a_disk_that_takes_no_more_leaves_nothing(source: Path, tmp_path: Path) -> None:
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
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert ran.returncode == 1
    assert ran.stderr == "tonnage convert: File too large; nothing was written\n"
    assert names(tmp_path) == ["in.safetensors"]


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_cleans_up(end: signal.Signals, tmp_path: Path) -> None:
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    # a tensor of 16 GiB whose scale takes half a minute to find; sparse, so that it takes no room
    header, first_bytes = write_header([("a.weight", "F32", (2**20, 2**12))], {})
    with source.open("wb") as file:
        file.write(first_bytes)
        file.truncate(header.file_bytes)
    command = [sys.executable, "-m", "app.cli", "convert", str(source), str(target), "--to", "fp8_e4m3"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while ".out.safetensors.tonnage-partial" not in names(tmp_path):
            assert process.poll() is None
        process.send_signal(end)
        _, said = process.communicate()
    assert process.returncode == 1
    assert said == f"tonnage convert: stopped; {target} was not written\n"
    assert names(tmp_path) == ["in.safetensors"]


def test_a_journal_is_no_part_of_the_result(folder: Path, tmp_path: Path) -> None:
    convert(prepare(folder, tmp_path / "out", BF16))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert names(tmp_path / "out") == sorted(
        {*index["weight_map"].values(), "config.json", "model.safetensors.index.json"}
    )


def test_what_appears_meanwhile_in_the_place_of_the_output_stays(source: Path, folder: Path, tmp_path: Path) -> None:
    for given, name in ((source, "out.safetensors"), (folder, "out")):
        target = tmp_path / name

        def appears(_: int, target: Path = target, is_folder: bool = given.is_dir()) -> None:
            (target.mkdir(exist_ok=True), (target / "x").touch()) if is_folder else target.write_bytes(b"precious")

        with pytest.raises(UnusableOutput, match="exists"):
            convert(prepare(given, target, BF16), progress=appears)
        assert target.is_dir() or target.read_bytes() == b"precious"


def test_left_overs_longer_than_the_output_leave_no_trace_in_it(source: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.safetensors.tonnage-partial").write_bytes(b"\xff" * 1_000_000)
    convert(prepare(source, tmp_path / "out.safetensors", BF16))
    convert(prepare(source, tmp_path / "whole.safetensors", BF16))
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
