"""Unsent reports on disk: kept before they are sent, dropped only after the server has answered.

One file per report, written beside its place, synced and renamed: a kill at any moment leaves a whole file or none.
The file's name holds the order of arrival (the clock may be set back, the order may not) and a checksum of the content.

The outbox is bounded. At its bound it thins the older half, leaving out every second report there: what is old becomes
coarser, and the newest half stays complete. Nothing else is ever lost but what the server refuses: see `reject`.
"""

import fcntl
import logging
import os
import threading
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

_MAX_REJECTED = 100
_MAX_UNWRITTEN = 500


class OutboxUnusable(Exception):
    """The directory cannot be used: it cannot be written to, or another agent holds it. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A report in the outbox. `unwritten` is its content as long as the disk refuses it, else None."""

    arrival: int
    checksum: int
    size_bytes: int
    unwritten: bytes | None = None

    @property
    def file_name(self) -> str:
        """The name of its file: order of arrival, checksum."""
        return f"{self.arrival:012d}-{self.checksum:08x}.json"


class Outbox:
    """The unsent reports in `directory`, at most `max_reports` of them and `max_bytes` together, the newest always.

    May be used from several threads. Raises OutboxUnusable when the directory cannot be used.
    """

    def __init__(self, directory: Path, *, max_reports: int, max_bytes: int) -> None:
        self._directory = directory
        self._max_reports = max_reports
        self._max_bytes = max_bytes
        self._mutex = threading.Lock()
        self._entries: dict[int, Kept] = {}  # by arrival, oldest first
        self._disk_refuses = False
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock_file = _lock(directory / "lock")
            self._find_kept()
        except OSError as error:
            raise OutboxUnusable(f"cannot keep reports in {directory}: {error.strerror}") from error
        self._next_arrival = max(self._entries, default=-1) + 1

    def close(self) -> None:
        """Let another agent use the directory."""
        self._lock_file.close()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, content: bytes) -> None:
        """Keep a report. On return it is on disk, or, while the disk refuses to take it, in memory."""
        with self._mutex:
            kept = Kept(self._next_arrival, zlib.crc32(content), len(content))
            self._next_arrival += 1
            try:
                self._write(kept.file_name, content)
                if self._disk_refuses:
                    logger.info("reports are kept on disk again")
                self._disk_refuses = False
            except OSError as error:
                kept = Kept(kept.arrival, kept.checksum, kept.size_bytes, unwritten=content)
                if not self._disk_refuses:
                    logger.warning("reports are only kept in memory", extra={"reason": str(error)})
                self._disk_refuses = True
            self._entries[kept.arrival] = kept
            self._thin()

    def newest(self, *, max_reports: int, max_bytes: int) -> list[tuple[Kept, bytes]]:
        """The newest reports with their content, newest first, as many as the limits allow and at least one if any."""
        with self._mutex:
            chosen: list[tuple[Kept, bytes]] = []
            total_bytes = 0
            for kept in reversed(list(self._entries.values())):
                if len(chosen) >= max_reports or (chosen and total_bytes + kept.size_bytes > max_bytes):
                    break
                content = self._content(kept)
                if content is not None:
                    chosen.append((kept, content))
                    total_bytes += kept.size_bytes
            return chosen

    def drop(self, reports: Iterable[Kept]) -> None:
        """Forget reports that the server has answered for."""
        with self._mutex:
            for kept in reports:
                self._remove(kept)

    def reject(self, kept: Kept) -> Path | None:
        """Put a report that the server refuses aside, into `rejected/` (the 100 last ones), and say where it is."""
        with self._mutex:
            content = self._content(kept)
            if content is None:
                return None
            place = self._directory / "rejected" / kept.file_name
            try:
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(content)
                for surplus in sorted(place.parent.glob("*.json"))[:-_MAX_REJECTED]:
                    surplus.unlink()
            except OSError as error:
                logger.warning("a rejected report cannot be put aside", extra={"reason": str(error)})
            self._remove(kept)
            return place

    def _find_kept(self) -> None:
        for path in sorted(self._directory.iterdir()):
            arrival, _, checksum = path.stem.partition("-")
            if path.suffix == ".partial":
                path.unlink()  # the agent was killed while writing it
            elif path.suffix == ".json":
                try:
                    kept = Kept(int(arrival), int(checksum, 16), path.stat().st_size)
                except ValueError:
                    logger.warning("a file in the outbox is no report, and was left alone", extra={"file": path.name})
                    continue
                self._entries[kept.arrival] = kept

    def _write(self, file_name: str, content: bytes) -> None:
        partial = self._directory / f"{file_name}.partial"
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self._directory / file_name)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _content(self, kept: Kept) -> bytes | None:
        """The content of a report; None, and the report is gone, when it has been dropped or damaged meanwhile."""
        if kept.arrival not in self._entries:
            return None
        if kept.unwritten is not None:
            return kept.unwritten
        try:
            content = (self._directory / kept.file_name).read_bytes()
        except OSError as error:
            logger.warning("a kept report cannot be read", extra={"file": kept.file_name, "reason": str(error)})
        else:
            if zlib.crc32(content) == kept.checksum:
                return content
            logger.error("a kept report is damaged and was removed", extra={"file": kept.file_name})
        self._remove(kept)
        return None

    def _remove(self, kept: Kept) -> None:
        if self._entries.pop(kept.arrival, None) is None or kept.unwritten is not None:
            return
        try:
            (self._directory / kept.file_name).unlink(missing_ok=True)
        except OSError as error:  # sent again after a restart, which does no harm
            logger.warning("a file cannot be removed", extra={"file": kept.file_name, "reason": str(error)})

    def _thin(self) -> None:
        unwritten = [kept for kept in self._entries.values() if kept.unwritten is not None]
        for kept in unwritten[:-_MAX_UNWRITTEN]:
            self._remove(kept)
        while len(self._entries) > 1 and (
            len(self._entries) > self._max_reports
            or sum(kept.size_bytes for kept in self._entries.values()) > self._max_bytes
        ):
            entries = list(self._entries.values())
            surplus = entries[1 : len(entries) // 2 : 2] or entries[:1]
            for kept in surplus:
                self._remove(kept)
            logger.warning("the outbox is full: older reports were thinned", extra={"thinned": len(surplus)})


def _lock(path: Path) -> IO[bytes]:
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OutboxUnusable(
            f"another agent keeps its reports in {path.parent}; give each its own --state-dir"
        ) from error
    return file
