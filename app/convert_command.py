"""`tonnage convert`: a checkpoint into another number format, and what that cost each tensor."""

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, get_args

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from app import checkpoints
from app.checkpoints import Conversion, Job, Options, output
from app.checkpoints.faults import CannotConvert, ConversionFailed, UnusableOutput
from app.checkpoints.header import InvalidHeader
from app.checkpoints.plan import Format
from app.checkpoints.report import total, worst
from app.checkpoints.stream import Progress as Told
from app.units import GIB, human_bytes

_SHOWN = 5
_WIDTH = 120
"""Columns that the table needs; a narrower terminal wraps them."""

_NOTEWORTHY_BYTES = GIB
"""Without a terminal, conversions of less than this say nothing before they are done."""

_EPILOG = """\
What stays as it is: integers and booleans always; with FP8 and int8 also norms, embeddings, routers, heads, biases and
whatever is no matrix, unless --include names it. FP8 has one FP32 scale a tensor, int8 one a row, beside it as
NAME_scale: value = stored * scale. --to fp32, bf16 or fp16 reads such a checkpoint back.

OUT appears whole or not at all. A folder that was interrupted is gone on with by the same command.
Exit status: 0 done, 1 failed, 2 wrong input or options."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A checkpoint, where to write it, and in which format."""
    parser.description = "Convert a safetensors checkpoint, a file or a folder of shards, into another number format."
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source", metavar="IN", type=Path, help="a .safetensors file, or a folder of shards with its index"
    )
    parser.add_argument("target", metavar="OUT", type=Path, help="the file or folder to write")
    parser.add_argument("--to", required=True, choices=get_args(Format), help="the number format")
    parser.add_argument(
        "--keep",
        metavar="PATTERN",
        action="append",
        default=[],
        help="leave tensors of this name as they are; * is any text",
    )
    parser.add_argument(
        "--include",
        metavar="PATTERN",
        action="append",
        default=[],
        help="FP8, int8: convert these though they would stay",
    )
    parser.add_argument(
        "--saturate",
        action=argparse.BooleanOptionalAction,
        help="beyond the largest number is the largest number, or infinity (default: the former for FP8 and int8 only)",
    )
    parser.add_argument("--fail-on-overflow", action="store_true", help="write nothing if a number becomes infinite")
    parser.add_argument("--report", metavar="FILE", type=Path, help="write what every tensor lost, as JSON")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Converts. Returns 0, 1 for work that failed, or 2 for input or options that cannot be used."""
    try:
        job = _prepared(arguments)
        done = _converted(job, fail_on_overflow=arguments.fail_on_overflow)
    except (CannotConvert, InvalidHeader) as error:
        return _say(str(error), 2)
    except (ConversionFailed, OSError) as error:
        return _say(_sentence(error), 1)
    except KeyboardInterrupt:
        return _say("stopped; nothing was written", 1)
    try:
        console = Console()
        console.width = max(console.width, _WIDTH)
        show(job, done, console)
        _warn(job, done)
        if arguments.report is not None:
            output.write_whole(arguments.report.resolve(), _report(job, done))
    except (ConversionFailed, OSError) as error:
        return _say(f"{arguments.target} is written, but not its report: {_sentence(error)}", 1)
    except KeyboardInterrupt:
        return _say(f"stopped; {arguments.target} is written, but what it lost was not told in full", 1)
    return 0


def _prepared(arguments: argparse.Namespace) -> Job:
    options = Options(arguments.to, tuple(arguments.keep), tuple(arguments.include), arguments.saturate)
    try:
        job = checkpoints.prepare(arguments.source, arguments.target, options, force=arguments.force)
    except OSError as error:
        raise CannotConvert(_sentence(error)) from error
    _check_report(arguments.report, job)
    return job


def _converted(job: Job, *, fail_on_overflow: bool) -> Conversion:
    try:
        with _sigterm_as_interrupt(), _progress(job) as told:
            return checkpoints.convert(job, progress=told, fail_on_overflow=fail_on_overflow)
    except KeyboardInterrupt:
        kept = output.partial_path(job.target)
        again = f"; finished shards are in {kept}, the same command goes on with them" if kept.is_dir() else ""
        raise ConversionFailed(f"stopped; {job.target} was not written{again}") from None


def show(job: Job, done: Conversion, console: Console) -> None:
    """What was done, and the tensors that lost most."""
    changed = [one for one in done.tensors if one.losses is not None]
    resumed = f"; shards done before: {done.resumed_shards}" if done.resumed_shards else ""
    console.print(
        f"{_tensors(len(changed))} to {job.options.to}, {len(done.tensors) - len(changed):,} as they were; "
        f"{human_bytes(done.bytes_before)} to {human_bytes(done.bytes_after)}{resumed}",
        highlight=False,
    )
    lossy = worst(done.tensors, _SHOWN)
    if not lossy:
        return
    table = Table(title="lost most", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("tensor", overflow="fold")
    for head in ("before", "after", "SQNR dB", "max error", "overflowed", "saturated", "to zero"):
        table.add_column(head, justify="right", no_wrap=True)
    for one in lossy:
        if one.losses is None:
            continue
        quality = "" if one.sqnr_db is None else f"{one.sqnr_db:.1f}"
        counts = (one.losses.overflowed, one.losses.saturated, one.losses.underflowed)
        error = f"{one.losses.max_abs_error:.2e}"
        name = Text(_visible(one.name))
        table.add_row(name, one.dtype_before, one.dtype_after, quality, error, *(f"{count:,}" for count in counts))
    console.print(table)


def _warn(job: Job, done: Conversion) -> None:
    """What somebody should know who reads nothing else."""
    for note in done.notes:
        _say(note, 0)
    apart = [one for one in done.tensors if one.what.endswith("not a matrix") and len(one.shape) > 2]
    if apart:
        _say(
            f"{_tensors(len(apart))} of more than two axes stayed as they were, such as {apart[0].name}; see --include",
            0,
        )
    lost = total(done.tensors)
    if lost.nan or lost.inf:
        _say(f"warning: the input has {lost.nan:,} NaN and {lost.inf:,} infinities", 0)
    if lost.saturated:
        _say(f"warning: {lost.saturated:,} numbers beyond the largest of {job.options.to} were clipped to it", 0)
    if lost.overflowed:
        first = next(one.name for one in done.tensors if one.losses and one.losses.overflowed)
        _say(
            f"WARNING: {lost.overflowed:,} finite numbers are not finite in {job.options.to}, the first in {first}; "
            "convert to bf16 instead, or say --saturate",
            0,
        )


def _report(job: Job, done: Conversion) -> bytes:
    lost = total(done.tensors)
    said: dict[str, Any] = {
        "input": str(job.checkpoint.path),
        "output": str(job.target),
        "format": job.options.to,
        "bytes_before": done.bytes_before,
        "bytes_after": done.bytes_after,
        "overflowed": lost.overflowed,
        "saturated": lost.saturated,
        "underflowed": lost.underflowed,
        "nan": lost.nan,
        "inf": lost.inf,
        "notes": list(done.notes),
        "tensors": [one.as_json() for one in done.tensors],
    }
    return (json.dumps(said, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(
        errors="backslashreplace"  # a path that is no Unicode has half a surrogate pair, which JSON says so
    )


def _check_report(report: Path | None, job: Job) -> None:
    """The report must not take the place of what it is about, and its folder must be there, or be the output."""
    if report is None:
        return
    place = report.resolve()
    taken = {job.target, *(one.shard.path.resolve() for one in job.shards)}
    is_other = place.exists() and not place.is_file()
    if place in taken or is_other or not (place.parent.is_dir() or place.parent == job.target):
        raise UnusableOutput(f"the report cannot be written to {report}; name a file in a folder that exists")


@contextmanager
def _progress(job: Job) -> Iterator[Told]:
    """A bar on a terminal; elsewhere a line at every tenth of a long conversion."""
    total_bytes = sum(step.tensor.bytes for one in job.shards for step in one.steps)
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(total_bytes)
        return
    columns = (
        TextColumn("converting"),
        BarColumn(),
        DownloadColumn(True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total_bytes)
        yield lambda done_bytes: bar.advance(task, done_bytes)


class _Lines:
    """Progress where no bar can be drawn."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes, self._done_bytes, self._tenths = total_bytes, 0, 0

    def __call__(self, done_bytes: int) -> None:
        self._done_bytes += done_bytes
        tenths = 10 * self._done_bytes // max(self._total_bytes, 1)
        if tenths > self._tenths and self._total_bytes >= _NOTEWORTHY_BYTES:
            _say(f"{10 * tenths} % of {human_bytes(self._total_bytes)}", 0)
        self._tenths = tenths


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the work as Ctrl-C does: cleaned up."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sentence(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}; nothing was written"


def _tensors(count: int) -> str:
    return f"{count:,} tensor{'' if count == 1 else 's'}"


def _say(sentence: str, status: int) -> int:
    print(f"tonnage convert: {_visible(sentence)}", file=sys.stderr)
    return status


def _visible(text: str) -> str:
    """Names come from files, which may be anybody's: what would command a terminal is spelled out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
