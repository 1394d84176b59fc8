"""The private server's life: taken, started, watched, stopped."""

import logging
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlalchemy import URL

from app.storage import UnusableDatabase
from app.storage.embedded import cluster as files
from app.storage.embedded import processes
from app.storage.embedded.lock import DataDirInUse, DataDirLock
from app.storage.embedded.programs import last_words, program, run_as, spawn

_logger = logging.getLogger(__name__)

_START_SECONDS = 300  # recovery after a crash replays the log, which may take a while
_JOIN_SECONDS = 30
_POLL_SECONDS = 0.01
_PAUSES_SECONDS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)  # before each attempt to start again; the last one repeats
_STEADY_SECONDS = 60.0  # a server that ran this long is started again at once

_OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "minimal",  # no replicas here, so less is written
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "max_wal_size": "512MB",
    "jit": "off",  # every query is short
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "log",  # the service logs the errors of its own statements
    "log_checkpoints": "off",
}


@contextmanager
def database(url: str | None, data_dir: Path, *, guest: bool = False) -> Iterator[str]:
    """The database URL to use: `url` itself, or, without one, that of a private server in `data_dir`.

    Without `guest`, the server is started here, watched, and stopped when the block ends; DataDirInUse says that
    another process has it. A guest uses the server that another process runs there, and starts one only if there is
    none. Raises UnusableDatabase when no server can be had.
    """
    if url is not None:
        yield url
        return
    server = EmbeddedPostgres(data_dir, guest=guest)
    try:
        yield server.join() if guest else server.start()
    finally:
        server.stop()


class EmbeddedPostgres:
    """The private server in `data_dir`, owned by this process from `start` to `stop` or for a `with` block.

    `options` are further server settings. A `guest` owns it for a moment only, so the next owner waits for it.
    """

    def __init__(self, data_dir: Path, *, options: Mapping[str, str] | None = None, guest: bool = False) -> None:
        self.data_dir = data_dir.absolute()
        self._cluster = self.data_dir / "postgres"
        self._options = {**_OPTIONS, **(options or {})}
        self._guest = guest
        self._lock: DataDirLock | None = None
        self._command: list[str] = []
        self._socket_dir = self.data_dir / "socket"
        self._process: subprocess.Popen[bytes] | None = None
        self._spawning = threading.Lock()
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the server listens, for SQLAlchemy. It stays the same when the server is started again."""
        return _url(self._socket_dir)

    def start(self) -> str:
        """Take the data directory, start the server and return its URL once it answers.

        Raises DataDirInUse, or UnusableDatabase when the server cannot run here.
        """
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = DataDirLock(self.data_dir, guest=self._guest)
            self._stopping.clear()
            self._prepare()
            self._launch()
        except OSError as error:
            self.stop()
            where = f": {error.filename}" if error.filename else ""
            raise UnusableDatabase(f"no private database in {self.data_dir}: {error.strerror}{where}") from error
        except BaseException:
            self.stop()
            raise
        self._watcher = threading.Thread(target=self._watch, name="postgres-watcher", daemon=True)
        self._watcher.start()
        return self.url

    def join(self) -> str:
        """Like `start`, but where another process owns the directory, its server's URL once that answers."""
        deadline = time.monotonic() + _JOIN_SECONDS
        while True:
            try:
                return self.start()
            except DataDirInUse:
                stated = processes.read_pid_file(self._cluster)
                if stated is not None and stated.is_ready and stated.pid in processes.alive(self._cluster):
                    return _url(stated.socket_dir)
                if time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """Stop the server cleanly and give the data directory up. Does nothing when it is not owned."""
        if self._lock is None:
            return
        self._stopping.set()
        with self._spawning:
            process = self._process
        try:
            if process is not None:
                processes.end(process.send_signal, has_ended=lambda: process.poll() is not None)
            if self._watcher is not None:
                self._watcher.join()
        finally:
            self._process = self._watcher = None
            files.remove_socket_dir(self._socket_dir)
            self._lock.release()
            self._lock = None

    def _prepare(self) -> None:
        files.check(self._cluster)
        uid, gid = files.server_user(self._cluster)
        if not self._cluster.exists():
            files.make(self._cluster, uid, gid)
        earlier = processes.read_pid_file(self._cluster)
        processes.end_leftovers(self._cluster)
        if earlier is not None:
            files.remove_socket_dir(earlier.socket_dir)
        self._socket_dir = files.make_socket_dir(self.data_dir, uid, gid)
        quoted = str(self._socket_dir).replace('"', '""')
        options = {
            **self._options,
            "unix_socket_directories": f'"{quoted}"',
            "cluster_name": processes.mark(self._cluster),
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        address = ["-D", str(self._cluster), "-p", str(files.PORT)]
        self._command = [*run_as(uid, gid), program("postgres"), *address, *settings]

    def _launch(self) -> None:
        """Start the server and wait until it takes connections. Raises UnusableDatabase with the reason it gives."""
        log_path = files.fresh_log(self.data_dir)
        with log_path.open("ab") as log:
            log_start = log.tell()
            with self._spawning:
                if self._stopping.is_set():
                    return
                process = self._process = spawn(self._command, log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._stopping.is_set():
            stated = processes.read_pid_file(self._cluster)
            if stated is not None and stated.pid == process.pid and stated.is_ready:
                return
            if process.poll() is not None:
                said = log_path.read_bytes()[log_start:].decode("utf-8", "replace")
                raise UnusableDatabase(f"the private database in {self.data_dir} did not start: {last_words(said)}")
            if time.monotonic() > deadline:
                raise UnusableDatabase(f"the private database is not ready after {_START_SECONDS} s; see {log_path}")
            time.sleep(_POLL_SECONDS)

    def _watch(self) -> None:
        """Start the server again whenever it ends without having been told to."""
        attempts = 0
        while True:
            process, since = self._process, time.monotonic()
            if process is not None:
                process.wait()
            if time.monotonic() - since > _STEADY_SECONDS:
                attempts = 0
            if self._stopping.wait(_PAUSES_SECONDS[min(attempts, len(_PAUSES_SECONDS) - 1)]):
                return
            attempts += 1
            _logger.error("the private database ended by itself; it is started again", extra={"attempt": attempts})
            try:
                processes.end_leftovers(self._cluster)
                self._launch()
            except (UnusableDatabase, OSError) as error:
                _logger.error("%s", error)  # noqa: TRY400 the text says it all, and this may repeat


def _url(socket_dir: Path) -> str:
    query = {"host": str(socket_dir), "port": str(files.PORT)}
    url = URL.create("postgresql+psycopg", username=files.NAME, database=files.NAME, query=query)
    return url.render_as_string(hide_password=False)
