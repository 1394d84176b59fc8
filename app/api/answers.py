"""Answers that carry more than a body: validators, a location, what was stored word for word."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

REVALIDATED = "private, no-cache"
"""Cache-Control of what has an ETag: it may be kept, and must be asked for again with `If-None-Match`."""


def json_answer(body: BaseModel, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`body` as JSON, rendered now."""
    return Response(body.model_dump_json(), status, dict(headers or {}), media_type="application/json")


def documented(example: object, description: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One entry of `responses=`: an `example` of the answer's body, and what its `headers` mean."""
    content = {"application/json": {"example": example}}
    return {"description": description, "content": content, "headers": described(headers or {})}


def described(headers: Mapping[str, str]) -> dict[str, Any]:
    """What the `headers` of an answer mean, as the OpenAPI document says it."""
    return {name: {"schema": {"type": "string"}, "description": text} for name, text in headers.items()}


def shown_with(**arguments: object) -> Callable[[Endpoint], Endpoint]:
    """Show, as the example of an operation's answer, what it really answers to these `arguments` and the catalogue.

    For operations that need nothing else: the example is computed when the document is made, so it is never out of
    step.
    """

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.shown_with = arguments  # type: ignore[attr-defined]  # read by `app.api.openapi`
        return endpoint

    return mark
