"""The pages for people: what this is, the API's documentation, and what each kind of problem means.

Everything comes from this service, so that the pages work in a network without a way out; nothing is inline script.
"""

import inspect
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response

from app import __version__
from app.api.problems import problem_types, status_of
from app.errors import NotFound, TonnageError

router = APIRouter(include_in_schema=False)

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
_CACHED = {"Cache-Control": "public, max-age=3600"}
_PAGE_POLICY = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
}
_DOCS_POLICY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
}

_STYLE = "body{font:1rem/1.5 system-ui,sans-serif;max-width:44rem;margin:3rem auto;padding:0 1rem}code{background:#eee}"
_DOCS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Tonnage API</title><link rel="icon" href="docs/favicon.png"><link rel="stylesheet" href="docs/swagger-ui.css">
</head><body><div id="docs"></div><noscript>This page needs JavaScript; <a href="openapi.json">openapi.json</a> says
the same.</noscript><script src="docs/swagger-ui-bundle.js"></script><script src="docs/start.js"></script></body></html>
"""
_START = """SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, tryItOutEnabled: true,
  validatorUrl: null, persistAuthorization: false, defaultModelsExpandDepth: 0});
"""


@router.get("/")
def home() -> HTMLResponse:
    """Say what this is and where to go."""
    return _page(
        "Tonnage",
        "<p>Will this model train on these GPUs, split how, and which nodes have the room?</p><ul>"
        '<li><a href="docs">The API</a>, to read and to try, or as <a href="openapi.json">openapi.json</a></li>'
        '<li><a href="problems">What each kind of problem means</a></li>'
        '<li><a href="healthz">healthz</a>, <a href="readyz">readyz</a>, <a href="metrics">metrics</a></li></ul>'
        f"<p>Version {escape(__version__)}</p>",
    )


@router.get("/openapi.json")
def openapi(request: Request) -> JSONResponse:
    """The API as an OpenAPI document."""
    document: dict[str, Any] = request.app.openapi()
    return JSONResponse(document, headers={"Cache-Control": "no-cache"})


@router.get("/docs")
def docs() -> HTMLResponse:
    """The API to read and to try in a browser."""
    return HTMLResponse(_DOCS, headers=_DOCS_POLICY)


@router.get("/docs/start.js")
def docs_start() -> Response:
    """What the docs page runs, as a file: the page allows no inline script."""
    return Response(_START, media_type="text/javascript", headers=_CACHED)


@router.get("/docs/{asset}")
def docs_asset(asset: str) -> FileResponse:
    """A file of the documentation viewer, out of the package that carries it."""
    if asset not in _ASSETS:
        raise NotFound("no such file; the documentation is at /docs")
    return FileResponse(Path(str(files("fastapi_offline"))) / "static" / asset, headers=_CACHED)


@router.get("/problems")
def problems() -> HTMLResponse:
    """Every kind of problem that an answer can have."""
    rows = "".join(
        f'<li>{status_of(kind)} <a href="problems/{kind.slug}"><code>{kind.slug}</code></a>: {escape(kind.title)}</li>'
        for kind in sorted(problem_types(), key=status_of)
    )
    return _page("Problems", f"<p>What the <code>type</code> of an error means.</p><ul>{rows}</ul>")


@router.get("/problems/{slug}")
def problem_page(slug: str) -> HTMLResponse:
    """What one kind of problem means and what to do about it."""
    kind = next((kind for kind in problem_types() if kind.slug == slug), None)
    if kind is None:
        raise NotFound("no such kind of problem; all are listed at /problems")
    return _page(kind.title, f"<p>Status {status_of(kind)}, <code>{kind.slug}</code></p>{_prose(kind)}")


def _prose(kind: type[TonnageError]) -> str:
    paragraphs = (inspect.getdoc(kind) or "").split("\n\n")
    return "".join(f"<p>{escape(paragraph).replace('`', '')}</p>" for paragraph in paragraphs)


def _page(title: str, body: str) -> HTMLResponse:
    return HTMLResponse(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>",
        headers=_PAGE_POLICY,
    )
