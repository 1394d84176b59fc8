import re
import tomllib
from collections.abc import Mapping
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("agent", "build", "compiler", "dev", "server")
EXTRAS_OF = {"dev": ("server", "agent", "dev"), "server": ("server",), "agent": ("agent",)}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))

Pins = list[tuple[Requirement, list[str]]]


def read_pins(path: Path) -> Pins:
    """Each pinned requirement of a file with its hashes."""
    joined = re.sub(r"\s*\\\n\s*", " ", path.read_text())
    pins = []
    for line in joined.splitlines():
        if line.strip() and not line.strip().startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            pins.append((Requirement(requirement), hashes))
    return pins


def environments() -> list[dict[str, str]]:
    """The machines that the files promise to serve, as marker environments."""
    return [
        {
            **{key: str(value) for key, value in default_environment().items()},
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
            "python_version": version,
            "python_full_version": f"{version}.1",
            "sys_platform": sys_platform,
            "platform_system": system,
            "platform_machine": machine,
        }
        for version in PYTHONS
        for sys_platform, system, machine in PLATFORMS
    ]


def installed_on(pins: Pins, environment: dict[str, str]) -> dict[str, str]:
    """Name to version of what `pip install -r` takes in this environment; two versions of one name are an error."""
    versions: dict[str, str] = {}
    for requirement, _ in pins:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in versions, f"{name} is pinned twice for {environment}"
            (specifier,) = requirement.specifier
            versions[name] = specifier.version
    return versions


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def locks(root: Path) -> dict[str, Pins]:
    return {path.stem: read_pins(path) for path in (root / "requirements").glob("*.txt")}


def assert_satisfied(wanted: list[str], pins: Pins) -> None:
    for environment in environments():
        versions = installed_on(pins, environment)
        for text in wanted:
            requirement = Requirement(text)
            version = versions.get(canonicalize_name(requirement.name))
            assert version is not None, f"{text} is not pinned; run `make lock`"
            assert requirement.specifier.contains(version), f"{version} is pinned for {text}; run `make lock`"


def test_the_files_are_those_that_are_used(locks: dict[str, Pins]) -> None:
    assert sorted(locks) == sorted(LOCKS)


@pytest.mark.parametrize("name", LOCKS)
def test_everything_is_pinned_by_hash(locks: dict[str, Pins], name: str) -> None:
    assert locks[name]
    for requirement, hashes in locks[name]:
        assert [specifier.operator for specifier in requirement.specifier] == ["=="], requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement


@pytest.mark.parametrize("name", LOCKS)
def test_no_index_host_or_local_path_is_named(root: Path, name: str) -> None:
    text = (root / "requirements" / f"{name}.txt").read_text()

    assert not re.search(r"://|file:| @ |--(extra-)?index|--find-links|--trusted-host", text)
    assert not re.search(r"(?m)(^|\s)[/~.]", text)  # a path would start like this
    assert not re.search(r"\b[a-z0-9-]+\.(com|org|net|io|dev|local|internal)\b", text)


@pytest.mark.parametrize("name", EXTRAS_OF)
def test_every_dependency_of_the_project_is_pinned_for_every_machine(
    project: dict[str, Any], locks: dict[str, Pins], name: str
) -> None:
    extras = project["project"]["optional-dependencies"]

    assert_satisfied([text for extra in EXTRAS_OF[name] for text in extras[extra]], locks[name])


def test_the_compiler_is_pinned_for_every_machine(project: dict[str, Any], locks: dict[str, Pins]) -> None:
    assert_satisfied(project["dependency-groups"]["compiler"], locks["compiler"])


def test_the_build_backend_is_pinned_and_comes_with_the_development_tools(
    project: dict[str, Any], locks: dict[str, Pins]
) -> None:
    requires = project["build-system"]["requires"]

    assert_satisfied(requires, locks["build"])
    assert set(requires) <= set(project["project"]["optional-dependencies"]["dev"])


@pytest.mark.parametrize("name", ["agent", "build", "server"])
def test_what_ships_is_what_was_tested(locks: dict[str, Pins], name: str) -> None:
    for environment in environments():
        tested = installed_on(locks["dev"], environment)
        assert installed_on(locks[name], environment).items() <= tested.items()


@pytest.fixture(scope="module")
def distributions_of() -> Mapping[str, list[str]]:
    """The distributions that bring a module, by the module's name."""
    return packages_distributions()


@pytest.mark.parametrize(("extra", "folders"), [("agent", ["app/agent"]), ("server", ["app", "alembic"])])
def test_every_dependency_is_used(
    root: Path, project: dict[str, Any], distributions_of: Mapping[str, list[str]], extra: str, folders: list[str]
) -> None:
    source = "\n".join(path.read_text() for folder in folders for path in (root / folder).rglob("*.py"))
    used = set(re.findall(r"(?m)^\s*(?:import|from) (\w+)|(?:find_spec|files)\(\"(\w+)\"\)", source))
    distributions = {
        canonicalize_name(distribution)
        for module in {name for pair in used for name in pair}
        for distribution in distributions_of.get(module, [])
    }

    wanted = {canonicalize_name(Requirement(text).name) for text in project["project"]["optional-dependencies"][extra]}
    assert wanted <= distributions


def test_the_base_install_needs_nothing(project: dict[str, Any]) -> None:
    assert project["project"]["dependencies"] == []
