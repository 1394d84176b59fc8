"""From the outbox to the server: batches, waiting, and what becomes of a report that the server refuses.

The newest reports go first, so that the fleet is seen as it is now; history is filled in afterwards.

A refused batch is never given up as a whole. The newest report is tried alone: if the server takes that, it takes
reports like these, so the others are halved until the bad ones are alone, and only those are put aside. If the server
takes none, it is likelier that it is older than this agent than that all reports are wrong, and everything is kept.
"""

import logging
import random
import threading

from app.agent.client import Away, Client, NotAdmitted, Refused, SendError
from app.agent.outbox import Kept, Outbox

logger = logging.getLogger(__name__)

BATCH_REPORTS = 200
BATCH_BYTES = 1_000_000
FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0

_Reports = list[tuple[Kept, bytes]]


class Delivery:
    """Sends what is in `outbox` through `client`, one batch at a time."""

    def __init__(self, outbox: Outbox, client: Client) -> None:
        self._outbox = outbox
        self._client = client
        self._batch_reports = BATCH_REPORTS

    def send_all(self, stop: threading.Event) -> None:
        """Send until the outbox is empty or `stop` is set. Raises SendError when the rest has to wait."""
        while not stop.is_set():
            reports = self._outbox.newest(max_reports=self._batch_reports, max_bytes=BATCH_BYTES)
            if not reports:
                return
            try:
                self._send(reports)
            except Refused:
                if len(reports) == 1:
                    raise
                self._batch_reports = max(1, len(reports) // 2)
                self._separate(reports)
            else:
                self._batch_reports = min(BATCH_REPORTS, self._batch_reports * 2)

    def run(self, stop: threading.Event, added: threading.Event) -> None:
        """Send whenever a report was `added`, until `stop` is set; after a failure wait, longer each time."""
        failures = 0
        while not stop.is_set():
            added.clear()
            try:
                self.send_all(stop)
            except SendError as error:
                failures += 1
                wait_seconds = _wait_seconds(error, failures)
                _log_failure(error, wait_seconds, len(self._outbox))
                stop.wait(wait_seconds)
                continue
            if failures:
                logger.info("the server takes reports again", extra={"failed_attempts": failures})
                failures = 0
            added.wait()

    def _send(self, reports: _Reports) -> None:
        answer = self._client.send([content for _, content in reports])
        self._outbox.drop(kept for kept, _ in reports)
        logger.debug("sent", extra={"accepted": answer.accepted, "duplicates": answer.duplicates})

    def _separate(self, reports: _Reports) -> None:
        """Send `reports`, some of which are refused, in ever smaller parts. Raises Refused if the newest one is."""
        self._send(reports[:1])
        parts = [reports[1:]]
        while parts:
            part = parts.pop()
            try:
                self._send(part)
            except Refused as error:
                if len(part) > 1:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
                    continue
                self._put_aside(part[0][0], str(error))

    def _put_aside(self, kept: Kept, answer: str) -> None:
        place = self._outbox.reject(kept)
        logger.error("the server refuses a report, and it was put aside", extra={"answer": answer, "file": str(place)})


def _wait_seconds(error: SendError, failures: int) -> float:
    """How long to wait after `failures` failures in a row, with a random part, lest all nodes come back at once."""
    jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads requests, guards nothing
    if not isinstance(error, Away):
        return jitter * LONGEST_WAIT_SECONDS  # until a person has changed something
    if error.retry_after_seconds is not None:
        return error.retry_after_seconds + jitter
    return float(jitter * min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(failures - 1, 10)))


def _log_failure(error: SendError, wait_seconds: float, kept: int) -> None:
    extra = {"answer": str(error), "next_attempt_seconds": round(wait_seconds, 1), "kept_reports": kept}
    if isinstance(error, NotAdmitted):
        logger.error("the server does not admit this agent: check its token and the server's address", extra=extra)
    elif isinstance(error, Refused):
        logger.error("the server refuses this agent's reports: check that it is not older than the agent", extra=extra)
    else:
        logger.warning("the server cannot be reached", extra=extra)
