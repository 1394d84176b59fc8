"""Who asks, and whether they may: a bearer token, its role, and one local mode for the first minutes.

`viewer` < `planner` < `admin`; `agent` stands aside and may only report. An operation says what it needs by a
parameter of type `Viewer`, `Planner`, `Admin` or `Agent`; a test walks all routes and finds none without.

Local mode: as long as no token was ever made and the service listens on loopback only, whoever can reach it is its
admin and agent. It ends for good with the first `tonnage token create`, at the very next request. Because a browser
on the same machine can be talked into sending requests, and a proxy can let strangers in, it takes neither a foreign
`Host` or `Origin` nor anything that was forwarded.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant
from starlette.datastructures import Headers

from app.api.deps import Service, service_of
from app.errors import Forbidden, Unauthenticated
from app.settings import is_loopback
from app.storage import db, tokens

_LONGEST_HEADER = 512


class Role(StrEnum):
    """What a token may do."""

    VIEWER = "viewer"
    PLANNER = "planner"
    ADMIN = "admin"
    AGENT = "agent"


_INCLUDED = {
    Role.VIEWER: {Role.VIEWER},
    Role.PLANNER: {Role.VIEWER, Role.PLANNER},
    Role.ADMIN: {Role.VIEWER, Role.PLANNER, Role.ADMIN},
    Role.AGENT: {Role.AGENT},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who sent a request. `node` is set when the token speaks for that node only; `token_id` is None in local mode."""

    name: str
    roles: frozenset[Role]
    token_id: UUID | None = None
    node: str | None = None


_LOCAL = Principal(name="local", roles=frozenset(Role))


@dataclass(frozen=True)
class Requirement:
    """The dependency that lets a request pass only with `role`. Raises Unauthenticated or Forbidden."""

    role: Role

    def __call__(self, request: Request) -> Principal:
        """The caller, found once per request."""
        principal: Principal | None = getattr(request.state, "principal", None)
        if principal is None:
            principal = request.state.principal = _authenticate(request.headers, service_of(request))
            request.state.principal_name = principal.name
        if self.role not in principal.roles:
            held = ", ".join(sorted(principal.roles))
            raise Forbidden(f"this needs a token with role {self.role}; the one sent has {held}")
        return principal


def requirement_of(dependant: Dependant) -> Requirement | None:
    """What the operation behind `dependant` requires, however deep it is declared; None for a public one."""
    if isinstance(dependant.call, Requirement):
        return dependant.call
    return next((found for inner in dependant.dependencies if (found := requirement_of(inner))), None)


Viewer = Annotated[Principal, Depends(Requirement(Role.VIEWER), scope="function")]
Planner = Annotated[Principal, Depends(Requirement(Role.PLANNER), scope="function")]
Admin = Annotated[Principal, Depends(Requirement(Role.ADMIN), scope="function")]
Agent = Annotated[Principal, Depends(Requirement(Role.AGENT), scope="function")]


def needs_tokens(service: Service) -> bool:
    """Whether requests need a token: always, unless local mode is on. Asks the database until the first token is
    there."""
    if not service.needs_tokens:
        with db.transaction(service.sessions) as session:
            service.needs_tokens = bool(tokens.list_tokens(session))
    return service.needs_tokens


def _authenticate(headers: Headers, service: Service) -> Principal:
    sent = headers.get("authorization")
    if sent is not None:
        return _bearer(sent, service)
    if not needs_tokens(service):
        _check_local(headers)
        return _LOCAL
    service.metrics.refused_tokens.labels("missing").inc()
    raise Unauthenticated("send Authorization: Bearer <token>; `tonnage token create` makes one")


def _bearer(header: str, service: Service) -> Principal:
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip() or len(header) > _LONGEST_HEADER:
        service.metrics.refused_tokens.labels("malformed").inc()
        raise Unauthenticated("the Authorization header should read: Bearer <token>")
    now = datetime.now(UTC)
    with db.transaction(service.sessions) as session:
        token = tokens.find(session, secret.strip(), now=now)
        if token is not None:
            tokens.touch(session, token.id, now)
    if token is None:
        service.metrics.refused_tokens.labels("unknown").inc()
        raise Unauthenticated("the token is unknown, expired or revoked; `tonnage token create` makes a new one")
    return Principal(name=token.name, roles=frozenset(_INCLUDED[Role(token.role)]), token_id=token.id, node=token.node)


def _check_local(headers: Headers) -> None:
    """Raises Forbidden for what reaches a loopback address without coming from a person or program on this machine."""
    host = headers.get("host", "")
    if not is_loopback(_host_name(host)):
        raise Forbidden("without a token, requests must name this machine in Host, such as localhost:8000")
    if any(name in headers for name in ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")):
        raise Forbidden("requests through a proxy need a token; `tonnage token create` makes one")
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    if (origin is not None and origin.partition("://")[2] != host) or site not in ("none", "same-origin"):
        raise Forbidden("requests from other web sites need a token; `tonnage token create` makes one")


def _host_name(host: str) -> str:
    name, _, port = host.rpartition(":")
    return name if port.isdecimal() else host
