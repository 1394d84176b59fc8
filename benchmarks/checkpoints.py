"""Converting a checkpoint beside copying it: speed, and the peak memory of the converting process.

Both read the same file out of the page cache, write a new file and sync it to the disk. Of every pair of runs the copy
goes first; told are the medians. CPU time, of all threads, is what a busy machine disturbs least. `CHECKPOINT_BYTES` in
the environment chooses another size than 4 GB.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from app.checkpoints.header import write_header
from app.units import GB, MB, human_bytes

SLOWEST_RATIO = 0.5
"""FP32 to BF16 may take twice the time of a copy."""

MOST_BYTES = 500 * MB
"""Of memory, whatever the file's size."""

COLUMNS = 4096
ROUNDS = 3
CONVERT = """
import re, sys
from app.cli import main
status = main(["convert", *sys.argv[1:]])
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
sys.exit(status)
"""


def checkpoints() -> None:
    size = int(os.environ.get("CHECKPOINT_BYTES", 4 * GB))
    with tempfile.TemporaryDirectory(prefix="tonnage-bench-") as folder:
        free = shutil.disk_usage(folder).free
        if free < 2.5 * size:
            print(f"converting: {folder} has {human_bytes(free)} free, too little for {human_bytes(size)} twice")
            return
        source = Path(folder) / "in.safetensors"
        write_checkpoint(source, size)
        for to in ("bf16", "fp16", "fp8_e4m3", "int8"):
            beside_a_copy(source, to)


def write_checkpoint(path: Path, size: int) -> None:
    """Sixteen matrices of normal numbers."""
    rows = max(size // 16 // 4 // COLUMNS, 1)
    tensors = [(f"layers.{number}.mlp.up_proj.weight", "F32", (rows, COLUMNS)) for number in range(16)]
    header, first_bytes = write_header(tensors, {"format": "pt"})
    block = (np.random.default_rng(0).standard_normal(2**22) * 0.02).astype(np.float32).tobytes()
    with path.open("wb") as file:
        file.write(first_bytes)
        for at in range(0, header.data_bytes, len(block)):
            file.write(block[: header.data_bytes - at])


def beside_a_copy(source: Path, to: str) -> None:
    target = source.with_name("out.safetensors")
    copies, conversions, peaks = [], [], []
    started = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(ROUNDS):
        copies.append(seconds(lambda: copy(source, target)))
        target.unlink()
        conversions.append(seconds(lambda: peaks.append(convert(source, target, to))))
        target.unlink()
    ratio = statistics.median(copies) / statistics.median(conversions)
    ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    of_copy, of_conversion = (
        cpu_seconds(after) - cpu_seconds(before) for before, after in zip(started, ended, strict=True)
    )
    cpu = of_conversion / of_copy
    rate = source.stat().st_size / statistics.median(conversions) / GB
    slow = f"; below {SLOWEST_RATIO}" if to == "bf16" and ratio < SLOWEST_RATIO else ""
    large = f"; over {human_bytes(MOST_BYTES)}" if max(peaks) >= MOST_BYTES else ""
    print(
        f"{f'fp32 to {to}, {human_bytes(source.stat().st_size)}, synced':52s} {rate:10.2f} GB/s     "
        f"{ratio:.2f} × the speed of copying it{slow}; CPU {cpu:.1f} times the copy's; "
        f"peak {human_bytes(max(peaks))}{large}"
    )


def cpu_seconds(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def convert(source: Path, target: Path, to: str) -> int:
    """Converts in a process of its own, as a user would, and returns the most memory that it ever held."""
    command = [sys.executable, "-c", CONVERT, str(source), str(target), "--to", to]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(ran.stdout.splitlines()[-1])) * 1024


if __name__ == "__main__":
    checkpoints()
