import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("shell", "script"),
    [("bash", ".ci/run"), ("sh", "tools/setup.sh"), ("sh", "tools/lock.sh"), ("sh", "tools/find_python.sh")],
)
def test_the_script_parses(root: Path, shell: str, script: str) -> None:
    done = subprocess.run([shell, "-n", root / script], capture_output=True, text=True, check=False, timeout=120)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def recorded_make(tmp_path: Path) -> Path:
    """A folder with a `make` that writes down its word and fails at the words in $FAILING."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "make"
    program.write_text(
        f'#!/bin/sh\necho "$1 CI=$CI" >> {tmp_path}/said\ncase " $FAILING " in *" $1 "*) exit 2;; esac\n'
    )
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("failing", ["", "check", "test", "check test"])
def test_every_word_is_said_and_the_exit_code_is_honest(
    root: Path, bare_environment: dict[str, str], recorded_make: Path, tmp_path: Path, failing: str
) -> None:
    environment = {**bare_environment, "PATH": f"{recorded_make}:{bare_environment['PATH']}", "FAILING": failing}

    done = subprocess.run(
        ["bash", root / ".ci/run"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == (2 if failing else 0)
    assert (tmp_path / "said").read_text().splitlines() == ["setup CI=true", "check CI=true", "test CI=true"]


def test_a_failed_setup_ends_the_run(
    root: Path, bare_environment: dict[str, str], recorded_make: Path, tmp_path: Path
) -> None:
    environment = {**bare_environment, "PATH": f"{recorded_make}:{bare_environment['PATH']}", "FAILING": "setup"}

    done = subprocess.run(["bash", root / ".ci/run"], env=environment, capture_output=True, check=False, timeout=120)

    assert done.returncode == 2
    assert (tmp_path / "said").read_text().splitlines() == ["setup CI=true"]


def test_what_cannot_be_installed_is_named(root: Path, tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "id", "sh"):
        found = shutil.which(tool)
        assert found
        (tmp_path / tool).symlink_to(found)

    done = subprocess.run(
        ["bash", root / ".ci/run"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("ci: install git make python3 python3-venv first;")
