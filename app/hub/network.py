"""The way to the hub: URLs taken apart once, addresses judged before anything is connected, one deadline for it all.

It stands on httpcore, the transport of httpx, because only there an address can be judged before a connection to it
is made, and a deadline be set for all that happens instead of for each read.
"""

import ipaddress
import re
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import httpcore

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._:-]+")
_TARGET = re.compile(r"/[!-~]*")
_MOST_PRIVATE_GROUND = 2


class ForbiddenGround(Exception):
    """A host lies in a more private network than the place that led to it."""


def ground_of(address: str) -> int:
    """How private an IP address is: 0 public, 1 a private network, 2 this machine, 3 where no hub ever is.

    3 are link-local addresses, where clouds keep their credentials, and those that name no single machine.
    """
    ip = ipaddress.ip_address(address)
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if ip.is_loopback:
        return 2
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return 3
    return 0 if ip.is_global else 3 if ip.is_reserved else 1


@dataclass(frozen=True, slots=True)
class Place:
    """A URL, taken apart once, so that what is judged is what is asked."""

    scheme: str
    host: str
    port: int
    target: str

    @classmethod
    def of(cls, url: str) -> Self:
        """Raises ValueError for anything but a plain http or https URL without user."""
        parts = urlsplit(url)
        host, target = parts.hostname or "", (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if parts.scheme not in _PORTS or "@" in parts.netloc or not _HOST.fullmatch(host):
            raise ValueError("not a plain URL")
        if not _TARGET.fullmatch(target):
            raise ValueError("not a plain path")
        return cls(parts.scheme, host, _PORTS[parts.scheme] if parts.port is None else parts.port, target)

    @property
    def url(self) -> str:
        """Together again."""
        return f"{self.scheme}://{self.name}{self.target}"

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """The host, with its port only where that is not the scheme's own."""
        return self.address.removesuffix(f":{_PORTS[self.scheme]}")

    def is_beside(self, other: "Place") -> bool:
        """Whether both are on the same server."""
        return (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)


class Deadline:
    """The moment by which everything has to be done."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left. Raises what httpcore raises when there are none."""
        if (left := self._end - time.monotonic()) <= 0:
            raise httpcore.ReadTimeout("the time is over")
        return left


class Network(httpcore.NetworkBackend):
    """Connections that keep to the deadline. None leads to more private ground than the first one, which is the hub's.

    Raises ForbiddenGround where one would, before anything is sent there.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._ground: int | None = None
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  -- the signature is httpcore's; the deadline is ours
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address that takes one; each gets its share of the time."""
        addresses = _addresses(host, port)
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        for position, address in enumerate(addresses):
            self._check(host, address)
            seconds = self._deadline.left() / (len(addresses) - position)
            try:
                stream = self._sockets.connect_tcp(address, port, seconds, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
                continue
            if self._ground is None:
                self._ground = min(ground_of(address), _MOST_PRIVATE_GROUND)
            return _Stream(stream, self._deadline)
        raise error

    def _check(self, host: str, address: str) -> None:
        if self._ground is not None and ground_of(address) > self._ground:
            raise ForbiddenGround(host)


class _Stream(httpcore.NetworkStream):
    """A connection whose every step gets what is left of the time, and no step more."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002  -- as above, and below
        return self._inner.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._inner.write(buffer, self._deadline.left())

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, self._deadline.left()), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
