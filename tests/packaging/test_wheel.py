import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import app

NO_CACHES = shutil.ignore_patterns("__pycache__")
SERVER_ONLY = ("alembic", "fastapi", "numpy", "psycopg", "pydantic", "sqlalchemy", "starlette", "uvicorn")


@pytest.fixture(scope="module")
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is built from, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(root / name, folder)
    for name in ("app", "alembic"):
        shutil.copytree(root / name, folder / name, ignore=NO_CACHES)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, bare_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, checkout], env=bare_environment, check=True, timeout=120)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    """The wheel's METADATA."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return BytesParser().parsebytes(archive.read(name))


def test_the_wheel_holds_the_package_with_its_data_and_the_migrations_and_nothing_else(
    checkout: Path, wheel: Path
) -> None:
    def files(folder: str) -> set[Path]:
        return {path.relative_to(checkout / folder) for path in (checkout / folder).rglob("*") if path.is_file()}

    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist() if ".dist-info/" not in name}

    assert names == {"app" / path for path in files("app")} | {"app/migrations" / path for path in files("alembic")}
    assert {Path("app/catalog/gpus.toml"), Path("app/migrations/env.py")} <= names
    assert any(path.match("app/catalog/models/*.json") for path in names)
    assert any(path.match("app/migrations/versions/0*.py") for path in names)


def test_migrations_stay_a_plain_folder(root: Path) -> None:
    # With an __init__.py, `import alembic` in a checkout would find this folder and not the library.
    assert not list((root / "alembic").rglob("__init__.py"))


def test_the_metadata_says_what_it_is_and_the_base_needs_nothing(root: Path, metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"], metadata["Requires-Python"]) == (
        "tonnage",
        app.__version__,
        ">=3.11",
    )
    assert metadata.get_all("Provides-Extra") == ["agent", "dev", "server"]
    for text in metadata.get_all("Requires-Dist", []):
        assert "extra ==" in str(Requirement(text).marker)
    assert metadata.get_payload() == (root / "README.md").read_text()


def test_both_commands_are_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        points = ConfigParser()
        points.read_string(archive.read(name).decode())
    assert dict(points["console_scripts"]) == {
        "tonnage": "app.cli:main",
        "tonnage-agent": "app.agent.__main__:main",
    }


def test_an_installed_service_migrates_without_a_checkout(
    wheel: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    # The unpacked wheel comes before the editable checkout; all other packages are the test environment's.
    environment = {**bare_environment, "PYTHONPATH": str(installed)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    assert run("-c", "import app; print(app.__file__)").stdout.strip() == str(installed / "app/__init__.py")
    command = "import sys; from app.cli import main; sys.exit(main(sys.argv[1:]))"
    migrated = run("-c", command, "migrate", "--data-dir", str(tmp_path / "data"))
    assert migrated.returncode == 0, migrated.stderr
    assert any((tmp_path / "data").iterdir())


@pytest.fixture(scope="module")
def agent_bin(
    root: Path, wheel: Path, bare_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The commands of a virtual environment with the wheel and the `agent` extra, made as the image makes it."""
    folder = tmp_path_factory.mktemp("agent") / "venv"
    environment = {**bare_environment, "PIP_PYTHON": str(folder / "bin/python"), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def pip(*arguments: str | Path) -> None:
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", *arguments], env=environment, check=True, timeout=120
        )

    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", folder], env=bare_environment, check=True, timeout=120
    )
    pip("--require-hashes", "--only-binary", ":all:", "--requirement", root / "requirements/agent.txt")
    pip("--no-deps", "--no-index", wheel)
    return folder / "bin"


def run_in(folder: Path, environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments,
        cwd=folder,
        env={**environment, "TONNAGE_AGENT_STATE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_agent_installs_and_runs_without_the_server(
    agent_bin: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    for command in (["tonnage-agent"], ["tonnage", "agent"]):
        helped = run_in(tmp_path, bare_environment, agent_bin / command[0], *command[1:], "--help")
        assert helped.returncode == 0, helped.stderr
        assert "--server" in helped.stdout
        printed = run_in(
            tmp_path, bare_environment, agent_bin / command[0], *command[1:], "--demo", "--print", "--once"
        )
        assert printed.returncode == 0, printed.stderr
        assert '"gpus"' in printed.stdout

    search = "import importlib.util, sys; print([name for name in sys.argv[1:] if importlib.util.find_spec(name)])"
    found = run_in(tmp_path, bare_environment, agent_bin / "python", "-c", search, "httpx", "pynvml", *SERVER_ONLY)
    assert found.stdout.strip() == "['httpx', 'pynvml']"


@pytest.mark.parametrize("command", [["serve"], ["migrate"], ["token", "list"]])
def test_a_server_command_of_an_agent_install_names_the_missing_extra(
    agent_bin: Path, bare_environment: dict[str, str], tmp_path: Path, command: list[str]
) -> None:
    refused = run_in(tmp_path, bare_environment, agent_bin / "tonnage", *command)

    assert refused.returncode != 0
    assert "tonnage[server]" in refused.stderr
    assert "Traceback" not in refused.stderr
