"""The server's processes: what its pid file says, which are alive, and how they are ended."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from app.storage.embedded.cluster import SOCKET

_POLL_SECONDS = 0.01
_ENDINGS = (  # PostgreSQL's shutdown modes, and what no process survives
    (signal.SIGINT, 60.0),  # fast: sessions are cut, everything is written
    (signal.SIGQUIT, 5.0),  # immediate: the next start recovers from the log
    (signal.SIGKILL, 5.0),
)


class PidFile(NamedTuple):
    """What a server writes about itself. It outlives a server that was killed, and then its pid may be anybody's."""

    pid: int
    socket_dir: Path
    is_ready: bool


def read_pid_file(cluster: Path) -> PidFile | None:
    """The cluster's pid file; None when there is none, or it is not complete yet."""
    try:
        lines = (cluster / "postmaster.pid").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        return PidFile(pid=int(lines[0]), socket_dir=Path(lines[4]), is_ready=lines[7].strip() == "ready")
    except (FileNotFoundError, IndexError, ValueError):
        return None


def mark(cluster: Path) -> str:
    """A name for the cluster that all its processes carry in their title: it tells them from every other PostgreSQL.

    It follows the directory when that is renamed, a copy of the directory has another one, and none begins another.
    """
    directory = cluster.stat()
    return f"tonnage-{directory.st_dev:x}-{directory.st_ino:016x}"


def alive(cluster: Path) -> frozenset[int]:
    """Processes of the cluster's server, whoever started it. Empty on systems without /proc, where none can be told."""
    wanted = os.fsencode(mark(cluster))
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it may have ended by now
            if (entry / "comm").read_bytes() == b"postgres\n" and wanted in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
    return frozenset(found)


def end(send_signal: Callable[[int], None], *, has_ended: Callable[[], bool]) -> None:
    """End a server process: cleanly if it lets itself be, by force if not."""
    for number, patience_seconds in _ENDINGS:
        if has_ended():  # looked at before each signal, because its process id may soon be somebody else's
            return
        with suppress(ProcessLookupError):
            send_signal(number)
        deadline = time.monotonic() + patience_seconds
        while time.monotonic() < deadline and not has_ended():
            time.sleep(_POLL_SECONDS)


def end_leftovers(cluster: Path) -> None:
    """End what a killed owner or a killed server left running, so that a server can start in the cluster.

    A server without an owner is stopped as usual. Sessions of a server that was killed end themselves as soon as they
    notice; those that do not are ended, because a new server cannot start beside them.
    """
    stated = read_pid_file(cluster)
    if stated is not None and stated.pid in alive(cluster):
        end(partial(os.kill, stated.pid), has_ended=partial(_has_ended, cluster, stated.pid))
    for pid in alive(cluster):
        end(partial(os.kill, pid), has_ended=partial(_has_ended, cluster, pid))
    if stated is not None and Path(f"/proc/{stated.pid}").exists():
        # Somebody else has that process id now, or its zombie has. PostgreSQL would take either for a running server.
        for path in (cluster / "postmaster.pid", stated.socket_dir / f"{SOCKET}.lock"):
            path.unlink(missing_ok=True)


def _has_ended(cluster: Path, pid: int) -> bool:
    return pid not in alive(cluster)
