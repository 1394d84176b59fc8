"""One shard from disk to disk: chunk by chunk, by several threads, each chunk to the place that its header says.

Memory is a few chunks for each thread, whatever the file's size. Reads and writes name their place (`preadv`,
`pwrite`), so that chunks need not wait for each other; losses are added up in the order of the chunks, so that a report
is the same however the threads ran.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.checkpoints.dtypes import NUMPY_DTYPES
from app.checkpoints.faults import ChangedMeanwhile, UnusableCheckpoint
from app.checkpoints.header import Tensor
from app.checkpoints.plan import ShardPlan, Step, StoredScale
from app.checkpoints.report import TensorReport
from app.checkpoints.scales import Grid
from app.checkpoints.source import Shard
from app.precision import casting
from app.precision.casting import Array, Losses
from app.units import MIB

WORKERS = 4
"""Threads: NumPy computes beside Python's lock, and some of them wait for the disk."""

CHUNK_ELEMENTS = 2**19
"""Elements of one chunk: 2 MiB of FP32, still in the cache after it was read."""

BLOCK_ELEMENTS = 2**18
"""Elements that are worked on at a time: few enough to stay in the cache, many enough that the threads seldom wait
for Python's lock."""

_HELD_BYTES = 31 * MIB
"""Once a block of this size was freed, glibc holds what is freed for the next array instead of giving it back to the
system: a fresh process would spend half its time in page faults. Larger blocks, from 32 MiB on, teach it nothing."""

Progress = Callable[[int], None]
"""Told how many more bytes of the input are done."""


def convert_shard(plan: ShardPlan, output: int, *, saturate: bool, progress: Progress) -> list[TensorReport]:
    """Writes the file that `plan` describes to the descriptor `output`, and tells what every tensor lost.

    Raises ChangedMeanwhile when the input is no longer what its header was read from, UnusableCheckpoint for NaN that
    the format cannot hold, and OSError as the disk has it.
    """
    np.empty(_HELD_BYTES, np.uint8)  # freed at once
    _write(output, plan.first_bytes, 0)
    with _opened(plan.shard) as source, _pool() as pool:
        return _Conversion(plan, source, output, saturate, progress, pool).run()


