import re
import shutil
import subprocess
from pathlib import Path

import pytest

WORDS = ("help", "setup", "check", "test", "serve", "bench", "accuracy", "lock", "clean")


def make(root: Path, environment: dict[str, str], *arguments: str) -> str:
    """What `make ARGUMENTS` prints, or with -n, what it would run."""
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_says_what_each_word_does(root: Path, bare_environment: dict[str, str]) -> None:
    lines = make(root, bare_environment).splitlines()

    assert [line.split()[1] for line in lines] == list(WORDS)
    assert all(re.fullmatch(r"make [a-z]+ +\S.{20,}", line) for line in lines)


@pytest.mark.parametrize(("arguments", "expected"), [((), ""), (("PORT=9000",), " --port 9000")])
def test_serve_keeps_its_data_in_the_checkout_and_takes_a_port(
    root: Path, bare_environment: dict[str, str], arguments: tuple[str, ...], expected: str
) -> None:
    *_, command = make(root, bare_environment, "-n", "serve", *arguments).splitlines()

    assert command.rstrip() == f".venv/bin/tonnage serve --data-dir .data{expected}"


def test_check_runs_every_checker(root: Path, bare_environment: dict[str, str]) -> None:
    planned = make(root, bare_environment, "-n", "check")

    for checker in ("ruff check", "ruff format --check", "mypy", "lint-imports", "app.docs --check"):
        assert f"{checker}\n" in planned


def test_words_given_together_set_up_once_and_first(root: Path, bare_environment: dict[str, str]) -> None:
    planned = make(root, bare_environment, "-n", "check", "test").splitlines()

    assert planned[0] == "sh tools/setup.sh"
    assert planned.count("sh tools/setup.sh") == 1
    assert planned[-1].startswith(".venv/bin/python -m pytest")


def test_clean_leaves_data_and_sources(root: Path, bare_environment: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(root / "Makefile", tmp_path)
    kept = [tmp_path / name for name in (".data/db/base", "app/units.py", ".git/__pycache__/x", ".data/__pycache__/x")]
    removed = [tmp_path / name for name in (".venv/bin/python", "app/__pycache__/units.pyc", ".mypy_cache/x", "dist/x")]
    for path in kept + removed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    make(tmp_path, bare_environment, "clean")

    assert [path for path in kept + removed if path.exists()] == kept


def test_every_word_named_in_the_guide_exists(root: Path) -> None:
    guide = (root / "CONTRIBUTING.md").read_text()

    named = {word for line in re.findall(r"`make ([a-z ]+)", guide) for word in line.split()}
    assert named
    assert named <= set(WORDS)
