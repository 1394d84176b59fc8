import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture(scope="module")
def checks(root: Path) -> dict[str, list[str]]:
    """The health checks of the image and of compose, as commands."""
    (image,) = re.findall(r"(?m)^HEALTHCHECK .*?CMD (\[.*\])$", (root / "Dockerfile").read_text())
    compose = yaml.safe_load((root / "docker-compose.yml").read_text())["services"]["api"]["healthcheck"]["test"]
    return {"image": json.loads(image), "compose": compose[1:]}


def exit_code(check: list[str], port: int, environment: dict[str, str]) -> int:
    """What a check answers about a service on `port`; compose's names the port that the container always has."""
    assert check[0] == "python"
    command = [sys.executable, *(part.replace("8000", str(port)) for part in check[1:])]
    # A proxy that nobody can reach, as Docker may put one into the environment.
    environment = {**environment, "TONNAGE_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=False, timeout=30).returncode


@pytest.fixture(scope="module")
def served_port(
    checks: dict[str, list[str]], bare_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of a real service with its own database, once the check of compose calls it healthy."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    tonnage = str(Path(sys.executable).with_name("tonnage"))
    command = [tonnage, "serve", "--port", str(port), "--data-dir", str(folder / "data")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, env=bare_environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        give_up_at_seconds = time.monotonic() + 30
        while exit_code(checks["compose"], port, bare_environment) != 0:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < give_up_at_seconds, (folder / "log").read_text()
            time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.mark.parametrize("name", ["image", "compose"])
def test_a_running_service_is_healthy(
    checks: dict[str, list[str]], served_port: int, bare_environment: dict[str, str], name: str
) -> None:
    assert exit_code(checks[name], served_port, bare_environment) == 0


@pytest.mark.parametrize("name", ["image", "compose"])
def test_a_service_that_is_away_is_not(
    checks: dict[str, list[str]], bare_environment: dict[str, str], name: str
) -> None:
    assert exit_code(checks[name], free_port(), bare_environment) != 0
