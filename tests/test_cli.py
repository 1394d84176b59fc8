import subprocess
import sys
from pathlib import Path

import pytest

from app import __version__
from app.cli import main

ROOT = Path(__file__).parent.parent


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"tonnage {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for command in ("serve", "migrate", "token", "estimate", "agent"):
        assert f"  {command} " in said


@pytest.mark.parametrize("command", ["serve", "migrate", "token", "estimate", "agent"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"tonnage {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sreve"],
        ["serve", "--prot", "1"],
        ["token"],
        ["token", "create", "--name", "x"],
        ["token", "create", "--name", "x", "--role", "king"],
        ["token", "create", "--name", "x", "--role", "viewer", "--expires-in-days", "0"],
        ["token", "create", "--name", "x", "--role", "viewer", "--expires-in-days", "soon"],
        ["token", "create", "--name", "x", "--role", "viewer", "--node", "n1"],
    ],
)
def test_wrong_usage_is_refused_with_status_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: tonnage" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["serve"], {"TONNAGE_PROT": "80"}, "tonnage serve: TONNAGE_PROT is not a setting; did you mean TONNAGE_PORT?"),
        (["serve"], {"TONNAGE_PORT": "x"}, "tonnage serve: TONNAGE_PORT should be a valid integer"),
        (["serve", "--port", "x"], {}, "tonnage serve: --port should be a valid integer"),
        (
            ["migrate", "--database-url", "mysql://h/d"],
            {},
            "tonnage migrate: --database-url should begin with postgresql://",
        ),
        (
            ["token", "list"],
            {"TONNAGE_DATABASE_URL_FILE": "/no/such"},
            "tonnage token: TONNAGE_DATABASE_URL_FILE names '/no",
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_status_two(
    arguments: list[str],
    settings: dict[str, str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith(sentence)
    assert (said.err.count("\n"), said.out) == (1, "")


def test_without_the_server_extra_the_missing_one_is_named() -> None:
    """As in an agent's environment: a finder that has none of the server's packages."""
    hide = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in {'fastapi', 'pydantic', 'sqlalchemy', 'uvicorn', 'starlette'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "from app.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", hide, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    for command in (["serve"], ["migrate"], ["token", "list"], ["estimate", "7e9"]):
        done = run(*command)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith(f"tonnage {command[0]}: ")
        assert done.stderr.endswith("is not installed; install the server extra: pip install 'tonnage[server]'\n")
    assert run("agent", "--help").returncode == 0
    assert run("--version").returncode == 0


def test_estimate_answers_without_a_service(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "1e9", "--estimator", "rule_of_thumb", "--json"]) == 0
    assert '"total_bytes": 24000000000' in capsys.readouterr().out


def test_migrate_brings_an_empty_database_up_to_date_and_again_does_nothing(empty_database: str) -> None:
    for _ in range(2):
        command = [sys.executable, "-m", "app.cli", "migrate", "--database-url", empty_database]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
