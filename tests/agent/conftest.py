"""A real agent in a process of its own, the stand-in NVML it loads, and a real HTTP server it reports to."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from app.telemetry import ReportBatch

STANDIN = Path(__file__).parents[1] / "nvml"
LIBRARIES = {"current": [], "old": ["-DOLD_DRIVER"], "mismatch": ["-DMISMATCH"]}
BATCH = TypeAdapter(ReportBatch)


def _compiler() -> list[str]:
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    pytest.fail(
        "the stand-in NVML needs a C compiler: install gcc or clang, or the package ziglang into this environment",
        pytrace=False,
    )


@pytest.fixture(scope="session")
def nvml_libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each stand-in library, to be put on LD_LIBRARY_PATH. "none" has none."""
    base = tmp_path_factory.mktemp("nvml")
    compiler = _compiler()
    environment = os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(base / "cache")}  # zig wants a home directory otherwise
    folders = {"none": base / "none"}
    for name, flags in LIBRARIES.items():
        folders[name] = base / name
        folders[name].mkdir()
        output, source = folders[name] / "libnvidia-ml.so.1", STANDIN / "libnvidia_ml.c"
        strict = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
        command = [*compiler, *strict, *flags, "-O1", "-fPIC", "-shared", "-o", str(output), str(source)]
        subprocess.run(command, check=True, env=environment)
    return folders


@dataclass
class Running:
    """An agent under way. What it writes goes to files, so that it never waits for a reader."""

    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def log(self) -> list[dict]:
        return [json.loads(line) for line in self.stderr.read_text().splitlines()]

    def reports(self) -> list[dict]:
        return [json.loads(line) for line in self.stdout.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def signal(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=10)


@dataclass
class AgentCommand:
    """Starts agents in an environment that holds nothing but what is given here: no HOME, no proxy, no settings."""

    libraries: dict[str, Path]
    folder: Path
    started: list[Running] = field(default_factory=list)

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def scenario(self) -> Path:
        return self.folder / "scenario.txt"

    def play(self, text: str) -> None:
        """Make `text` the scenario from the next reading on, at once and as a whole."""
        partial = self.folder / "scenario.partial"
        partial.write_text(text)
        partial.rename(self.scenario)

    def start(
        self, *arguments: str, library: str | Path = "current", environment: dict[str, str] | None = None
    ) -> Running:
        return self._python("-m", "app.agent", *arguments, library=library, environment=environment or {})

    def python(self, script: str) -> Running:
        """A Python program that has ended, in the agent's environment."""
        running = self._python("-c", script, library="current", environment={})
        assert running.process.wait(timeout=20) == 0, running.stderr.read_text()
        return running

    def _python(self, *arguments: str, library: str | Path, environment: dict[str, str]) -> Running:
        folder = library if isinstance(library, Path) else self.libraries[library]
        name = f"agent-{len(self.started)}"
        running_files = (self.folder / f"{name}.out", self.folder / f"{name}.err")
        with running_files[0].open("wb") as stdout, running_files[1].open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-W", "error", *arguments],
                env={
                    "PATH": os.defpath,
                    "LD_LIBRARY_PATH": str(folder),
                    "STANDIN_NVML_SCENARIO": str(self.scenario),
                    "TONNAGE_AGENT_STATE_DIR": str(self.state_dir),
                    "TONNAGE_AGENT_NODE": "gpu-node-1",
                    **environment,
                },
                cwd=self.folder,
                stdout=stdout,
                stderr=stderr,
            )
        self.started.append(Running(process, *running_files))
        return self.started[-1]

    def run(
        self, *arguments: str, library: str | Path = "current", environment: dict[str, str] | None = None
    ) -> Running:
        """An agent that has ended; its exit status is `process.returncode`."""
        running = self.start(*arguments, library=library, environment=environment)
        running.process.wait(timeout=20)
        return running

    def read(self, scenario: str | None, *arguments: str, library: str = "current") -> dict:
        """The one report that an agent makes of `scenario`."""
        if scenario is not None:
            self.play(scenario)
        running = self.run("--print", "--once", *arguments, library=library)
        assert running.process.returncode == 0, running.stderr.read_text()
        (report,) = running.reports()
        BATCH.validate_python({"reports": [report]})
        return report

    def kept(self) -> list[dict]:
        """The reports in the outbox, oldest first."""
        return [json.loads(path.read_bytes()) for path in sorted(self.state_dir.glob("*.json"))]


@pytest.fixture
def agent(nvml_libraries: dict[str, Path], tmp_path: Path) -> Iterator[AgentCommand]:
    command = AgentCommand(nvml_libraries, tmp_path)
    yield command
    for running in command.started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@dataclass(frozen=True)
class Request:
    """A request as the server saw it, and when, by the monotonic clock."""

    at_seconds: float
    path: str
    headers: dict[str, str]
    reports: list[dict]


@dataclass(frozen=True)
class Reply:
    """What the server does instead of its work. `lost` stores the reports and closes the connection without a word."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    lost: bool = False
    hang: bool = False


class ReportServer:
    """Takes reports as the service does: strictly checked, each identity stored once. `replies` are used up first."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.stored: dict[tuple[str, str, int], dict] = {}
        self.replies: deque[Reply] = deque()
        self.refuses: Callable[[list[dict]], Reply | None] = lambda _reports: None
        self.released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65_536  # headers and body in one packet, or each answer takes 40 ms

            def do_POST(self) -> None:
                outer._answer(self)

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        self.released.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def sequences(self) -> list[int]:
        return [sequence for _, _, sequence in self.stored]

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        reports = json.loads(body)["reports"]
        self.requests.append(Request(time.monotonic(), handler.path, dict(handler.headers), reports))
        reply = self.replies.popleft() if self.replies else self.refuses(reports) or Reply()
        if reply.hang:
            self.released.wait(30)
        if reply.lost:
            self._store(body)
            handler.close_connection = True
            return
        status, content = (reply.status, reply.body) if reply != Reply() else self._store(body)
        handler.send_response(status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _store(self, body: bytes) -> tuple[int, bytes]:
        try:
            batch = BATCH.validate_python(json.loads(body))
        except ValidationError as error:
            return 422, str(error).encode()
        duplicates = 0
        for report, raw in zip(batch.reports, json.loads(body)["reports"], strict=True):
            known = self.stored.setdefault((report.node.name, report.boot_id, report.sequence), raw)
            duplicates += known is not raw
            assert known == raw, "two different reports have the same identity"
        return 200, json.dumps({"accepted": len(batch.reports) - duplicates, "duplicates": duplicates}).encode()


@pytest.fixture
def reply() -> type[Reply]:
    """What a server may be told to do instead of its work."""
    return Reply


@pytest.fixture
def server() -> Iterator[ReportServer]:
    report_server = ReportServer()
    report_server.up()
    yield report_server
    report_server.down()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until a condition holds, and fails the test when it does not within ten seconds."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.02)

    return wait
