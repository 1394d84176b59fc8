"""How every operation under `/v1` takes a request: who asks, then the query, then the media type, then strict JSON.

The order matters: nobody's body is read before it is known who sends it, and a misspelt query parameter is refused,
as a misspelt field is.
"""

import hashlib
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, get_type_hints

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import ConfigDict
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from app.api import json_body
from app.api.auth import requirement_of
from app.errors import Fault, InvalidInput, TonnageError, UnsupportedMediaType

_LONGEST_NAME = 100
_PARSED_IN_LOOP_BYTES = 65_536  # a body above this is parsed in a thread: it would hold up everybody else's requests


def v1_router(tag: str, *, numbers_as_written: bool = False) -> APIRouter:
    """A router for operations under `/v1`, listed in the docs under `tag`. Each operation must ask for a role itself.

    With `numbers_as_written`, numbers of a body keep their text (`json_body.WrittenNumber`).
    """
    return APIRouter(prefix="/v1", tags=[tag], route_class=_WrittenRoute if numbers_as_written else StrictRoute)


class StrictRequest(Request):
    """A request whose JSON is read by `json_body.parse`. `state.body_sha256` is the hash of what the body means."""

    numbers_as_written = False

    async def json(self) -> Any:
        """The body's value, parsed once. Raises MalformedBody."""
        if not hasattr(self, "_json"):
            body = await self.body()
            parse = partial(json_body.parse, body, as_written=self.numbers_as_written)
            self._json = await run_in_threadpool(parse) if len(body) > _PARSED_IN_LOOP_BYTES else parse()
            if "idempotency-key" in self.headers:
                canonical = json.dumps(self._json, sort_keys=True, separators=(",", ":"))
                self.state.body_sha256 = hashlib.sha256(canonical.encode()).digest()
        return self._json


class _WrittenRequest(StrictRequest):
    numbers_as_written = True


class StrictRoute(APIRoute):
    """A route that authenticates first and refuses unknown query parameters, foreign media types and loose JSON."""

    request_class: type[StrictRequest] = StrictRequest

    def __init__(self, path: str, endpoint: Callable[..., Any], **given: Any) -> None:
        """A route as FastAPI makes it, whose answer's fields are documented by the texts under them."""
        answer = get_type_hints(endpoint).get("return")
        if is_dataclass(answer) and not hasattr(answer, "__pydantic_config__"):
            # and of all that it consists of
            setattr(answer, "__pydantic_config__", ConfigDict(use_attribute_docstrings=True))  # noqa: B010 - mypy
        super().__init__(path, endpoint, **given)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI calls for each request."""
        handler = super().get_route_handler()
        requirement = requirement_of(self.dependant)
        reads_body = self.body_field is not None

        async def strict(request: Request) -> Response:
            if requirement is not None:
                await run_in_threadpool(requirement, request)
            _check_query(request, self.path_format)
            if reads_body:
                _check_media_type(request.headers)
            try:
                return await handler(self.request_class(request.scope, request.receive))
            except HTTPException as error:
                if isinstance(error.__cause__, TonnageError):  # FastAPI wraps whatever reading the body raised
                    raise error.__cause__ from None
                raise

        return strict


class _WrittenRoute(StrictRoute):
    request_class = _WrittenRequest


def _check_query(request: Request, path: str) -> None:
    operation = request.app.openapi()["paths"].get(path, {}).get(request.method.lower(), {})
    known = {each["name"]: each["schema"] for each in operation.get("parameters", ()) if each["in"] == "query"}
    faults = []
    for name in request.query_params:
        if name not in known:
            nearest = get_close_matches(name[:_LONGEST_NAME], known, n=1)
            hint = f"nearest: {nearest[0]}" if nearest else f"known: {', '.join(known) or 'none'}"
            faults.append(Fault(detail=f"is unknown; {hint}", parameter=name[:_LONGEST_NAME]))
        elif len(request.query_params.getlist(name)) > 1 and known[name].get("type") != "array":
            faults.append(Fault(detail="is given more than once", parameter=name))
    if faults:
        raise InvalidInput(f"{faults[0].parameter} {faults[0].detail}", errors=tuple(faults))


def _check_media_type(headers: Mapping[str, str]) -> None:
    """Refuse a body that is not JSON in UTF-8, uncompressed. No body at all is left to validation, which says what is
    missing."""
    if headers.get("content-length", "0") == "0" and "transfer-encoding" not in headers:
        return
    media_type, *parameters = [part.strip().lower() for part in headers.get("content-type", "").split(";")]
    charsets = [value.removeprefix("charset=").strip('"') for value in parameters if value.startswith("charset=")]
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise UnsupportedMediaType("send the body as JSON, with Content-Type: application/json")
    if any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise UnsupportedMediaType("send the body in UTF-8, the only encoding that JSON has")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body as it is, without Content-Encoding")
