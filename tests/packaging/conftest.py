import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout under test."""
    return ROOT


@pytest.fixture(scope="session")
def bare_environment() -> dict[str, str]:
    """The environment without what a surrounding make, virtual environment or deployment would slip into a child."""
    ours = ("MAKE", "MFLAGS", "PYTHON", "VIRTUAL_ENV", "TONNAGE_", "ARGS", "PORT", "HOME")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
