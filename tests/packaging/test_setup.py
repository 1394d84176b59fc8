import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BASE_PYTHON = str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")
TOOLS = ("sh", "dirname", "cat", "cksum")


def stub(folder: Path, name: str, answers: str) -> None:
    """A program `name` in `folder` that runs the shell lines `answers`."""
    (folder / name).write_text(f"#!/bin/sh\n{answers}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def empty_path(tmp_path: Path) -> Path:
    """A folder to be the whole PATH: the few tools that the scripts use, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


def find_python(root: Path, path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(root / "tools/find_python.sh")],
        env={"PATH": str(path), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_an_old_python3_is_passed_over_for_a_newer_one_by_name(root: Path, empty_path: Path) -> None:
    stub(empty_path, "python3", "exit 1")
    (empty_path / "python3.12").symlink_to(BASE_PYTHON)

    assert find_python(root, empty_path).stdout == "python3.12\n"


def test_only_an_old_python_is_one_sentence(root: Path, empty_path: Path) -> None:
    stub(empty_path, "python3", '[ "$1" = --version ] && echo Python 3.9.2 && exit 0; exit 1')

    answer = find_python(root, empty_path)

    assert answer.returncode == 1
    assert answer.stdout == ""
    assert answer.stderr == (
        "setup: Python 3.11 or newer is needed and python3 is Python 3.9.2; "
        "name another with 'make setup PYTHON=/path/to/python'.\n"
    )


def test_no_python_is_one_sentence(root: Path, empty_path: Path) -> None:
    assert "python3 is not installed" in find_python(root, empty_path).stderr


def test_a_python_without_venv_is_one_sentence(root: Path, empty_path: Path) -> None:
    stub(empty_path, "python3", 'case "$2" in *ensurepip*) exit 1;; esac')

    answer = find_python(root, empty_path)

    assert answer.returncode == 1
    assert "python3-venv" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_the_variable_decides_alone(root: Path, empty_path: Path) -> None:
    (empty_path / "python3").symlink_to(BASE_PYTHON)

    assert find_python(root, empty_path, PYTHON=BASE_PYTHON).stdout == f"{BASE_PYTHON}\n"
    refused = find_python(root, empty_path, PYTHON="/no/such/python")
    assert refused.stderr == "setup: PYTHON=/no/such/python is not a Python 3.11 or newer.\n"


def small_checkout(root: Path, folder: Path) -> Path:
    """The project with the build backend as its only pinned dependency, so that setting it up takes seconds."""
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(root / "requirements/build.txt", folder / "requirements/dev.txt")
    for name in ("Makefile", "pyproject.toml", "README.md"):
        shutil.copy(root / name, folder)
    for name in ("tools", "app"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_setup_works_without_a_home_and_with_spaces_does_nothing_twice_and_survives_a_move(
    root: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    assert "HOME" not in bare_environment
    (tmp_path / "bin").mkdir()
    stub(tmp_path / "bin", "cc", "exit 1")  # so that no compiler has to be installed, whatever this machine has
    path = [str(tmp_path / "bin"), str(Path(BASE_PYTHON).parent), os.environ["PATH"]]
    environment = {**bare_environment, "PATH": os.pathsep.join(path)}

    def setup(folder: Path) -> str:
        done = subprocess.run(
            ["make", "setup"], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def imported_from(folder: Path) -> Path:
        done = subprocess.run(
            [folder / ".venv/bin/python", "-c", "import app; print(app.__file__)"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        return Path(done.stdout.strip())

    first = small_checkout(root, tmp_path / "a folder with spaces")
    assert "making .venv" in setup(first)
    assert imported_from(first) == first / "app/__init__.py"
    assert setup(first) == ""

    (first / "requirements/dev.txt").write_text((first / "requirements/dev.txt").read_text() + "# changed\n")
    assert setup(first) == "setup: installing requirements/dev.txt\n"

    second = first.rename(tmp_path / "moved")
    assert "making .venv" in setup(second)
    assert imported_from(second) == second / "app/__init__.py"
