"""A body that is read while it comes in, by code that waits for it in a thread: never more of it in memory than asked.

The event loop hands over what has arrived and no more, so that a slow reader slows the client down. A client that goes
away, a body that ends too soon, or one that stands still, ends the reading with MalformedTensors.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile
from typing import Protocol

import anyio.from_thread
from starlette.requests import ClientDisconnect, Request

from app.errors import MalformedTensors, Unavailable, UnsupportedMediaType

OCTETS = "application/octet-stream"

_log = logging.getLogger(__name__)

_HANDED_OVER_BYTES = 2**20
"""Taken from the event loop at once: each time costs a change of threads."""


class Body(Protocol):
    """Bytes that come in order."""

    def read(self, size: int) -> bytes:
        """The next `size` bytes. Raises MalformedTensors where there are fewer."""

    def is_at_end(self) -> bool:
        """Whether nothing follows."""


class Whole:
    """A body that is all there."""

    def __init__(self, data: bytes) -> None:
        self._file = BytesIO(data)
        self._left = len(data)

    def read(self, size: int) -> bytes:
        """The next `size` bytes. Raises MalformedTensors where there are fewer."""
        if size > self._left:
            raise MalformedTensors(f"the file ends where {size - self._left:,} bytes more were to come")
        self._left -= size
        return self._file.read(size)

    def is_at_end(self) -> bool:
        """Whether nothing follows."""
        return not self._left


class Upload:
    """The body of a request, for a thread of the pool."""

    def __init__(self, request: Request, *, idle_seconds: float) -> None:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != OCTETS or request.headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType(f"send the file as it is, uncompressed, with Content-Type: {OCTETS}")
        self._chunks: AsyncIterator[bytes] = aiter(request.stream())
        self._idle_seconds = idle_seconds
        self._waiting = bytearray()
        self._ended = False
        self.position = 0

    def read(self, size: int) -> bytes:
        """The next `size` bytes. Raises MalformedTensors where there are fewer, BodyTooLarge beyond the limit."""
        self._fill(size)
        if len(self._waiting) < size:
            raise MalformedTensors(
                f"the body ends after {self.position + len(self._waiting):,} bytes, where at least "
                f"{self.position + size:,} were to come; send the whole file"
            )
        found = bytes(self._waiting[:size])
        del self._waiting[:size]
        self.position += size
        return found

    def is_at_end(self) -> bool:
        """Whether nothing follows."""
        self._fill(1)
        return not self._waiting

    def _fill(self, size: int) -> None:
        if len(self._waiting) < size and not self._ended:
            anyio.from_thread.run(self._receive, size)

    async def _receive(self, size: int) -> None:
        """In the event loop: take what has come in, at least `size` bytes and not much more."""
        try:
            while len(self._waiting) < max(size, _HANDED_OVER_BYTES):
                async with asyncio.timeout(self._idle_seconds):
                    self._waiting += await anext(self._chunks)
        except StopAsyncIteration:
            self._ended = True
        except TimeoutError:
            raise MalformedTensors(
                f"nothing came for {self._idle_seconds:g} seconds after {self.position + len(self._waiting):,} bytes; "
                "send the whole file again"
            ) from None
        except ClientDisconnect:
            raise MalformedTensors("the client closed the connection before the body was complete") from None


class Spool:
    """Bytes on disk that can be read again and again: a file without a name, gone when it is closed or the process
    ends.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`

    def fill(self, body: Body, size: int) -> None:
        """Write the next `size` bytes of the body."""
        self._file.seek(0)
        self._file.truncate()
        for start in range(0, size, _HANDED_OVER_BYTES):
            chunk = memoryview(body.read(min(_HANDED_OVER_BYTES, size - start)))
            while chunk:
                chunk = chunk[self._write(chunk) :]

    def _write(self, chunk: memoryview) -> int:
        try:
            return self._file.write(chunk)
        except OSError as error:
            _log.warning("a tensor could not be spooled", extra={"reason": error.strerror})
            raise Unavailable("the disk has no room for this tensor just now; send the file again later") from None

    def read(self, start: int, stop: int) -> bytes:
        """Bytes `start` up to `stop`."""
        self._file.seek(start)
        found = bytearray(stop - start)
        view, filled = memoryview(found), 0
        while filled < len(found):
            count = self._file.readinto(view[filled:])
            if not count:
                raise OSError("a spooled tensor became shorter")
            filled += count
        return bytes(found)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()
