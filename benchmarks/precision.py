"""Conversions: how long a thousand numbers take, and how much memory a file of any size. Part of `make bench`."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

from app.api.tensor_reports import TensorUpload, report_on
from app.precision.convert import convert
from app.precision.formats import NUMBER_FORMATS
from app.precision.scheme import Scheme, ShapedScheme

SMALL_BYTES, LARGE_BYTES = 64 * 2**20, 2 * 2**30
COLUMNS = 4096
TARGETS = ("fp16", "bf16", "fp8_e4m3", "fp8_e5m2", "int8")
STREAMED = ("mxfp4", "nvfp4")
"""A format that is worked out as elements come in, and one whose tensors wait on disk."""


class Made:
    """A safetensors file of one BF16 matrix, made as it is read."""

    def __init__(self, size: int) -> None:
        entry = {"dtype": "BF16", "shape": [size // 2 // COLUMNS, COLUMNS], "data_offsets": [0, size]}
        text = json.dumps({"weight": entry}).encode()
        self._header = len(text).to_bytes(8, "little") + text
        self._left = size
        weights = np.random.default_rng(1).standard_normal(2**19).astype(np.float32)
        self._elements = (weights.view(np.uint32) >> 16).astype(np.uint16).tobytes()

    def read(self, size: int) -> bytes:
        if self._header:
            found, self._header = self._header[:size], self._header[size:]
            return found
        self._left -= size
        return (self._elements * (size // len(self._elements) + 1))[:size]

    def is_at_end(self) -> bool:
        return not self._left


def numbers(cpu_seconds: Callable[[Callable[[], object], int], float], say: Callable[[str, float, str], None]) -> None:
    """A thousand numerals in five formats, beside NumPy's own cast of as many numbers."""
    values = np.random.default_rng(2).standard_normal(1000)
    numerals = [repr(float(value)) for value in values]
    source, targets = NUMBER_FORMATS["fp32"], [NUMBER_FORMATS[name] for name in TARGETS]
    ours = cpu_seconds(lambda: convert(numerals, source, targets, ShapedScheme()), 5)
    parsing = cpu_seconds(lambda: [np.float16(float(text)) for text in numerals for _ in TARGETS], 5)
    beside = f"{ours / parsing:.1f} × float() and NumPy's cast of each, without bits and errors"
    say("1,000 numbers in 5 formats, bit by bit", ours, beside)


def files(say: Callable[[str, float, str], None]) -> None:
    """Peak memory of a process that converts a large file, beside one that converts a small one."""
    for to in STREAMED:
        small, large = (_peak(size, to) for size in (SMALL_BYTES, LARGE_BYTES))
        growth = (large["peak_bytes"] - small["peak_bytes"]) / 2**20
        beside = (
            f"{LARGE_BYTES / SMALL_BYTES:.0f} × the file, {large['peak_bytes'] / small['peak_bytes']:.2f} × the memory "
            f"({growth:+.0f} MiB), {LARGE_BYTES / large['seconds'] / 1e6:.0f} MB/s"
        )
        say(f"a file of {LARGE_BYTES / 2**30:.0f} GiB as {to}", large["seconds"], beside)


def _peak(size: int, to: str) -> dict[str, float]:
    ran = subprocess.run([sys.executable, __file__, str(size), to], capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(ran.stdout)
    return measured


def measure(size: int, to: str) -> dict[str, float]:
    start = time.process_time()
    upload = TensorUpload(Made(size), None, LARGE_BYTES)
    report = report_on(upload, NUMBER_FORMATS[to], Scheme())
    assert report.totals.errors.values == size // 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_bytes": peak, "seconds": time.process_time() - start}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2])))
