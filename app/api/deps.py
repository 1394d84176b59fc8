"""What a route may ask for: the transaction, the catalogue, and the service they belong to.

`Tx` is the only commit of the API. It is function-scoped: FastAPI ends it before the answer leaves, so that an answer
never claims what the database then refuses.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import BoundedSemaphore
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from app.api.hub_models import HubModels
from app.api.metrics import Metrics
from app.api.team_catalog import TeamEntries
from app.api.tensor_reports import TensorUpload
from app.api.uploads import Upload
from app.catalog import Catalog
from app.errors import Unavailable
from app.settings import Settings
from app.storage import db
from app.storage.inventory import Freshness

MAX_TENSOR_READERS = 4
"""Files of tensors that one process reads at once."""


@dataclass(slots=True)
class Service:
    """All that one application holds: made once by `app.main`, found by routes through their parameters."""

    settings: Settings
    catalog: Catalog
    engine: Engine
    sessions: sessionmaker[Session]
    metrics: Metrics

    needs_tokens: bool
    """False only while local mode may be on; see `app.api.auth`. Tokens are never deleted, so once true it stays so."""

    hub: HubModels | None = None
    """Where models are looked up that the catalogue does not have; None when no hub is set."""

    tensor_readers: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(MAX_TENSOR_READERS))
    """One for each file of tensors that is being read: each holds a thread for as long as it takes."""

    is_draining: bool = False
    """Set when the process is about to stop: readiness turns false while requests are still answered."""

    def freshness(self) -> Freshness:
        """By what the status of a node is told, now."""
        return Freshness(
            now=datetime.now(UTC),
            stale_seconds=self.settings.node_stale_seconds,
            offline_seconds=self.settings.node_offline_seconds,
        )


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    return cast("Service", request.app.state.service)


def _tx(request: Request) -> Iterator[Session]:
    with db.transaction(service_of(request).sessions) as session:
        request.state.tx = session
        yield session


async def _service(request: Request) -> Service:
    return service_of(request)  # async, as is the next: to look something up is not worth a thread


async def _catalog(request: Request) -> Catalog:
    """The catalogue with the team's entries beside it: they are read if they are needed, in the transaction of the
    request if it has one, so that no request ever waits for a second connection while it holds a first.
    """

    @contextmanager
    def session() -> Iterator[Session]:
        tx: Session | None = getattr(request.state, "tx", None)
        if tx is not None:
            yield tx
            return
        with db.transaction(service_of(request).sessions) as own:
            yield own

    return service_of(request).catalog.with_team(TeamEntries(session))


async def _tensors(request: Request) -> AsyncIterator[TensorUpload]:
    service = service_of(request)
    if not service.tensor_readers.acquire(blocking=False):
        raise Unavailable(f"{MAX_TENSOR_READERS} files of tensors are being read already; send this one again later")
    try:
        settings = service.settings
        body = Upload(request, idle_seconds=settings.upload_idle_seconds)
        yield TensorUpload(body, settings.spool_dir, settings.max_spool_bytes)
    finally:
        service.tensor_readers.release()


async def _hub(request: Request) -> HubModels | None:
    return service_of(request).hub


ServiceDep = Annotated[Service, Depends(_service)]
CatalogDep = Annotated[Catalog, Depends(_catalog)]
TensorUploadDep = Annotated[TensorUpload, Depends(_tensors)]
HubDep = Annotated[HubModels | None, Depends(_hub)]
Tx = Annotated[Session, Depends(_tx, scope="function")]
