from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hub.fake_hub import FakeHub, running_hub
from live_service import LiveService

from app.api.hub_models import HubModels
from app.hub import Hub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub() as fake:
        yield fake


Use = Callable[..., HubModels]


@pytest.fixture
def use(live: LiveService) -> Iterator[Use]:
    """Makes the running service look models up at the given URL, with the given options."""
    made: list[HubModels] = []

    def use(url: str, *, fresh_seconds: float = 3_600, **options: Any) -> HubModels:
        given = {"token": None, "timeout_seconds": 5.0, "max_config_bytes": 100_000, **options}
        service = live.service
        made.append(HubModels(Hub(url, **given), service.sessions, service.metrics, fresh_seconds=fresh_seconds))
        service.hub = made[-1]
        return made[-1]

    yield use
    live.service.hub = None
    for each in made:
        each.close()
