"""The real command in a real process: what refuses to start, what survives a kill, what finishes before it stops."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import httpx
import psycopg
import pytest
from live_service import PLAN

from app.storage import db, tokens

START_SECONDS = 60
COMMAND = [sys.executable, "-m", "app.cli"]
ROOT = Path(__file__).parent.parent
REPORT = {
    "node": {"name": "n1", "agent_version": "1"},
    "boot_id": "b",
    "sequence": 1,
    "sampled_at": "2026-01-31T12:00:00Z",
    "gpus": [{"uuid": "GPU-1", "index": 0, "name": "NVIDIA H100 80GB HBM3"}],
}


def environment(**settings: str) -> dict[str, str]:
    """As on a bare machine: no home, no settings but these."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG")}
    return {**kept, "PYTHONPATH": str(ROOT), **settings}


def tonnage(*arguments: str) -> subprocess.CompletedProcess[str]:
    command, timeout = [*COMMAND, *arguments], START_SECONDS
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(), check=False)


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    banner: str
    log: IO[str]

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False)

    def log_text(self) -> str:
        self.log.seek(0)
        return self.log.read()


@contextmanager
def serving(*arguments: str, **settings: str) -> Iterator[Served]:
    """`tonnage serve` on a free port, from its banner on. Killed at the end if it still runs."""
    with tempfile.TemporaryFile("w+") as log:
        command = [*COMMAND, "serve", "--port", "0", *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment(**settings))
        assert process.stdout is not None
        try:
            banner = ""
            while "Stop with Ctrl-C" not in banner:
                line = process.stdout.readline()
                if not line:
                    log.seek(0)
                    pytest.fail(f"the service did not start: {log.read()}")
                banner += line
            url = re.search(r"http://\S+", banner)
            assert url is not None
            yield Served(process, url[0], banner, log)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="tonnage-"))
    yield path
    if (pid := postgres_of(path)) is not None:
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(path)


