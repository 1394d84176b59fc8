"""Files and folders that appear whole or not at all.

What is being written lies beside its place, named `.<name>.tonnage-partial`, and is renamed once all of it is on the
disk. A run that was killed leaves that behind: a file is begun anew by the next run, a folder is gone on with, shard by
shard. A lock keeps two runs from the same place; it goes with its process, however that ends.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.checkpoints.faults import OutputFailed, UnusableOutput
from app.units import human_bytes

PARTIAL_SUFFIX = ".tonnage-partial"
REPLACED_SUFFIX = ".tonnage-replaced"
_JOURNAL = ".tonnage-journal"


def partial_path(target: Path) -> Path:
    """Where the output lies while it is not whole."""
    return target.with_name(f".{target.name}{PARTIAL_SUFFIX}")


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raises OutputFailed when the disk of `folder` has less room than that."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OutputFailed(
            f"{folder} has {human_bytes(free_bytes)} free and the output needs {human_bytes(needed_bytes)}; "
            "make room or name another disk"
        )


def check_free(target: Path, *, replace: bool) -> None:
    """Raises UnusableOutput when something is there that is not to be replaced; an empty folder is nothing."""
    is_empty = target.is_dir() and not next(target.iterdir(), None)
    if target.exists() and not replace and not is_empty:
        raise UnusableOutput(f"{target} exists; name another output, or say --force to replace it")


@contextmanager
def whole_file(target: Path, *, replace: bool = True) -> Iterator[int]:
    """A descriptor to write to; `target` is there, on the disk and complete, once the block ends without an error."""
    partial = partial_path(target)
    descriptor = _locked(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.ftruncate(descriptor, 0)
        yield descriptor
        os.fsync(descriptor)
        check_free(target, replace=replace)
        partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    _sync_folder(target.parent)


def write_whole(target: Path, data: bytes) -> None:
    """A small file, whole or not at all."""
    with whole_file(target) as descriptor, open(descriptor, "wb", closefd=False) as file:
        file.write(data)


def copy_whole(source: Path, target: Path) -> None:
    """The same bytes at another place, whole or not at all."""
    with (
        whole_file(target) as descriptor,
        source.open("rb") as read,
        open(descriptor, "wb", closefd=False) as written,
    ):
        shutil.copyfileobj(read, written)


class PartialFolder:
    """A folder that is being written, and which of its files a run before has finished.

    `plan` is whatever makes two runs the same: left-overs of another plan are removed.
    """

    def __init__(self, target: Path, plan: Mapping[str, Any], *, replace: bool) -> None:
        self._target, self.path = target, partial_path(target)
        self._journal = self.path / _JOURNAL
        self._replace = replace
        self.path.mkdir(exist_ok=True)
        self._lock = _locked(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
        _put_back(target)
        described = json.dumps(plan, sort_keys=True).encode()
        known = self._journal / "plan.json"
        if not known.is_file() or known.read_bytes() != described:
            for entry in self.path.iterdir():
                _remove(entry)
            self._journal.mkdir()
            write_whole(known, described)

    def note_of(self, name: str) -> Any | None:
        """What was noted when the file of this name was finished; None when it is not."""
        note = self._journal / f"{name}.json"
        return json.loads(note.read_bytes()) if note.is_file() and (self.path / name).is_file() else None

    def finish(self, name: str, note: Any) -> None:
        """Notes that the file of this name is whole and on the disk."""
        write_whole(self._journal / f"{name}.json", json.dumps(note).encode())

    def put_in_place(self) -> None:
        """Makes it the target. What is there steps aside first, and is removed last."""
        check_free(self._target, replace=self._replace)
        _remove(self._journal)
        _sync_folder(self.path)
        replaced = _replaced_path(self._target)
        if self._target.exists():
            self._target.rename(replaced)
        self.path.rename(self._target)
        _sync_folder(self._target.parent)
        shutil.rmtree(replaced, ignore_errors=True)

    def close(self) -> None:
        """Lets other runs at it."""
        os.close(self._lock)

    def give_up(self, *, keep_finished: bool) -> None:
        """Removes all of it, unless another run could go on with what is finished."""
        if not (keep_finished and self._finished()):
            _remove(self.path)

    def _finished(self) -> bool:
        return self._journal.is_dir() and len(list(self._journal.iterdir())) > 1


def _put_back(target: Path) -> None:
    """Ends a replacement that was killed: between its two renames, what stepped aside is all there is."""
    replaced = _replaced_path(target)
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)  # who replaced may be at it too


def _replaced_path(target: Path) -> Path:
    return target.with_name(f".{target.name}{REPLACED_SUFFIX}")


def _locked(path: Path, flags: int) -> int:
    """A descriptor of `path` that nobody else has. Raises OutputFailed when somebody has."""
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # who had it may have renamed it just now: then this is somebody's finished output
        if not os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False)):
            raise BlockingIOError
    except OSError as error:
        os.close(descriptor)
        if not isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        raise OutputFailed(f"another run is writing {path}; wait for it or name another output") from None
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Renames are on the disk once their folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
