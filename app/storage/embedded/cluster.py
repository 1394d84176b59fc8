"""The files of the private server: its cluster, its socket directory and its log."""

import os
import pwd
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from app.storage import UnusableDatabase
from app.storage.embedded.programs import installed_major_version, program, run, run_as
from app.units import MIB

NAME = "tonnage"
"""Of the database and of its only role."""

PORT = 5432
"""Part of the socket's file name. It is named because the PGPORT of whoever starts us would decide otherwise."""

SOCKET = f".s.PGSQL.{PORT}"
"""Name of the socket in its directory. Beside it lies a lock file with the server's process id."""

_LONGEST_SOCKET_PATH = 103  # sun_path holds 108 bytes with the closing NUL on Linux, 104 elsewhere
_SOCKET_DIR_PREFIX = "tonnage-"
_MAX_LOG_BYTES = 4 * MIB


def check(cluster: Path) -> None:
    """Refuse whatever lies in the cluster's place and is not for our programs, and leave it as it is.

    Raises UnusableDatabase for another major version, for files of another user, and for something else entirely.
    """
    if not cluster.exists():
        return
    try:
        found = (cluster / "PG_VERSION").read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        raise UnusableDatabase(f"{cluster} is not a PostgreSQL data directory; move it away") from None
    if found != (ours := installed_major_version()):
        raise UnusableDatabase(
            f"{cluster} was made by PostgreSQL {found} and the one installed here is {ours}; "
            f"dump it with version {found} and restore it elsewhere, or choose another directory with --data-dir"
        )


def server_user(cluster: Path) -> tuple[int, int]:
    """Who the server runs as: ourselves; for root, the owner of the cluster or of its directory, else nobody."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        return owner.st_uid, owner.st_gid
    with suppress(KeyError):  # initdb refuses a user without a name, such as the owner of a mounted directory
        owner = cluster.parent.stat()
        if owner.st_uid != 0 and pwd.getpwuid(owner.st_uid):
            return owner.st_uid, owner.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def make(cluster: Path, uid: int, gid: int) -> None:
    """Make a cluster with our empty database in it, all or nothing. Raises UnusableDatabase when that fails."""
    for abandoned in cluster.parent.glob(f"{cluster.name}.new-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f"{cluster.name}.new-", dir=cluster.parent))
    try:
        _give(new, uid, gid)
        prefix = run_as(uid, gid)
        locale = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
        access = (f"--username={NAME}", "--auth=trust", "--no-instructions")
        run([*prefix, program("initdb"), *access, *locale, "-D", str(new)])
        run([*prefix, program("postgres"), "--single", "-D", str(new), "postgres"], f"CREATE DATABASE {NAME}\n")
        new.rename(cluster)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _sync(cluster.parent)


def make_socket_dir(data_dir: Path, uid: int, gid: int) -> Path:
    """A directory for the socket that only the server's user can enter: in `data_dir`, or a short temporary one.

    Temporary where the path is longer than a socket's may be, or has a comma, which libpq takes for a list of hosts.
    """
    path = data_dir / "socket"
    if _fits(path):
        path.mkdir(mode=0o700, exist_ok=True)
    else:
        temporary = Path(tempfile.gettempdir())
        parent = temporary if _fits(temporary / f"{_SOCKET_DIR_PREFIX}xxxxxxxx") else Path("/tmp")  # noqa: S108 made by mkdtemp
        path = Path(tempfile.mkdtemp(prefix=_SOCKET_DIR_PREFIX, dir=parent))
    _give(path, uid, gid)
    return path


def remove_socket_dir(path: Path) -> None:
    """Remove a temporary socket directory; one in the data directory stays."""
    if path.name.startswith(_SOCKET_DIR_PREFIX):
        with suppress(OSError):
            for name in (SOCKET, f"{SOCKET}.lock"):
                (path / name).unlink(missing_ok=True)
            path.rmdir()


def fresh_log(data_dir: Path) -> Path:
    """Where the server's next output goes. A long log is set aside first, in place of the one set aside before."""
    path = data_dir / "postgres.log"
    if path.exists() and path.stat().st_size > _MAX_LOG_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory / SOCKET)) <= _LONGEST_SOCKET_PATH and "," not in str(directory)


def _give(path: Path, uid: int, gid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, gid)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