def postgres_of(data_dir: Path) -> int | None:
    """The process id of the PostgreSQL that runs over a data directory: it removes the file when it stops cleanly."""
    try:
        return int((data_dir / "postgres" / "postmaster.pid").read_text().partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return None


def wait_for(condition: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_a_first_start_says_where_to_go_and_a_stop_leaves_nothing_running(data_dir: Path) -> None:
    with serving("--data-dir", str(data_dir)) as served:
        assert f"{served.url}/docs" in served.banner
        assert str(data_dir) in served.banner
        assert f"tonnage token create --data-dir {data_dir} --role planner --name NAME" in served.banner
        assert "this machine only, without a token" in served.banner
        assert '"message": "local mode: ' in served.log_text()
        with served.client() as client:
            assert client.get("/readyz").status_code == 200
        assert postgres_of(data_dir) is not None
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0
        assert "Traceback" not in served.log_text()
    assert postgres_of(data_dir) is None


def test_a_wish_to_stop_during_the_start_is_heard(data_dir: Path) -> None:
    command = [*COMMAND, "serve", "--port", "0", "--data-dir", str(data_dir)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    wait_for((data_dir / "postgres.lock").exists, START_SECONDS)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, ("", ""))
    assert postgres_of(data_dir) is None


def test_what_was_acknowledged_survives_the_killing_of_service_and_database(data_dir: Path) -> None:
    with serving("--data-dir", str(data_dir)) as served, served.client() as client:
        plan = client.post("/v1/plans", json=PLAN).json()
        assert client.post("/v1/agent/reports", json={"reports": [REPORT]}).json() == {"accepted": 1, "duplicates": 0}
        postgres = postgres_of(data_dir)
        assert postgres is not None
        served.process.kill()
        os.kill(postgres, signal.SIGKILL)
        served.process.wait()
    with serving("--data-dir", str(data_dir)) as served, served.client() as client:
        assert client.get(f"/v1/plans/{plan['id']}").json() == plan
        assert [gpu["uuid"] for gpu in client.get("/v1/inventory/gpus").json()["items"]] == ["GPU-1"]
        assert client.post("/v1/agent/reports", json={"reports": [REPORT]}).json() == {"accepted": 0, "duplicates": 1}
        postgres = postgres_of(data_dir)
        assert postgres is not None
        os.kill(postgres, signal.SIGKILL)
        wait_for(lambda: postgres_of(data_dir) not in (None, postgres))
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.get(f"/v1/plans/{plan['id']}").json() == plan


def test_a_token_made_while_the_service_runs_counts_at_once(data_dir: Path) -> None:
    place = ("--data-dir", str(data_dir))
    with serving(*place) as served, served.client() as client:
        assert client.get("/v1/plans").status_code == 200
        made = tonnage("token", "create", "--role", "viewer", "--name", "me", *place)
        assert (made.returncode, made.stdout.count("\n")) == (0, 1)
        assert "cannot be shown again" in made.stderr
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        assert client.get("/v1/plans").status_code == 401
        assert client.get("/v1/plans", headers=headers).status_code == 200
        listed = tonnage("token", "list", *place).stdout
        assert re.search(r"^me +viewer +tng_viewer_\w+.* usable +never +20\d\d-", listed, re.MULTILINE), listed
        assert made.stdout.strip() not in listed
        again = tonnage("token", "create", "--role", "viewer", "--name", "me", *place)
        assert again.returncode == 1
        assert "a token of this name is in use" in again.stderr
        assert tonnage("token", "revoke", "me", *place).stdout == "me is revoked.\n"
        assert client.get("/v1/plans", headers=headers).status_code == 401
        unknown = tonnage("token", "revoke", "me", *place)
        assert unknown.returncode == 1
        assert "no token in use is called 'me'" in unknown.stderr


def test_a_request_in_flight_is_finished_before_the_service_stops(fresh_database: str) -> None:
    """A save waits for a locked table; the service is told to stop; the lock is freed; the answer arrives."""
    answers: list[httpx.Response] = []
    with serving("--database-url", fresh_database, TONNAGE_DRAIN_SECONDS="0.5") as served:

        def save() -> None:
            with served.client() as client:
                answers.append(client.post("/v1/plans", json=PLAN))

        plain = fresh_database.replace("+psycopg", "")
        with psycopg.connect(plain) as connection, served.client() as client:
            connection.execute("LOCK TABLE plans IN ACCESS EXCLUSIVE MODE")
            saving = threading.Thread(target=save)
            saving.start()
            wait_for(lambda: "tonnage_http_requests_in_flight 2.0" in client.get("/metrics").text)
            served.process.send_signal(signal.SIGTERM)
            served.process.send_signal(signal.SIGTERM)  # as terminals and supervisors do: still one wish
            wait_for(lambda: client.get("/readyz").status_code == 503, seconds=0.4)
            assert "about to stop" in client.get("/readyz").json()["detail"]
            wait_for(lambda: not accepts(served.url))
            assert served.process.poll() is None
            assert not answers
            connection.rollback()
        saving.join()
        assert [answer.status_code for answer in answers] == [201]
        assert served.process.wait(20) == 0
    with psycopg.connect(plain) as connection:
        assert connection.execute("SELECT count(*) FROM plans").fetchone() == (1,)


def test_a_second_wish_to_stop_does_not_wait(fresh_database: str) -> None:
    with serving("--database-url", fresh_database, TONNAGE_DATABASE_STATEMENT_SECONDS="3") as served:
        broken = threading.Event()

        def save() -> None:
            with served.client() as client, pytest.raises(httpx.RemoteProtocolError):
                client.post("/v1/plans", json=PLAN)
            broken.set()

        with psycopg.connect(fresh_database.replace("+psycopg", "")) as connection, served.client() as client:
            connection.execute("LOCK TABLE plans IN ACCESS EXCLUSIVE MODE")
            saving = threading.Thread(target=save)
            saving.start()
            wait_for(lambda: "tonnage_http_requests_in_flight 2.0" in client.get("/metrics").text)
            served.process.send_signal(signal.SIGINT)
            time.sleep(0.7)
            served.process.send_signal(signal.SIGINT)
            assert broken.wait(2)
            assert served.process.wait(20) == 0
            saving.join()
        assert "Application shutdown complete." in served.log_text()


def test_two_replicas_start_at_once_on_one_empty_database(empty_database: str) -> None:
    started: list[str] = []

    def start() -> None:
        with serving("--database-url", empty_database) as served, served.client() as client:
            started.append(str(client.get("/readyz").json()))
            assert "PostgreSQL at the URL given" in served.banner
            both.wait(START_SECONDS)

    both = threading.Barrier(2)
    replicas = [threading.Thread(target=start) for _ in range(2)]
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.join()
    assert started == ["{'status': 'ready'}"] * 2


def make_token(database_url: str, *, name: str, expires_at: datetime) -> str:
    engine = db.make_engine(database_url)
    with db.transaction(db.make_sessions(engine)) as session:
        secret, _ = tokens.create(session, name=name, role="admin", expires_at=expires_at, now=datetime.now(UTC))
    engine.dispose()
    return secret


def accepts(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def refused(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The one sentence with which a command refused."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip()


def test_a_bind_beyond_this_machine_needs_a_token(fresh_database: str) -> None:
    place = ("--database-url", fresh_database)
    said = refused(tonnage("serve", "--host", "0.0.0.0", "--port", "0", *place), 2)  # noqa: S104  -- what is refused
    assert said == (
        "tonnage serve: 0.0.0.0 can be reached from other machines, and there is no usable token; make one first: "
        "tonnage token create --role admin --name NAME"
    )
    now = datetime.now(UTC)
    make_token(fresh_database, name="old", expires_at=now - timedelta(seconds=1))
    assert "no usable token" in refused(tonnage("serve", "--host", "::", "--port", "0", *place), 2)
    secret = make_token(fresh_database, name="me", expires_at=now + timedelta(minutes=5))
    with serving("--host", "0.0.0.0", *place) as served:  # noqa: S104  -- now it may
        assert "a token is needed" in served.banner
        assert httpx.get(f"{served.url}/v1/plans", trust_env=False).status_code == 401
        headers = {"Authorization": f"Bearer {secret}", "Host": "tonnage.example"}
        assert httpx.get(f"{served.url}/v1/plans", headers=headers, trust_env=False).status_code == 200


def test_a_port_that_is_taken_is_one_sentence_and_no_database_is_made(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(tonnage("serve", "--port", str(port), "--data-dir", str(data_dir / "new")), 2)
    assert (
        said == f"tonnage serve: cannot listen on 127.0.0.1:{port}: address already in use; choose another with --port"
    )
    assert not (data_dir / "new").exists()


def test_a_data_directory_in_use_is_one_sentence(data_dir: Path) -> None:
    with serving("--data-dir", str(data_dir)) as served:
        done = tonnage("serve", "--port", "0", "--data-dir", str(data_dir))
        assert done.returncode == 1
        assert str(served.process.pid) in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (("--host", "no.such.host.invalid"), 2, "tonnage serve: cannot listen on no.such.host.invalid:0: "),
        (("--database-url", "postgresql://u:hunter2@127.0.0.1:1/d"), 1, "tonnage serve: "),
        (("--data-dir", "/dev/null/x"), 1, "/dev/null"),
    ],
)
def test_what_cannot_start_says_why(arguments: tuple[str, ...], status: int, sentence: str) -> None:
    said = refused(tonnage("serve", "--port", "0", *arguments), status)
    assert sentence in said
    assert "hunter2" not in said
