"""Who owns a data directory: the process that has its file lock, which the system gives back when that process dies."""

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from app.storage import UnusableDatabase

_GUEST_SECONDS = 30  # a guest needs the server for moments, so an owner waits for it
_POLL_SECONDS = 0.02


class DataDirInUse(UnusableDatabase):
    """Another process owns the data directory. `pid` is that process, None if it cannot be told."""

    def __init__(self, data_dir: Path, pid: int | None) -> None:
        who = "another process" if pid is None else f"process {pid}"
        super().__init__(f"{who} already uses {data_dir}; stop it, or choose another directory with --data-dir")
        self.pid = pid


class DataDirLock:
    """The lock on a data directory, held from `DataDirLock(…)` until `release`."""

    def __init__(self, data_dir: Path, *, guest: bool) -> None:
        """Raises DataDirInUse: at once if an owner has the lock or a guest asks, after a while if a guest has it."""
        path = data_dir / "postgres.lock"
        # Not truncated: until the lock is ours, the text belongs to whoever has it.
        self._file: IO[str] = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", encoding="ascii")
        try:
            if os.geteuid() == 0:  # so that root does not lock users out of their own directory
                os.fchown(self._file.fileno(), data_dir.stat().st_uid, data_dir.stat().st_gid)
            self._acquire(data_dir, guest=guest)
            self._write(f"{os.getpid()} {'guest' if guest else 'owner'}")
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Give the directory up. The file stays: removing it could take the lock of the next owner away."""
        self._write("")
        self._file.close()

    def _acquire(self, data_dir: Path, *, guest: bool) -> None:
        deadline = time.monotonic() + _GUEST_SECONDS
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.seek(0)
                pid, _, role = self._file.read().partition(" ")
                if guest or role == "owner" or time.monotonic() > deadline:
                    raise DataDirInUse(data_dir, int(pid) if pid.isdecimal() else None) from None
                time.sleep(_POLL_SECONDS)
            else:
                return

    def _write(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()
