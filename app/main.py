"""The only assembly: settings in, application out. Nothing here runs at import."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import cache

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from app import __version__, catalog, hub
from app.api import hub_models, idempotency, openapi, problems
from app.api.deps import Service
from app.api.hub_models import HubModels
from app.api.metrics import Metrics
from app.api.middleware import Envelope, Limits
from app.api.routes import (
    accuracy,
    estimates,
    gpus,
    instances,
    interconnects,
    inventory,
    models,
    node_shapes,
    operations,
    pages,
    plans,
    precision,
    scaling,
)
from app.settings import Settings, SettingsError
from app.storage import db, hub_cache
from app.storage.idempotency import drop_old

_DESCRIPTION = """Will this model train on these GPUs, split how, and which nodes have the room?

Memory is integer bytes, time float seconds. Unknown fields and parameters are refused, and every failure is an
`application/problem+json` whose `type` leads to a page that explains it. Without a token, the service answers local
requests only, and only until the first token is made: `tonnage token create --role planner --name me`."""

_TAGS = [
    {"name": "estimates", "description": "What a training job needs."},
    {"name": "precision", "description": "Number formats, and what they do to values, tensors and models."},
    {"name": "scaling", "description": "How large a model, and how much text, a budget is best spent on."},
    {"name": "plans", "description": "Estimates worth keeping, with every revision."},
    {
        "name": "catalogue",
        "description": "Models, GPUs, links, node shapes and prices that have a name here, and the team's own.",
    },
    {"name": "inventory", "description": "The live fleet, as the agents report it."},
    {"name": "operations", "description": "For whatever runs the service."},
]
_ROUTES = (
    operations,
    estimates,
    scaling,
    accuracy,
    precision,
    plans,
    models,
    gpus,
    interconnects,
    node_shapes,
    instances,
    inventory,
    pages,
)
_HOUSEKEEPING_SECONDS = 3_600

_log = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """The application for these settings. Opens no connection yet; the database may be away.

    Raises SettingsError without a database URL, and UnusableDatabase for one that names no PostgreSQL.
    """
    if settings.database_url is None:
        raise SettingsError("TONNAGE_DATABASE_URL is needed; `tonnage serve` starts a private database without it")
    engine = db.make_engine(
        settings.database_url.get_secret_value(),
        pool_size=settings.database_pool_size,
        wait_seconds=settings.database_wait_seconds,
        statement_seconds=settings.database_statement_seconds,
    )
    service = Service(
        settings=settings,
        catalog=catalog.load(),
        engine=engine,
        sessions=db.make_sessions(engine),
        metrics=Metrics(lambda: _pool(db.pool_statistics(engine))),
        needs_tokens=not settings.is_loopback,
    )
    service.hub = _hub(service)
    app = FastAPI(
        title="Tonnage",
        version=__version__,
        summary="How much a fleet can carry",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        openapi_url=None,  # this and the next three: `routes.pages` serves them, without assets from elsewhere
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.service = service
    app.openapi = cache(lambda: openapi.document(app))  # type: ignore[method-assign]  # FastAPI's own way to extend it
    app.add_middleware(
        Limits,
        max_body_bytes=settings.max_body_bytes,
        max_in_flight=settings.max_requests_in_flight,
        exempt=operations.PATHS,
        streamed={precision.TENSORS_PATH: settings.max_tensors_bytes},
    )
    app.add_middleware(Envelope, metrics=service.metrics)
    problems.install(app)
    for module in _ROUTES:
        app.include_router(module.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    app.openapi()  # now, so that the first request does not wait for it
    housekeeping = asyncio.create_task(_housekeeping(service))
    try:
        yield
    finally:
        housekeeping.cancel()
        with suppress(asyncio.CancelledError):
            await housekeeping
        if service.hub is not None:
            service.hub.close()
        await run_in_threadpool(service.engine.dispose)


async def _housekeeping(service: Service) -> None:
    """Forget, once an hour, the answers and models that nobody will ask for again."""
    while True:
        await asyncio.sleep(_HOUSEKEEPING_SECONDS)
        try:
            await run_in_threadpool(_drop_old_answers, service)
            await run_in_threadpool(_drop_unused_models, service)
        except Exception:  # noqa: BLE001  -- whatever it is, requests go on, and the next hour is another chance
            _log.exception("housekeeping failed")


def _drop_old_answers(service: Service) -> None:
    with db.transaction(service.sessions) as session:
        dropped = drop_old(session, before=datetime.now(UTC) - idempotency.KEPT_FOR)
    _log.info("old answers forgotten", extra={"answers": dropped})


def _drop_unused_models(service: Service) -> None:
    with db.transaction(service.sessions) as session:
        dropped = hub_cache.drop_unused(session, before=datetime.now(UTC) - hub_models.KEPT_FOR)
    _log.info("unused models of the hub forgotten", extra={"models": dropped})


def _hub(service: Service) -> HubModels | None:
    settings = service.settings
    if settings.hub_url is None:
        return None
    asked = hub.Hub(
        settings.hub_url,
        token=None if settings.hub_token is None else settings.hub_token.get_secret_value(),
        timeout_seconds=settings.hub_timeout_seconds,
        max_config_bytes=settings.hub_max_config_bytes,
        allowed_hosts=settings.hub_allowed_hosts,
    )
    return HubModels(asked, service.sessions, service.metrics, fresh_seconds=settings.hub_fresh_seconds)


def _pool(statistics: db.PoolStatistics) -> dict[str, int]:
    return {"limit": statistics.limit, "in_use": statistics.in_use, "idle": statistics.idle}
