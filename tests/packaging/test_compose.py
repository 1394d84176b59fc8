import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings

Service = dict[str, Any]


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "docker-compose.yml").read_text()


@pytest.fixture(scope="module")
def services(text: str) -> dict[str, Service]:
    return dict(yaml.safe_load(text)["services"])


def expand(value: str, variables: dict[str, str]) -> str:
    """`value` with ${NAME:-default} and ${NAME:?sentence} replaced as compose does it."""

    def replace(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        given = variables.get(name, "")
        assert given or kind == ":-", f"compose would stop: {rest}"
        return given or rest

    return re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", replace, value)


def test_the_order_is_database_then_migrations_then_api_then_agents(services: dict[str, Service]) -> None:
    depends = {name: service.get("depends_on", {}) for name, service in services.items()}

    assert depends["db"] == {}
    assert depends["migrate"] == {"db": {"condition": "service_healthy"}}
    assert depends["api"] == {
        "db": {"condition": "service_healthy"},
        "migrate": {"condition": "service_completed_successfully"},
    }
    for agent in ("agent", "agent-demo"):
        assert depends[agent] == {"api": {"condition": "service_healthy"}}
    for waited_for in ("db", "api"):
        assert services[waited_for]["healthcheck"]["test"][0] == "CMD"


def test_migrations_run_once_and_services_come_back(services: dict[str, Service]) -> None:
    restart = {name: service["restart"] for name, service in services.items()}

    assert restart.pop("migrate") == "no"
    assert set(restart.values()) == {"unless-stopped"}


def test_agents_start_only_when_asked_for(services: dict[str, Service]) -> None:
    profiles = {name: service["profiles"] for name, service in services.items() if "profiles" in service}

    assert profiles == {"agent": ["gpu"], "agent-demo": ["demo"]}


def test_the_agent_sees_every_nvidia_gpu(services: dict[str, Service]) -> None:
    (device,) = services["agent"]["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu", "utility"]}
    assert "--demo" in services["agent-demo"]["command"]


def test_the_database_keeps_its_data_where_its_version_puts_it(text: str, services: dict[str, Service]) -> None:
    major = int(re.fullmatch(r"postgres:(\d+)", services["db"]["image"]).group(1))  # type: ignore[union-attr] # a failure here is the test's
    (mount,) = services["db"]["volumes"]

    volume, _, target = mount.partition(":")
    assert target == ("/var/lib/postgresql" if major >= 18 else "/var/lib/postgresql/data")
    assert volume in yaml.safe_load(text)["volumes"]


def test_every_volume_is_declared_and_used(text: str, services: dict[str, Service]) -> None:
    used = {mount.partition(":")[0] for service in services.values() for mount in service.get("volumes", [])}

    assert used == set(yaml.safe_load(text)["volumes"])


def test_nothing_starts_with_a_password_that_everybody_knows(services: dict[str, Service]) -> None:
    required = re.compile(r"\$\{POSTGRES_PASSWORD:\?[^}]{20,}\}")

    assert required.fullmatch(services["db"]["environment"]["POSTGRES_PASSWORD"])
    for name in ("api", "migrate"):
        password = services[name]["environment"]["TONNAGE_DATABASE_URL"].split("tonnage:")[1].split("@")[0]
        assert required.fullmatch(password)


def test_the_api_starts_without_a_token_for_agents(text: str) -> None:
    # Compose expands the whole file before it looks at profiles: a required agent token would stop what makes it.
    values = "\n".join(line for line in text.splitlines() if not line.startswith("#"))

    assert set(re.findall(r"\$\{(\w+):\?", values)) == {"POSTGRES_PASSWORD"}


def test_only_this_machine_reaches_the_api_unless_told_otherwise(services: dict[str, Service]) -> None:
    (port,) = services["api"]["ports"]

    assert expand(port, {}) == "127.0.0.1:8000:8000"
    assert expand(port, {"PUBLISH": "0.0.0.0:80"}) == "0.0.0.0:80:8000"
    assert [name for name, service in services.items() if "ports" in service] == ["api"]


def test_the_server_reads_what_it_is_given(services: dict[str, Service]) -> None:
    for name in ("migrate", "api"):
        given = services[name]["environment"]
        settings = Settings.from_environment(
            {key: expand(value, {"POSTGRES_PASSWORD": "pw"}) for key, value in given.items()}
        )
        assert settings.database_url is not None
        assert settings.database_url.get_secret_value() == "postgresql://tonnage:pw@db:5432/tonnage"
    database = services["db"]["environment"]
    assert (database["POSTGRES_USER"], database["POSTGRES_DB"]) == ("tonnage", "tonnage")


def test_requests_in_flight_finish_before_the_container_is_killed(services: dict[str, Service]) -> None:
    grace_seconds = int(services["api"]["stop_grace_period"].removesuffix("s"))

    assert grace_seconds > Settings().shutdown_grace_seconds + Settings().drain_seconds


def test_images_are_the_targets_of_the_dockerfile(root: Path, services: dict[str, Service]) -> None:
    targets = set(re.findall(r"(?m)^FROM \S+ AS (\S+)$", (root / "Dockerfile").read_text()))
    for name, service in services.items():
        if name != "db":
            assert service["build"]["context"] == "."
            assert service["build"]["target"] in targets
            assert service["image"] == f"tonnage-{service['build']['target']}"
            assert service["build"]["target"] == ("agent" if name.startswith("agent") else "server")


def commands(text: str, services: dict[str, Service]) -> list[list[str]]:
    """What the services run, and what the comment at the top tells a person to run."""
    told = re.findall(r"docker compose run --rm api ([^\n]+?)(?: {2,}.*)?\n", text)
    return [service["command"] for name, service in services.items() if name != "db"] + [
        shlex.split(line) for line in told
    ]


def test_every_command_exists(text: str, services: dict[str, Service], bare_environment: dict[str, str]) -> None:
    found = commands(text, services)
    assert ["token", "create", "--role", "admin", "--name", "ops"] in found

    for command in found:
        words = [word for word in command if not word.startswith("-")]
        path = words[:2] if words[0] == "token" else words[:1]
        helped = subprocess.run(
            [Path(sys.executable).with_name("tonnage"), *path, "--help"],
            env=bare_environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert helped.returncode == 0, helped.stderr
        for option in set(command) - set(words):
            assert option in helped.stdout


def test_every_profile_and_variable_in_the_comments_exists(text: str, services: dict[str, Service]) -> None:
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    profiles = {name for service in services.values() for name in service.get("profiles", [])}

    assert set(re.findall(r"--profile (\S+)", comment)) == profiles
    for variable in re.findall(r"\b([A-Z_]{5,})=", comment):
        assert f"${{{variable}:" in text
