"""`tonnage serve`: the process around the application, from the port to the last request.

In this order: the port is taken, the database started when it is ours, migrated, the bind rule checked, requests
answered. On SIGTERM or SIGINT the service stops being ready, goes on for `drain_seconds`, takes no more connections,
finishes what is in flight within `shutdown_grace_seconds`, and only then stops the database. A second signal cuts the
waiting short.
"""

import logging
import math
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr

from app import __version__, logs
from app.api.auth import needs_tokens
from app.api.deps import Service
from app.main import create_app
from app.settings import Settings
from app.storage import db, tokens
from app.storage.embedded import database
from app.storage.migration import migrate

_KEEP_ALIVE_SECONDS = 75  # longer than load balancers keep idle connections, so that they close them and not we
_BACKLOG = 2_048
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  -- compared with, not bound to
_ONE_REQUEST_SECONDS = 0.5  # terminals and supervisors send one wish to stop as several signals

_log = logging.getLogger(__name__)


class CannotServe(Exception):
    """The service cannot start. Its text is one sentence that says why and what to do."""


class _Stopped(BaseException):
    """A signal came while the service was still starting."""


def serve(settings: Settings) -> None:
    """Serve until a signal says stop.

    Raises CannotServe, SettingsError or UnusableDatabase when the service cannot start.
    """
    logs.configure(settings.log_level)
    with _signals_raise(), _listener(settings) as listener:
        url = None if settings.database_url is None else settings.database_url.get_secret_value()
        with database(url, settings.data_dir) as url:
            migrate(url)
            _run(settings.model_copy(update={"database_url": SecretStr(url)}), settings, listener)


def _run(complete: Settings, settings: Settings, listener: socket.socket) -> None:
    """Answer requests on `listener`. `complete` has the database's URL; `settings` are as the operator gave them."""
    app = create_app(complete)
    service: Service = app.state.service
    _check_bind_rule(service, settings)
    host, port = listener.getsockname()[:2]
    banner = _banner(service, settings, host, port)
    _Server(server_config(app, settings), service, banner).run(sockets=[listener])
    # From here on a signal must not interrupt the database's own clean stop.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs `app`: one process, plain HTTP/1.1, and our own logs."""
    return uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds),
    )


class _Server(uvicorn.Server):
    """uvicorn, with a pause between "not ready" and "closed", and without its habit of dying by the signal it got."""

    def __init__(self, config: uvicorn.Config, service: Service, banner: str) -> None:
        super().__init__(config)
        self._service = service
        self._banner = banner
        self._draining_since: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer, and say so."""
        await super().startup(sockets)
        sys.stdout.write(self._banner)
        sys.stdout.flush()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish what is in flight, then end the application, also when the finishing was cut short."""
        await super().shutdown(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  -- the signature is Python's
        """Stop being ready, and later stop. A second signal breaks all connections and stops at once."""
        now = time.monotonic()
        if self._draining_since is None:
            self._draining_since = now
            self._service.is_draining = True
        elif now - self._draining_since > _ONE_REQUEST_SECONDS:
            self.should_exit = self.force_exit = True
            for connection in self.server_state.connections:
                connection.transport.abort()

    async def on_tick(self, counter: int) -> bool:
        """Whether to take no more connections; asked ten times a second."""
        since, drain_seconds = self._draining_since, self._service.settings.drain_seconds
        if since is not None and time.monotonic() - since >= drain_seconds:
            self.should_exit = True
        return await super().on_tick(counter)


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let a signal undo a start that is not finished. While requests are answered, the server handles signals
    itself."""

    def stop(_: int, __: FrameType | None) -> NoReturn:
        raise _Stopped

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        yield
    except _Stopped:
        return


@contextmanager
def _listener(settings: Settings) -> Iterator[socket.socket]:
    """The port, taken but not listening yet: nobody waits on a service that may still fail to start."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host.strip("[]"), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "; choose another with --port" if "in use" in reason else ""
        raise CannotServe(f"cannot listen on {_host(settings.host)}:{settings.port}: {reason}{hint}") from None
    with listener:
        yield listener


def _check_bind_rule(service: Service, settings: Settings) -> None:
    """Raises CannotServe for an address that others can reach while no token could let anybody in."""
    if settings.is_loopback:
        return
    with db.transaction(service.sessions) as session:
        if tokens.any_usable(session, datetime.now(UTC)):
            return
    raise CannotServe(
        f"{settings.host} can be reached from other machines, and there is no usable token; make one first: "
        f"{_token_command(settings)} --role admin --name NAME"
    )


def _banner(service: Service, settings: Settings, host: str, port: int) -> str:
    """Where to go, for whoever started the service."""
    root = f"http://{'localhost' if host in _WILDCARDS else _host(host)}:{port}"
    data = f"PostgreSQL in {settings.data_dir}" if settings.database_url is None else "PostgreSQL at the URL given"
    access = "a token is needed: "
    if not needs_tokens(service):
        access = "this machine only, without a token, until the first one is made: "
        _log.warning("local mode: requests from this machine are taken as admin until a token is made")
    return (
        f"Tonnage {__version__} is ready.\n\n"
        f"  Start here   {root}\n"
        f"  API docs     {root}/docs\n"
        f"  Data         {data}\n"
        f"  Access       {access}{_token_command(settings)} --role planner --name NAME\n\n"
        "Stop with Ctrl-C.\n"
    )


def _token_command(settings: Settings) -> str:
    place = f" --data-dir {shlex.quote(str(settings.data_dir))}" if settings.database_url is None else ""
    return f"tonnage token create{place}"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
