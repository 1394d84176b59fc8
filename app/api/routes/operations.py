"""For whatever runs the service: is it up, can it work, how is it doing."""

from fastapi import APIRouter
from fastapi.responses import Response

from app.api.answers import documented
from app.api.deps import ServiceDep
from app.api.metrics import CONTENT_TYPE
from app.api.problems import raises
from app.errors import Unavailable
from app.storage.migration import schema_is_current

router = APIRouter(tags=["operations"])

PATHS = ("/healthz", "/readyz", "/metrics")


@router.get(
    "/healthz",
    operation_id="getHealth",
    summary="Is the process up",
    responses={200: documented({"status": "up"}, "The process is up.")},
)
async def get_health() -> dict[str, str]:
    """Answers as long as the process runs, whatever state its database is in: a restart would not bring that back.

    Answered in the event loop itself, so that threads that all wait for a database do not make the process look dead.
    """
    return {"status": "up"}


@router.get(
    "/readyz",
    operation_id="getReadiness",
    summary="Can the service work",
    responses={
        200: documented({"status": "ready"}, "The database answers and has the schema of this version."),
        **raises(Unavailable),
    },
)
def get_readiness(service: ServiceDep) -> dict[str, str]:
    """Whether requests can be sent here: the database answers, its schema is this version's, and no stop is under
    way."""
    if service.is_draining:
        raise Unavailable("the service is about to stop; send requests to another replica")
    if not schema_is_current(service.engine):
        raise Unavailable("the database has another schema than this version needs; run `tonnage migrate`")
    return {"status": "ready"}


@router.get(
    "/metrics",
    operation_id="getMetrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "All metrics, as text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def get_metrics(service: ServiceDep) -> Response:
    """Requests, latencies, connections to the database, and what the service was used for."""
    return Response(service.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE})
