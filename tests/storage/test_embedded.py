"""The private server: owned by one, found by guests, back after every kind of death, gone after a stop."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, make_url, text

from app.errors import Unavailable
from app.storage import UnusableDatabase, db
from app.storage.embedded import DataDirInUse, EmbeddedPostgres, database, processes
from app.storage.embedded.programs import run_as

IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")
SOMEBODY = pwd.getpwnam("nobody")

OWNER = """
import signal, sys
from pathlib import Path
from app.storage.embedded import database
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
with database(None, Path(sys.argv[1]), guest=len(sys.argv) > 2) as url:
    print(url, flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def made_once() -> Iterator[Path]:
    """A data directory with a cluster, lent to one test after the other: making one takes a second."""
    parent = Path(tempfile.mkdtemp(prefix="tonnage-"))
    with EmbeddedPostgres(parent / "data") as server:
        execute(server.url, "CREATE TABLE notes (note text)")
    yield parent / "data"
    shutil.rmtree(parent)


@pytest.fixture
def data_dir(made_once: Path) -> Iterator[Path]:
    """A data directory with a cluster and an empty table `notes`. A test leaves it whole, but may leave it running."""
    parent = Path(tempfile.mkdtemp(prefix="tonnage-"))
    path = made_once.rename(parent / "data")
    yield path
    for pid in processes.alive(path / "postgres"):
        os.kill(pid, signal.SIGKILL)
    with EmbeddedPostgres(path, options={"fsync": "off"}) as server:
        execute(server.url, "TRUNCATE notes")
    for name in ("postgres.log", "postgres.log.1"):
        (path / name).unlink(missing_ok=True)
    path.rename(made_once)
    shutil.rmtree(parent)


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    address = make_url(url)
    names = address.translate_connect_args(username="user", database="dbname")
    with psycopg.connect(**names, **address.query, autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[arg-type]  # statements of the tests
        return cursor.fetchall() if cursor.description else []


def until(happened: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def postmaster(data_dir: Path) -> int | None:
    """Process id of the server as its pid file has it: of a killed one too, until the next has started."""
    stated = processes.read_pid_file(data_dir / "postgres")
    return None if stated is None else stated.pid


def kill(pid: int | None) -> int:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


@contextmanager
def owner(data_dir: Path, *more: str, prefix: tuple[str, ...] = ()) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that has the private server, and the server's URL."""
    command = [*prefix, sys.executable, "-c", OWNER, str(data_dir), *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            url = process.stdout.readline().strip()
            assert url, process.stderr.read()
            yield process, url
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(20)


def test_what_is_committed_is_there_after_a_restart(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        execute(server.url, "INSERT INTO notes VALUES ('kept')")
    with EmbeddedPostgres(data_dir) as server:
        assert execute(server.url, "SELECT note FROM notes") == [("kept",)]


def test_a_stop_leaves_no_process_no_socket_and_a_clean_cluster(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        assert processes.alive(data_dir / "postgres")
    assert not processes.alive(data_dir / "postgres")
    assert list((data_dir / "socket").iterdir()) == []
    assert processes.read_pid_file(data_dir / "postgres") is None
    log = (data_dir / "postgres.log").read_text()
    assert log.rstrip().endswith("database system is shut down")
    assert "not properly shut down" not in log


def test_only_its_user_reaches_the_server_and_nothing_over_the_network(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        assert execute(server.url, "SHOW listen_addresses") == [("",)]
        assert data_dir.stat().st_mode & 0o777 == 0o700
        assert (data_dir / "socket").stat().st_mode & 0o777 == 0o700


def test_settings_keep_what_is_committed_and_ignore_the_environment(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGOPTIONS": "-c fsync=off", "LC_ALL": "xx_XX"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(data_dir) as server:
        monkeypatch.delenv("PGOPTIONS")  # libpq would hand it to the server as a wish of this client
        shown = {name: execute(server.url, f"SHOW {name}") for name in ("fsync", "synchronous_commit", "timezone")}
        assert shown == {"fsync": [("on",)], "synchronous_commit": [("on",)], "timezone": [("UTC",)]}


def test_text_sorts_the_same_on_every_machine(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        sql = "SELECT string_agg(word, ' ' ORDER BY word) FROM unnest('{b,a,B,é}'::text[]) AS word"
        assert execute(server.url, sql) == [("B a b é",)]
        assert execute(server.url, "SELECT lower('É'), getdatabaseencoding()") == [("é", "UTF8")]


def test_a_second_owner_is_told_who_is_the_first(data_dir: Path) -> None:
    with owner(data_dir) as (process, _), pytest.raises(DataDirInUse, match=f"process {process.pid} ") as refused:
        EmbeddedPostgres(data_dir).start()
    assert refused.value.pid == process.pid


def test_a_second_owner_in_the_same_process_is_refused_and_harms_nothing(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        with pytest.raises(DataDirInUse), EmbeddedPostgres(data_dir):
            pass
        assert execute(server.url, "SELECT 1") == [(1,)]


def test_a_guest_uses_the_running_server_and_leaves_it_running(data_dir: Path) -> None:
    with owner(data_dir) as (_, url):
        with database(None, data_dir, guest=True) as found:
            assert found == url
            execute(found, "INSERT INTO notes VALUES ('from a guest')")
        assert execute(url, "SELECT note FROM notes") == [("from a guest",)]


def test_a_guest_alone_starts_the_server_and_stops_it(data_dir: Path) -> None:
    with database(None, data_dir, guest=True) as url:
        execute(url, "INSERT INTO notes VALUES ('alone')")
    assert not processes.alive(data_dir / "postgres")


def test_an_owner_waits_for_a_guest_and_two_guests_share(data_dir: Path) -> None:
    with owner(data_dir, "guest") as (guest, url):
        with database(None, data_dir, guest=True) as shared:
            assert shared == url
        started: list[str] = []
        server = EmbeddedPostgres(data_dir)
        thread = threading.Thread(target=lambda: started.append(server.start()))
        thread.start()
        thread.join(0.3)
        assert not started
        guest.terminate()
        thread.join(20)
        server.stop()
    assert started == [url]


def test_a_url_is_used_as_it_is(tmp_path: Path) -> None:
    with database("postgresql://db/tonnage", tmp_path / "unused") as url:
        assert url == "postgresql://db/tonnage"
    assert not (tmp_path / "unused").exists()


def test_a_killed_server_comes_back_with_every_committed_row(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server, disposed(db.make_engine(server.url, pool_size=2)) as engine:
        sessions = db.make_sessions(engine)

        def note(said: str) -> bool:
            try:
                with db.transaction(sessions) as session:
                    session.execute(text("INSERT INTO notes VALUES (:note)"), {"note": said})
            except Unavailable:
                return False
            return True

        assert note("before")
        for said in ("after", "after the second time"):
            killed = kill(postmaster(data_dir))
            until(lambda: postmaster(data_dir) in processes.alive(data_dir / "postgres") - {killed})  # noqa: B023 called here
            until(lambda: note(said))  # noqa: B023 called here
        noted = {row[0] for row in execute(server.url, "SELECT note FROM notes")}
        assert noted == {"before", "after", "after the second time"}
    assert not processes.alive(data_dir / "postgres")


@contextmanager
def disposed(engine: Engine) -> Iterator[Engine]:
    try:
        yield engine
    finally:
        engine.dispose()


def test_a_session_too_busy_to_notice_its_server_died_does_not_keep_it_from_coming_back(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        busy = threading.Thread(target=lambda: answers(server.url, ENDLESS))
        busy.start()
        until(lambda: execute(server.url, RUNNING) == [(1,)])
        kill(postmaster(data_dir))
        until(lambda: answers(server.url))
        busy.join(20)
        assert not busy.is_alive()


ENDLESS = "SELECT count(*) FROM generate_series(1, 1000000000000)"
RUNNING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT count(*) FROM generate_series%'"


def answers(url: str, statement: str = "SELECT 1") -> bool:
    try:
        return execute(url, statement) == [(1,)]
    except psycopg.OperationalError:
        return False


def test_after_a_killed_owner_the_next_one_takes_over(data_dir: Path) -> None:
    with owner(data_dir) as (process, url):
        execute(url, "INSERT INTO notes VALUES ('survives')")
        orphan = postmaster(data_dir)
        process.kill()
        process.wait()
    assert orphan in processes.alive(data_dir / "postgres")
    with EmbeddedPostgres(data_dir) as server:
        assert postmaster(data_dir) != orphan
        assert execute(server.url, "SELECT note FROM notes") == [("survives",)]
    assert not processes.alive(data_dir / "postgres")


def test_after_everything_was_killed_the_next_owner_recovers(data_dir: Path) -> None:
    with owner(data_dir) as (process, url):
        execute(url, "INSERT INTO notes VALUES ('survives')")
        process.kill()
        process.wait()
        kill(postmaster(data_dir))
    with EmbeddedPostgres(data_dir) as server:
        assert execute(server.url, "SELECT note FROM notes") == [("survives",)]


def test_a_process_that_has_the_id_of_a_dead_server_is_left_alone(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        lines = (data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
    user = [] if not IS_ROOT else run_as(SOMEBODY.pw_uid, SOMEBODY.pw_gid)  # whom PostgreSQL could send signals to
    with subprocess.Popen([*user, "sleep", "60"]) as stranger:
        (data_dir / "postgres" / "postmaster.pid").write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        with EmbeddedPostgres(data_dir) as server:
            assert execute(server.url, "SELECT 1") == [(1,)]
        assert stranger.poll() is None
        stranger.kill()


def test_a_server_that_cannot_come_back_is_tried_again_and_again(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir) as server:
        away = data_dir / "away"
        (data_dir / "postgres" / "global").rename(away)
        kill(postmaster(data_dir))
        time.sleep(0.8)
        assert not answers(server.url)
        away.rename(data_dir / "postgres" / "global")
        until(lambda: answers(server.url))


def test_a_stop_is_prompt_while_the_server_cannot_come_back(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir)
    server.start()
    (data_dir / "postgres" / "global").rename(data_dir / "away")
    kill(postmaster(data_dir))
    time.sleep(0.8)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 5
    assert not processes.alive(data_dir / "postgres")
    (data_dir / "away").rename(data_dir / "postgres" / "global")


def test_a_keyboard_interrupt_in_the_terminal_does_not_reach_the_server(data_dir: Path) -> None:
    with EmbeddedPostgres(data_dir):
        pid = postmaster(data_dir)
        assert pid is not None
        assert os.getpgid(pid) != os.getpgid(0)
        assert os.getsid(pid) != os.getsid(0)


@pytest.mark.parametrize("name", ["deep" * 30, "with, a comma", "with 'quotes\" and %20"])
def test_any_path_will_do(data_dir: Path, name: str) -> None:
    odd = data_dir.parent / name
    data_dir.rename(odd)
    with EmbeddedPostgres(odd) as server:
        assert execute(server.url, "SELECT 1") == [(1,)]
        socket_dir = Path(str(make_url(server.url).query["host"]))
        assert socket_dir.stat().st_mode & 0o777 == 0o700
        with database(None, odd, guest=True) as url:
            assert url == server.url
    assert socket_dir == odd / "socket" or not socket_dir.exists()
    odd.rename(data_dir)


def test_a_temporary_socket_directory_of_a_killed_owner_is_removed(data_dir: Path) -> None:
    long = data_dir.parent / ("deep" * 30)
    data_dir.rename(long)
    with owner(long) as (process, url):
        left = Path(str(make_url(url).query["host"]))
        process.kill()
        process.wait()
    assert left.exists()
    with EmbeddedPostgres(long):
        assert not left.exists()
    long.rename(data_dir)


def test_a_killed_first_start_leaves_nothing_half_made() -> None:
    parent = Path(tempfile.mkdtemp(prefix="tonnage-"))
    data_dir = parent / "data"
    command = [sys.executable, "-c", OWNER, str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        until(lambda: any(data_dir.glob("postgres.new-*/base")))
        os.killpg(process.pid, signal.SIGKILL)
    assert not (data_dir / "postgres").exists()
    with EmbeddedPostgres(data_dir) as server:
        assert execute(server.url, "SELECT current_database()") == [("tonnage",)]
    assert sorted(path.name for path in data_dir.iterdir()) == ["postgres", "postgres.lock", "postgres.log", "socket"]
    shutil.rmtree(parent)


def test_a_cluster_of_another_version_is_refused_and_not_touched(data_dir: Path) -> None:
    cluster = data_dir / "postgres"
    right = (cluster / "PG_VERSION").read_text()
    (cluster / "PG_VERSION").write_text("14\n")

    def state() -> dict[Path, tuple[int, ...]]:
        found = {path: path.stat() for path in [cluster, *cluster.iterdir()]}
        return {path: (it.st_mode, it.st_uid, it.st_mtime_ns, it.st_ctime_ns) for path, it in found.items()}

    before = state()
    with pytest.raises(UnusableDatabase, match="made by PostgreSQL 14"):
        EmbeddedPostgres(data_dir).start()
    assert state() == before
    (cluster / "PG_VERSION").write_text(right)


def test_something_else_in_the_place_of_the_cluster_is_refused(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    with pytest.raises(UnusableDatabase, match="not a PostgreSQL data directory"):
        EmbeddedPostgres(tmp_path).start()
    assert list((tmp_path / "postgres").iterdir()) == []


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(UnusableDatabase, match="File exists"):
        EmbeddedPostgres(tmp_path / "data").start()


def test_a_server_that_does_not_start_says_why_and_gives_the_directory_back(data_dir: Path) -> None:
    with pytest.raises(UnusableDatabase, match='invalid value for parameter "shared_buffers"'):
        EmbeddedPostgres(data_dir, options={"shared_buffers": "plenty"}).start()
    with EmbeddedPostgres(data_dir) as server:
        assert execute(server.url, "SELECT 1") == [(1,)]


def test_a_first_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "socket").write_text("")  # in the place of a directory
    with pytest.raises(UnusableDatabase, match="File exists"):
        EmbeddedPostgres(tmp_path / "data").start()
    assert not processes.alive(tmp_path / "data" / "postgres")


def test_a_long_log_is_set_aside(data_dir: Path) -> None:
    (data_dir / "postgres.log").write_bytes(b"x" * 5_000_000)
    with EmbeddedPostgres(data_dir):
        assert (data_dir / "postgres.log").stat().st_size < 10_000
        assert (data_dir / "postgres.log.1").stat().st_size == 5_000_000


@as_root
def test_root_without_setpriv_is_told_what_to_do(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnusableDatabase, match=r"setpriv.*ordinary user.*TONNAGE_DATABASE_URL"):
        EmbeddedPostgres(data_dir).start()


@as_root
def test_root_runs_the_server_as_nobody_below_a_closed_directory(data_dir: Path) -> None:
    assert data_dir.parent.stat().st_mode & 0o777 == 0o700
    with EmbeddedPostgres(data_dir):
        assert Path(f"/proc/{postmaster(data_dir)}").stat().st_uid == SOMEBODY.pw_uid
        status = Path(f"/proc/{postmaster(data_dir)}/status").read_text()
        held = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff"))
        assert held.bit_count() == 1  # to pass through directories, and nothing else
    assert data_dir.stat().st_uid == 0
    assert data_dir.parent.stat().st_mode & 0o777 == 0o700


@as_root
def test_an_ordinary_user_owns_a_server_and_root_uses_the_same_directory_after_them() -> None:
    uid, gid = SOMEBODY.pw_uid, SOMEBODY.pw_gid
    parent = Path(tempfile.mkdtemp(prefix="tonnage-"))
    os.chown(parent, uid, gid)
    data_dir = parent / "data"
    with owner(data_dir, prefix=tuple(run_as(uid, gid))) as (_, url):
        execute(url, "CREATE TABLE notes (note text)")
        assert Path(f"/proc/{postmaster(data_dir)}").stat().st_uid == uid
    with EmbeddedPostgres(data_dir) as server:
        assert execute(server.url, "SELECT count(*) FROM notes") == [(0,)]
    assert {path.stat().st_uid for path in (data_dir, data_dir / "postgres.lock", data_dir / "postgres")} == {uid}
    with owner(data_dir, prefix=tuple(run_as(uid, gid))) as (_, url):
        assert execute(url, "SELECT count(*) FROM notes") == [(0,)]
    shutil.rmtree(parent)


@as_root
def test_a_directory_of_another_user_is_refused_in_a_sentence(data_dir: Path) -> None:
    command = [*run_as(SOMEBODY.pw_uid, SOMEBODY.pw_gid), sys.executable, "-c", OWNER, str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "UnusableDatabase: no private database in" in done.stderr
    assert "Permission denied" in done.stderr
