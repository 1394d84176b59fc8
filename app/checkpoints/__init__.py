"""Checkpoints on disk from one number format into another, in constant memory, whole or not at all."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from app import __version__
from app.checkpoints import folder_files, output
from app.checkpoints.faults import Overflowed, UnusableOutput
from app.checkpoints.output import PartialFolder
from app.checkpoints.plan import Options, ShardPlan, plan
from app.checkpoints.report import TensorReport, total
from app.checkpoints.source import CONFIG, Checkpoint, open_checkpoint
from app.checkpoints.stream import Progress, convert_shard


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done. `notes` are sentences about other files of the folder; `resumed_shards` were finished by a run
    before that was ended."""

    tensors: tuple[TensorReport, ...]
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...] = ()
    resumed_shards: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """A conversion that was checked and can begin: nothing is written yet."""

    checkpoint: Checkpoint
    target: Path
    options: Options
    shards: tuple[ShardPlan, ...]
    replace: bool

    @property
    def bytes_before(self) -> int:
        """The size of what will be read."""
        return sum(one.shard.header.file_bytes for one in self.shards)

    @property
    def bytes_after(self) -> int:
        """The size of what will be written."""
        return sum(one.header.file_bytes for one in self.shards)


def prepare(source: Path, target: Path, options: Options, *, force: bool = False) -> Job:
    """Opens the checkpoint at `source`, and checks all that can be checked before anything is written.

    Raises UnusableOutput, UnusableCheckpoint, InvalidHeader or UnusableOption (bad input), OutputFailed (no room).
    """
    checkpoint = open_checkpoint(source)
    place = _checked_target(checkpoint, target, force=force)
    shards = plan(checkpoint, options)
    return Job(checkpoint, place, options, shards, force)


def convert(job: Job, *, progress: Progress = lambda _: None, fail_on_overflow: bool = False) -> Conversion:
    """Does what was prepared. The target is there when this returns, and as it was before when it raises.

    Raises OutputFailed (no room, somebody else writes there), ChangedMeanwhile, UnusableCheckpoint (NaN for int8),
    Overflowed, OSError.
    """
    write = _convert_folder if job.checkpoint.is_folder else _convert_file
    return write(job, progress, _overflow_check(fail_on_overflow))


def _overflow_check(fail_on_overflow: bool) -> Callable[[list[TensorReport]], None]:
    def check(reports: list[TensorReport]) -> None:
        count = total(reports).overflowed
        if fail_on_overflow and count:
            name = next(one.name for one in reports if one.losses and one.losses.overflowed)
            raise Overflowed(f"{count:,} numbers overflowed, the first in {name}; use a wider format, or --saturate")

    return check


def _convert_file(job: Job, progress: Progress, check: Callable[[list[TensorReport]], None]) -> Conversion:
    output.check_room(job.target.parent, job.bytes_after)
    (shard,) = job.shards
    with output.whole_file(job.target, replace=job.replace) as descriptor:
        reports = convert_shard(shard, descriptor, saturate=job.options.saturates, progress=progress)
        check(reports)
    return Conversion(tuple(reports), job.bytes_before, job.bytes_after)


def _convert_folder(job: Job, progress: Progress, check: Callable[[list[TensorReport]], None]) -> Conversion:
    identity = [[one.shard.name, *one.shard.identity] for one in job.shards]
    described = {"version": __version__, "options": asdict(job.options), "shards": identity}
    folder = PartialFolder(job.target, described, replace=job.replace)
    try:
        output.check_free(job.target, replace=job.replace)  # a replacement that was killed may just have been put back
        finished = {one.shard.name: folder.note_of(one.shard.name) for one in job.shards}
        waiting = [one.header.file_bytes for one in job.shards if finished[one.shard.name] is None]
        output.check_room(job.target.parent, sum(waiting) + sum(one.stat().st_size for one in job.checkpoint.extras))
        reports: list[TensorReport] = []
        for one in job.shards:
            note = finished[one.shard.name]
            reports += _convert_one(job, one, folder, progress) if note is None else map(TensorReport.from_json, note)
            if note is not None:
                progress(sum(step.tensor.bytes for step in one.steps))
        check(reports)
        notes = _write_other_files(job, folder.path)
        folder.put_in_place()
    except BaseException as error:
        folder.give_up(keep_finished=not isinstance(error, Overflowed))
        raise
    finally:
        folder.close()
    resumed = sum(note is not None for note in finished.values())
    return Conversion(tuple(reports), job.bytes_before, job.bytes_after, notes, resumed)


def _convert_one(job: Job, one: ShardPlan, folder: PartialFolder, progress: Progress) -> list[TensorReport]:
    with output.whole_file(folder.path / one.shard.name) as descriptor:
        reports = convert_shard(one, descriptor, saturate=job.options.saturates, progress=progress)
    folder.finish(one.shard.name, [report.kept() for report in reports])
    return reports


def _write_other_files(job: Job, folder: Path) -> tuple[str, ...]:
    """Index, config and all that is no weights; returns what there is to say of them."""
    checkpoint = job.checkpoint
    notes: list[str] = []
    for extra in checkpoint.extras:
        output.copy_whole(extra, folder / extra.name)
    if checkpoint.index_name is not None and checkpoint.index is not None:
        output.write_whole(folder / checkpoint.index_name, folder_files.index_of(checkpoint.index, job.shards))
    if checkpoint.config is not None:
        steps = tuple(step for one in job.shards for step in one.steps)
        changed, said = folder_files.config_of(checkpoint.config, job.options.to, steps)
        notes += said
        output.write_whole(folder / CONFIG, changed or (checkpoint.path / CONFIG).read_bytes())
    if checkpoint.left_out:
        notes.append(f"not copied, since not part of the checkpoint: {', '.join(checkpoint.left_out)}")
    return tuple(notes)


def _checked_target(checkpoint: Checkpoint, target: Path, *, force: bool) -> Path:
    """Where to write, links followed. Raises UnusableOutput when nothing can be written there."""
    source, place = checkpoint.path.resolve(), target.resolve()
    if not place.parent.is_dir():
        raise UnusableOutput(f"{place.parent} is not a folder; make it first")
    if place.exists() and place.samefile(source):
        raise UnusableOutput(f"{target} is the input itself; name another output")
    if checkpoint.is_folder and (place.is_relative_to(source) or source.is_relative_to(place)):
        raise UnusableOutput(f"{target} and the input lie within each other; name an output outside of it")
    if any(place == one.path.resolve() for one in (plan_shard for plan_shard in checkpoint.shards)):
        raise UnusableOutput(f"{target} is the input itself; name another output")
    if place.exists():
        if not place.is_dir() and not place.is_file():
            raise UnusableOutput(f"{target} is a device or a pipe; name a file or a folder")
        if place.is_dir() != checkpoint.is_folder:
            kind = "a folder" if checkpoint.is_folder else "a file"
            raise UnusableOutput(f"the input is {kind} and {target} is not; name {kind}")
        output.check_free(place, replace=force)
    return place


__all__ = [
    "Conversion",
    "Job",
    "Options",
    "TensorReport",
    "convert",
    "open_checkpoint",
    "prepare",
]
