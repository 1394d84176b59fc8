import ipaddress
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pytest

from app.settings import Settings


@dataclass
class Stage:
    """One FROM with what follows it."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, instruction: str) -> list[str]:
        return [text for word, text in self.steps if word == instruction]


def read_stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile, with continued lines joined and comments left out."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    stages: list[Stage] = []
    for step in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, _, text = step.partition(" ")
        if word == "FROM":
            base, _, name = text.partition(" AS ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].steps.append((word, text))
    return stages


@pytest.fixture(scope="module")
def stages(root: Path) -> dict[str, Stage]:
    return {stage.name: stage for stage in read_stages(root / "Dockerfile")}


@pytest.fixture(scope="module", params=["server", "agent"])
def image(request: pytest.FixtureRequest, stages: dict[str, Stage]) -> Stage:
    """A target as it runs: its own steps after those of the stages that it is built from."""
    steps: list[tuple[str, str]] = []
    stage = stages[request.param]
    while True:
        steps = stage.steps + steps
        if stage.base not in stages:
            return Stage(stage.base, request.param, steps)
        stage = stages[stage.base]


def environment_of(stage: Stage) -> dict[str, str]:
    return dict(pair.split("=", 1) for text in stage.arguments("ENV") for pair in text.split())


def test_every_stage_starts_from_one_python_of_a_named_version(root: Path, stages: dict[str, Stage]) -> None:
    (default,) = re.findall(r"(?m)^ARG PYTHON_IMAGE=(\S+)$", (root / "Dockerfile").read_text())

    assert re.fullmatch(r"python:3\.1[1-4]-slim-[a-z]+", default)
    assert {stage.base for stage in stages.values()} - set(stages) == {"${PYTHON_IMAGE}"}


def test_the_default_target_is_the_server(root: Path) -> None:
    assert read_stages(root / "Dockerfile")[-1].name == "server"


def test_everything_copied_exists_and_is_in_the_build_context(root: Path, stages: dict[str, Stage]) -> None:
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for stage in stages.values():
        for text in stage.arguments("COPY"):
            *sources, _ = text.split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in stages
            else:
                copied |= set(sources)

    assert copied
    for source in copied:
        assert (root / source).exists(), source
        assert PurePosixPath(source).parts[0] in allowed, source


def test_everything_installed_is_pinned_by_hash_or_local(stages: dict[str, Stage]) -> None:
    runs = [text for stage in stages.values() for text in stage.arguments("RUN") if text.startswith("pip ")]

    assert len(runs) == 6
    for text in runs:
        assert "--require-hashes" in text or "--no-index" in text or "pip wheel --no-deps --no-build-isolation" in text


def test_an_image_has_nothing_but_its_virtual_environment(image: Stage, stages: dict[str, Stage]) -> None:
    assert image.arguments("COPY") == [f"--from={image.name}-venv /opt/tonnage /opt/tonnage"]
    assert not re.search(r"pip|apt|curl|gcc", " ".join(image.arguments("RUN")))
    # The virtual environment itself is made without pip; the base image's own pip fills it.
    assert "python -m venv --without-pip /opt/tonnage" in stages[f"{image.name}-venv"].arguments("RUN")


def test_an_image_runs_as_a_numbered_user_and_stops_at_sigterm(image: Stage) -> None:
    (user,) = image.arguments("USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    assert image.arguments("STOPSIGNAL") == ["SIGTERM"]


def test_an_image_runs_a_command_that_exists(image: Stage, root: Path, bare_environment: dict[str, str]) -> None:
    (entrypoint,), (command,) = image.arguments("ENTRYPOINT"), image.arguments("CMD")
    assert json.loads(entrypoint) == ["tonnage"]

    helped = subprocess.run(
        [Path(sys.executable).with_name("tonnage"), *json.loads(command), "--help"],
        env=bare_environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert helped.returncode == 0, helped.stderr


def test_the_server_image_sets_only_real_settings_and_is_reachable(stages: dict[str, Stage]) -> None:
    environment = environment_of(stages["server"])

    settings = Settings.from_environment(environment)
    assert ipaddress.ip_address(settings.host).is_unspecified
    assert stages["server"].arguments("EXPOSE") == [str(settings.port)]


def test_what_an_image_writes_lies_in_a_folder_its_user_owns(stages: dict[str, Stage]) -> None:
    (made,) = stages["runtime"].arguments("RUN")
    (folder,) = stages["runtime"].arguments("WORKDIR")

    assert f"install --directory --owner 10001 --group 10001 --mode 0700 {folder}" in made
    assert environment_of(stages["server"])["TONNAGE_DATA_DIR"] == folder
    assert environment_of(stages["agent"])["TONNAGE_AGENT_STATE_DIR"] == folder
