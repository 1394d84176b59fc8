"""What happens around every request, as plain ASGI: id, log line, metrics, headers, limits, and the answer to a crash.

Outermost first: `Envelope` names, times and logs the request and sees that it is always answered; `Limits` refuses
what is too large or too much, before anything is read or queued.
"""

import asyncio
import logging
import re
import time
from collections.abc import Iterable, Mapping
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.metrics import Metrics
from app.api.problems import crash, problem
from app.errors import BodyTooLarge, Unavailable
from app.logs import request_id
from app.units import human_bytes

REQUEST_ID_HEADER = "X-Request-ID"

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds: logged at debug only
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_LINGER_SECONDS = 10
_LINGER_BYTES = 256 * 2**20

_log = logging.getLogger("app.access")


class Envelope:
    """Gives a request its id, and its answer that id, the security headers, a log line and a place in the metrics.

    A `HEAD` is taken as the `GET` it stands for; the server leaves the body out.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; anything but HTTP is passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        identity = offered if _SANE_ID.fullmatch(offered) else uuid4().hex
        answer = _Answer(send, identity)
        token, started = request_id.set(identity), time.perf_counter()
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else dict(scope)
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._answer(inner, receive, answer)
            finally:
                self._record(scope, inner, answer, time.perf_counter() - started)
                request_id.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        try:
            await self._app(scope, receive, answer)
        except Exception:
            if answer.status is not None:
                raise  # half an answer is out: the server breaks the connection, which the client notices
            await crash(scope)(scope, receive, answer)

    def _record(self, scope: Scope, inner: Scope, answer: "_Answer", seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(inner.get("route"), "path_format", "unmatched")
        status = answer.status or 0
        self._metrics.requests.labels(method, route, str(status)).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        _log.log(
            logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO,
            "request",
            extra={
                "method": method,
                "path": scope["path"],
                "route": route,
                "status": status,
                "duration_seconds": round(seconds, 6),
                "client": scope["client"][0] if scope.get("client") else None,
                "principal": scope.get("state", {}).get("principal_name"),
            },
        )


class _Answer:
    """A `send` that knows the status once it is out and adds the headers that every answer has."""

    def __init__(self, send: Send, identity: str) -> None:
        self._send = send
        self._identity = identity
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message["headers"]))
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers[REQUEST_ID_HEADER] = self._identity
            message = {**message, "headers": headers.raw}
        await self._send(message)


class Limits:
    """Refuses a body above `max_body_bytes`, declared or streamed, and a request above `max_in_flight` at once.

    `exempt` paths are answered however busy the service is, so that it is not restarted for being popular. Paths of
    `streamed` read their bodies as they come in, and have limits of their own.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        max_in_flight: int,
        exempt: Iterable[str],
        streamed: Mapping[str, int],
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._streamed = dict(streamed)
        self._max_in_flight = max_in_flight
        self._exempt = frozenset(exempt)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request within the limits; anything but HTTP is passed on."""
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        streamed = self._streamed.get(scope["path"])
        limit = self._max_body_bytes if streamed is None else streamed
        body = _CountedBody(receive, limit, scope, is_streamed=streamed is not None)
        if body.declared_bytes > limit:
            await _refuse(body.too_large(), body, scope, send)
        elif self._in_flight >= self._max_in_flight:
            await _refuse(Unavailable("too many requests at once; send this one again in a moment"), body, scope, send)
        else:
            self._in_flight += 1
            try:
                await self._app(scope, body, _Lingering(body, send))
            finally:
                self._in_flight -= 1


class _CountedBody:
    """A `receive` that raises BodyTooLarge once more than the limit has come in, whatever length was declared."""

    def __init__(self, receive: Receive, limit_bytes: int, scope: Scope, *, is_streamed: bool) -> None:
        length = Headers(scope=scope).get("content-length", "0")
        self.declared_bytes = int(length) if length.isdecimal() else 0
        self.is_over = False
        self._is_streamed = is_streamed
        self._ended = False
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._received_bytes = 0
        self._awaits_go_ahead = "100-continue" in Headers(scope=scope).get("expect", "").lower()

    async def __call__(self) -> Message:
        message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        self._ended = not message.get("more_body", False)
        if self._received_bytes > self._limit_bytes:
            self.is_over = True
            raise self.too_large()
        return message

    @property
    def is_left(self) -> bool:
        """Whether the answer comes before the client is done: the body is too large, or not worth reading on."""
        return self.is_over or (self._is_streamed and not self._ended)

    def too_large(self) -> BodyTooLarge:
        size = f"{self.declared_bytes:,} bytes" if self.declared_bytes else "more"
        limit = f"{self._limit_bytes:,} bytes ({human_bytes(self._limit_bytes)})"
        return BodyTooLarge(f"the body may have {limit}, not {size}; send less at once")

    async def discard(self) -> None:
        """Throw away what the client is still sending, within bounds. Closing on it would cost it the answer: a
        reset."""
        if self._awaits_go_ahead and not self._received_bytes:
            return  # it waits for our word before it sends anything, and the answer is that word
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._received_bytes <= _LINGER_BYTES:
                    message = await self._receive()
                    self._received_bytes += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return


class _Lingering:
    """A `send` that closes the connection after a body that is left unread, once the client has had the time to see
    the answer.
    """

    def __init__(self, body: _CountedBody, send: Send) -> None:
        self._body = body
        self._send = send

    async def __call__(self, message: Message) -> None:
        if not self._body.is_left:
            await self._send(message)
        elif message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            headers["Connection"] = "close"
            await self._send({**message, "headers": headers.raw})
        else:
            await self._send({**message, "more_body": True})
            await self._body.discard()
            await self._send({"type": "http.response.body", "body": b""})


async def _refuse(error: BodyTooLarge | Unavailable, body: _CountedBody, scope: Scope, send: Send) -> None:
    body.is_over = isinstance(error, BodyTooLarge)
    await problem(error, scope)(scope, body, _Lingering(body, send))
