"""The one place where what went wrong becomes HTTP: RFC 9457 `application/problem+json`.

Code raises the exceptions of `app.errors`. `STATUS` gives each its status (a subclass without a row has its
parent's), and `type` is `/problems/<slug>`, a page made from the class's docstring. A caller never sees a traceback,
SQL, or a path of the machine: what nobody expected is logged, and answered with the request's id alone.
"""

import logging
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.api.faults import faults_of
from app.errors import (
    BodyTooLarge,
    Conflict,
    Fault,
    Forbidden,
    IdempotencyMismatch,
    InvalidInput,
    MalformedBody,
    MalformedTensors,
    NotAllowed,
    NotFound,
    PreconditionRequired,
    StaleRevision,
    TonnageError,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from app.hub import HubUnavailable
from app.logs import request_id

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5

_MAX_ERRORS = 20
_log = logging.getLogger(__name__)


class InternalError(TonnageError):
    """Something in the service broke. The answer carries the request's id only; the log has the rest under that id.

    Nothing was stored. The same request may work later; if it does not, report the request's id to whoever runs the
    service.
    """

    slug = "internal-error"
    title = "Something broke in the service"


STATUS: Mapping[type[TonnageError], int] = {
    MalformedBody: 400,
    MalformedTensors: 400,
    Unauthenticated: 401,
    Forbidden: 403,
    NotFound: 404,
    NotAllowed: 405,
    Conflict: 409,
    StaleRevision: 412,
    BodyTooLarge: 413,
    UnsupportedMediaType: 415,
    InvalidInput: 422,
    IdempotencyMismatch: 422,
    PreconditionRequired: 428,
    InternalError: 500,
    Unavailable: 503,
    HubUnavailable: 503,
}

_BY_STATUS: Mapping[int, type[TonnageError]] = {
    status: error
    for error, status in STATUS.items()
    if error not in (MalformedTensors, IdempotencyMismatch, HubUnavailable)
}


def status_of(error: type[TonnageError]) -> int:
    """The HTTP status of an exception class: its own row, or that of the nearest parent. KeyError when neither has
    one."""
    return next((STATUS[parent] for parent in error.__mro__ if parent in STATUS), 0) or STATUS[error]


def problem_types(root: type[TonnageError] = TonnageError) -> Iterator[type[TonnageError]]:
    """Every class of problem that a caller may meet, parents before children."""
    for error in root.__subclasses__():
        yield error
        yield from problem_types(error)


def raises(*errors: type[TonnageError]) -> dict[int | str, dict[str, Any]]:
    """What an operation may answer beyond what every operation may, for its `responses=`:
    `responses=raises(NotFound)`."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        text = f"`{error.slug}`: {error.title}"
        if (status := status_of(error)) in responses:
            responses[status]["description"] += f" · {text}"
        else:
            schema = {"$ref": "#/components/schemas/Problem"}
            responses[status] = {"description": text, "content": {MEDIA_TYPE: {"schema": schema}}}
    return responses


def problem(error: TonnageError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that met `error`."""
    kind, status = type(error), status_of(type(error))
    body: dict[str, Any] = {
        "type": f"/problems/{kind.slug}",
        "title": kind.title,
        "status": status,
        "detail": error.detail,
        "instance": scope["raw_path"].decode("ascii"),
        "request_id": request_id.get(),
    }
    if error.errors:
        body["errors"] = [_entry(fault) for fault in error.errors[:_MAX_ERRORS]]
    return JSONResponse(body, status, {**_headers(error, scope), **(headers or {})}, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every failure inside `app` with a problem. What is not handled here reaches the middleware as a crash."""
    app.add_exception_handler(TonnageError, _domain_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


def crash(scope: Scope) -> Response:
    """Log the exception being handled, with its traceback, and answer with the request's id alone."""
    _log.exception("unexpected error", extra={"method": scope["method"], "path": scope["path"]})
    return problem(InternalError(f"Report request {request_id.get()}: the log of the service says what broke."), scope)


async def _domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TonnageError)  # noqa: S101  -- Starlette types every handler as taking any exception
    return problem(error, request.scope)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  -- see above
    faults = faults_of(error, _body_schema(request), _components(request))
    place = faults[0].parameter or faults[0].pointer or "the body"
    more = f" ({len(faults) - 1} more under errors)" if len(faults) > 1 else ""
    return problem(InvalidInput(f"{place} {faults[0].detail}{more}", errors=tuple(faults)), request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  -- see above
    if error.status_code == 404:
        return problem(_unknown_path(request), request.scope)
    if error.status_code == 405:
        allowed = ", ".join(sorted(_methods(request)))
        answer = NotAllowed(f"{request.method} is not possible here; allowed: {allowed}")
        return problem(answer, request.scope, {"Allow": allowed})
    known = _BY_STATUS.get(error.status_code, InternalError if error.status_code >= 500 else MalformedBody)
    return problem(known(str(error.detail)), request.scope, error.headers)


def _unknown_path(request: Request) -> NotFound:
    known = [context.path or "" for context in iter_route_contexts(request.app.routes)]
    nearest = get_close_matches(request.url.path, known, n=1)
    return NotFound(f"no such path; {f'nearest: {nearest[0]}; ' if nearest else ''}all are listed at /docs")


def _methods(request: Request) -> set[str]:
    """Every method of every route that matches the path: Starlette names those of the first one only."""
    methods: set[str] = set()
    for context in iter_route_contexts(request.app.routes):
        if context.path_regex.match(request.scope["path"]):
            methods |= context.methods or set()
    return methods | {"HEAD"} if "GET" in methods else methods


def _body_schema(request: Request) -> Mapping[str, Any]:
    """The documented schema of the request's body, empty when it has none."""
    path: str = getattr(request.scope.get("route"), "path_format", "")
    operation = request.app.openapi()["paths"].get(path, {}).get(request.method.lower(), {})
    content: Mapping[str, Any] = operation.get("requestBody", {}).get("content", {})
    return content.get("application/json", {}).get("schema", {})  # type: ignore[no-any-return]  # the document is JSON


def _components(request: Request) -> Mapping[str, Any]:
    return request.app.openapi().get("components", {}).get("schemas", {})  # type: ignore[no-any-return]  # as above


def _headers(error: TonnageError, scope: Scope) -> dict[str, str]:
    headers = {"Cache-Control": "no-store"}
    if isinstance(error, Unauthenticated):
        sent = any(name == b"authorization" for name, _ in scope["headers"])
        headers["WWW-Authenticate"] = 'Bearer realm="tonnage"' + (', error="invalid_token"' if sent else "")
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return headers


def _entry(fault: Fault) -> dict[str, str]:
    place = {"parameter": fault.parameter} if fault.parameter is not None else {"pointer": fault.pointer or ""}
    return {**place, "detail": fault.detail}
