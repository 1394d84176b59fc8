"""The OpenAPI document: what FastAPI derives, with the failures, roles and tokens that it cannot know.

Every operation lists its problems as `application/problem+json`: those it names with `raises`, and those that follow
from its role, its body and its parameters. FastAPI's own 422 is taken out, because nothing here ever answers with it.
"""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Response
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.utils import get_openapi
from fastapi.routing import iter_route_contexts

from app.api.auth import requirement_of
from app.api.problems import InternalError, raises
from app.errors import (
    BodyTooLarge,
    Forbidden,
    IdempotencyMismatch,
    InvalidInput,
    MalformedBody,
    PreconditionRequired,
    StaleRevision,
    TonnageError,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)

_TEXT = {"type": "string"}
_PROBLEM = {
    "title": "Problem",
    "description": "What went wrong, by RFC 9457. `type` leads to a page that explains it.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "instance", "request_id"],
    "properties": {
        "type": {**_TEXT, "format": "uri-reference", "description": "The kind of problem: `/problems/<slug>`."},
        "title": {**_TEXT, "description": "The kind of problem in words; the same for all of its kind."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {**_TEXT, "description": "What is wrong with this request, and what to do next."},
        "instance": {**_TEXT, "format": "uri-reference", "description": "The path that was asked for."},
        "request_id": {**_TEXT, "description": "The request's id, as in `X-Request-ID` and in the service's log."},
        "errors": {
            "type": "array",
            "description": "Each place that is wrong; at most 20.",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "pointer": {**_TEXT, "description": "RFC 6901 pointer into the body; empty for the whole of it."},
                    "parameter": {**_TEXT, "description": "Name of a query, path or header value."},
                    "detail": {**_TEXT, "description": "What is wrong there."},
                },
            },
        },
    },
    "examples": [
        {
            "type": "/problems/invalid-input",
            "title": "The request has values that cannot be used",
            "status": 422,
            "detail": "/training/micro_batch_size should be greater than or equal to 1, not -4",
            "instance": "/v1/estimates/memory",
            "request_id": "0c6f0b9fcb8f4f6e9a3f3a1b2c3d4e5f",
            "errors": [
                {
                    "pointer": "/training/micro_batch_size",
                    "detail": "should be greater than or equal to 1, not -4",
                }
            ],
        }
    ],
}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`, made anew."""
    openapi = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
    )
    for context in iter_route_contexts(app.routes):
        item = openapi["paths"].get(context.path_format, {})
        requirement = requirement_of(context.dependant) if context.path_format in openapi["paths"] else None
        for method in context.methods or ():
            if (operation := item.get(method.lower())) is not None:
                _complete(operation, requirement.role.value if requirement else None)
                _restore_examples(operation, context.responses)
                _compute_example(operation, context.endpoint, app)
    components = openapi.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = _PROBLEM
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "A token made by `tonnage token create`."}
    }
    return openapi


def _complete(operation: dict[str, Any], role: str | None) -> None:
    responses = operation["responses"]
    if "application/json" in responses.get("422", {}).get("content", {}):
        del responses["422"]
    for status, response in raises(*_implied(operation, role)).items():
        known = responses.setdefault(str(status), response)
        if known is not response:
            known["description"] += f" · {response['description']}"
    operation["responses"] = dict(sorted(responses.items()))
    if role is not None:
        operation["security"] = [{"token": []}]
        operation["description"] = f"{operation.get('description', '')}\n\nRole: `{role}`.".strip()


def _restore_examples(operation: dict[str, Any], given: Mapping[int | str, Mapping[str, Any]]) -> None:
    """Put the examples of answers back as they were given: FastAPI takes every null out of them."""
    for status, answer in given.items():
        for media_type, content in answer.get("content", {}).items():
            if "example" in content:
                operation["responses"][str(status)]["content"][media_type]["example"] = content["example"]


def _compute_example(operation: dict[str, Any], endpoint: object, app: FastAPI) -> None:
    """Ask an operation marked by `answers.shown_with` for the answer to show."""
    arguments = getattr(endpoint, "shown_with", None)
    if callable(endpoint) and arguments is not None:
        answer = endpoint(**arguments, catalog=app.state.service.catalog, _=None)
        example = json.loads(bytes(answer.body)) if isinstance(answer, Response) else jsonable_encoder(answer)
        operation["responses"]["200"]["content"]["application/json"]["example"] = example


def _implied(operation: dict[str, Any], role: str | None) -> list[type[TonnageError]]:
    """What any operation of this shape may answer."""
    errors: list[type[TonnageError]] = [InternalError]
    if "requestBody" in operation:
        errors += [MalformedBody, BodyTooLarge, UnsupportedMediaType]
    headers = {parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "header"}
    if "If-Match" in headers:
        errors += [StaleRevision, PreconditionRequired]
    if "Idempotency-Key" in headers:
        errors += [IdempotencyMismatch]
    if role is not None:
        errors += [InvalidInput, Unauthenticated, Forbidden, Unavailable]
    return errors