class _Conversion:
    """The state of one shard's conversion."""

    def __init__(
        self, plan: ShardPlan, source: int, output: int, saturate: bool, progress: Progress, pool: ThreadPoolExecutor
    ) -> None:
        self._plan, self._source, self._output = plan, source, output
        self._saturate, self._progress, self._pool = saturate, progress, pool
        self._pending: deque[tuple[str, int, Future[Losses | None]]] = deque()
        self._losses: dict[str, Losses] = {}

    def run(self) -> list[TensorReport]:
        for step in self._plan.steps:
            if step.is_copied:
                self._copy(step)
            else:
                self._convert(step)
        while self._pending:
            self._finish_oldest()
        return [TensorReport.of(step, self._losses.get(step.tensor.name)) for step in self._plan.steps]

    def _copy(self, step: Step) -> None:
        tensor = step.tensor
        begin, target = self._place(tensor), self._target(tensor.name)
        length = CHUNK_ELEMENTS * 4
        for at in range(0, tensor.bytes, length):
            size = min(length, tensor.bytes - at)
            self._submit(tensor, size, partial(self._copy_chunk, begin + at, target + at, size))

    def _copy_chunk(self, begin: int, target: int, size: int) -> None:
        _write(self._output, _read(self._source, _buffer("in", size), begin, self._plan.shard), target)

    def _convert(self, step: Step) -> None:
        tensor = step.tensor
        self._losses[tensor.name] = Losses()
        read = None if step.read_scale is None else (step.read_scale.grid, _scale_values(step.read_scale))
        written = None
        if step.grid is not None and step.scale_name is not None:
            values = self._scales(step, step.grid, read)
            _write(self._output, values.view(np.uint8).data, self._target(step.scale_name))
            written = (step.grid, values)
        for start, stop in _chunks(tensor):
            size = (stop - start) * NUMPY_DTYPES[tensor.dtype].itemsize
            self._submit(tensor, size, partial(self._convert_chunk, step, start, stop, read, written))

    def _convert_chunk(self, step: Step, start: int, stop: int, read: "_Scales", written: "_Scales") -> Losses:
        dtype = NUMPY_DTYPES[step.dtype]
        stored = _buffer("out", (stop - start) * dtype.itemsize).view(dtype)
        losses = Losses()
        for first, last, values in self._blocks(step.tensor, start, stop, read):
            scales = None if written is None else written[0].over(written[1], first, last)
            stored[first - start : last - start], lost = casting.convert(
                values, dtype, scales=scales, saturate=self._saturate
            )
            losses += lost
        _write(self._output, stored.view(np.uint8).data, self._target(step.tensor.name) + start * dtype.itemsize)
        return losses

    def _scales(self, step: Step, grid: Grid, read: "_Scales") -> Array:
        """The scales to be stored: a reading of the whole tensor before the one that converts it."""
        largest = np.zeros(grid.shape[0], np.float32)
        jobs = [
            self._pool.submit(self._largest_of_chunk, step.tensor, grid, read, start, stop)
            for start, stop in _chunks(step.tensor)
        ]
        for job in jobs:
            first_row, found, has_nan = job.result()
            if has_nan and step.dtype == "I8":
                raise UnusableCheckpoint(
                    f"{step.tensor.name} has NaN, which int8 cannot hold; leave it out: --keep '{step.tensor.name}'"
                )
            rows = largest[first_row : first_row + found.size]
            np.maximum(rows, found, out=rows)
        return casting.scales_for(largest, NUMPY_DTYPES[step.dtype])

    def _largest_of_chunk(
        self, tensor: Tensor, grid: Grid, read: "_Scales", start: int, stop: int
    ) -> tuple[int, Array, bool]:
        first_row = start // grid.elements_per_row
        largest = np.zeros((stop - 1) // grid.elements_per_row + 1 - first_row, np.float32)
        any_nan = False
        for first, last, values in self._blocks(tensor, start, stop, read):
            found, has_nan = casting.largest_magnitudes(values, grid.starts(first, last))
            at = first // grid.elements_per_row - first_row
            rows = largest[at : at + found.size]
            np.maximum(rows, found, out=rows)
            any_nan |= has_nan
        return first_row, largest, any_nan

    def _blocks(self, tensor: Tensor, start: int, stop: int, read: "_Scales") -> Iterator[tuple[int, int, Array]]:
        """The numbers of a chunk, a block at a time, with the place of each."""
        dtype = NUMPY_DTYPES[tensor.dtype]
        buffer = _buffer("in", (stop - start) * dtype.itemsize)
        _read(self._source, buffer, self._place(tensor) + start * dtype.itemsize, self._plan.shard)
        numbers = buffer.view(dtype)
        for first in range(start, stop, BLOCK_ELEMENTS):
            last = min(first + BLOCK_ELEMENTS, stop)
            values = numbers[first - start : last - start]
            if read is not None:
                values = casting.scaled_back(values, read[0].over(read[1], first, last))
            yield first, last, values

    def _submit(self, tensor: Tensor, size: int, job: Callable[[], Losses | None]) -> None:
        if len(self._pending) >= 2 * WORKERS:
            self._finish_oldest()
        self._pending.append((tensor.name, size, self._pool.submit(job)))

    def _finish_oldest(self) -> None:
        name, size, job = self._pending.popleft()
        losses = job.result()
        if losses is not None:
            self._losses[name] += losses
        self._progress(size)

    def _place(self, tensor: Tensor) -> int:
        return self._plan.shard.header.data_start_bytes + tensor.begin_bytes

    def _target(self, name: str) -> int:
        return self._plan.header.data_start_bytes + self._plan.header.by_name[name].begin_bytes


_Scales = tuple[Grid, Array] | None
"""Scales and which elements they are for."""

_BUFFERS = threading.local()


def _buffer(use: str, size: int) -> NDArray[np.uint8]:
    """Bytes of this thread, used again for each chunk."""
    buffer: NDArray[np.uint8] | None = getattr(_BUFFERS, use, None)
    if buffer is None or buffer.size < size:
        buffer = np.empty(max(size, CHUNK_ELEMENTS * 4), np.uint8)
        setattr(_BUFFERS, use, buffer)
    return buffer[:size]


def _chunks(tensor: Tensor) -> Iterator[tuple[int, int]]:
    return (
        (start, min(start + CHUNK_ELEMENTS, tensor.elements)) for start in range(0, tensor.elements, CHUNK_ELEMENTS)
    )


def _scale_values(scale: StoredScale) -> Array:
    """Scales that lie beside a tensor, FP32."""
    buffer = np.empty(scale.tensor.bytes, np.uint8)
    with _opened(scale.shard) as source:
        _read(source, buffer, scale.shard.header.data_start_bytes + scale.tensor.begin_bytes, scale.shard)
    return casting.widened(buffer.view(NUMPY_DTYPES[scale.tensor.dtype]))


@contextmanager
def _opened(shard: Shard) -> Iterator[int]:
    """The shard's descriptor. At the end, as at the start, the file must be the one whose header was read."""
    with shard.path.open("rb", buffering=0) as file:
        _check_unchanged(file.fileno(), shard)
        yield file.fileno()
        _check_unchanged(file.fileno(), shard)


def _check_unchanged(source: int, shard: Shard) -> None:
    status = os.fstat(source)
    if (status.st_size, status.st_mtime_ns) != shard.identity:
        raise ChangedMeanwhile(f"{shard.path} changed while it was read; convert it again once nobody writes to it")


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads that drop what they have not begun as soon as anything goes wrong."""
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="convert")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _read(source: int, buffer: NDArray[np.uint8], at: int, shard: Shard) -> memoryview:
    """Fills `buffer` from the place `at`."""
    view, done = buffer.data, 0
    while done < len(view):
        count = os.preadv(source, [view[done:]], at + done)
        if count == 0:
            raise ChangedMeanwhile(f"{shard.path} became shorter while it was read")
        done += count
    return view


def _write(output: int, data: bytes | memoryview, at: int) -> None:
    """All of `data` to the place `at`."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(output, view[done:], at + done)
