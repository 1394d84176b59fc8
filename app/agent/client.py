"""One request to the service: `POST {server}/v1/agent/reports`, and what its answer means for the reports sent.

SendError
├── Away            the server cannot answer now: send the same reports again later, no sooner than it asks
├── NotAdmitted     this agent may not report, or this is not the server: an operator has to change something
└── Refused         the server will not take these reports as they are
"""

import ipaddress
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx

from app import __version__
from app.agent.bearer import Token

REPORTS_PATH = "/v1/agent/reports"
MAX_RETRY_AFTER_SECONDS = 3_600.0

_TIMEOUT = httpx.Timeout(10.0, connect=5.0)
_MAX_ANSWER_CHARACTERS = 500  # as much of an unexpected answer as a log line should hold


class SendError(Exception):
    """Nothing is known to be stored. The text says what the server answered."""


class Away(SendError):
    """The server is down, busy, or its answer was lost. `retry_after_seconds` is what it asks to wait, if it asks."""

    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class NotAdmitted(SendError):
    """The token is missing, wrong or of another role, or the address is not that of the service."""


class Refused(SendError):
    """The server read the reports and will not take them: one of them is wrong, or together they are too large."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The server has stored the reports: `accepted` of them now, `duplicates` of them before."""

    accepted: int
    duplicates: int


class Client:
    """Sends to the service at `server` (a URL). `token` is asked before every request, so that it can be exchanged."""

    def __init__(self, server: str, token: Token) -> None:
        self._token = token
        self._http = httpx.Client(
            base_url=server,
            timeout=_TIMEOUT,
            trust_env=not is_loopback(server),  # a proxy set for the outside world knows nothing of this machine
            headers={"Content-Type": "application/json", "User-Agent": f"tonnage-agent/{__version__}"},
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def send(self, reports: Sequence[bytes]) -> Answer:
        """Send `reports`, each the JSON of a `NodeReport`, as one batch. Raises a SendError unless all are stored."""
        try:
            token = self._token()
        except ValueError as error:
            raise NotAdmitted(f"no token: {error}") from error
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        body = b'{"reports":[' + b",".join(reports) + b"]}"
        try:
            response = self._http.post(REPORTS_PATH, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise Away(f"no answer from {self._http.base_url}: {str(error) or type(error).__name__}") from error
        return _answer(response, len(reports))


def is_loopback(server: str) -> bool:
    """Whether the URL `server` is on this machine, so that what is sent to it never leaves it."""
    host = urlsplit(server).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name other than localhost


def _answer(response: httpx.Response, sent: int) -> Answer:
    status = response.status_code
    if status == httpx.codes.OK:
        return _stored(response, sent)
    said = f"{status} {response.reason_phrase}: {response.text[:_MAX_ANSWER_CHARACTERS]}"
    if status >= 500 or status in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS):
        raise Away(said, _retry_after_seconds(response.headers.get("Retry-After")))
    if status in (httpx.codes.BAD_REQUEST, httpx.codes.REQUEST_ENTITY_TOO_LARGE, httpx.codes.UNPROCESSABLE_ENTITY):
        raise Refused(said)
    raise NotAdmitted(said)


def _stored(response: httpx.Response, sent: int) -> Answer:
    """The answer, if it really is the service's: a proxy's login page is also a 200, and must not cost any reports."""
    try:
        body = json.loads(response.content)
        answer = Answer(accepted=body["accepted"], duplicates=body["duplicates"])
        complete = answer.accepted + answer.duplicates == sent
    except (ValueError, TypeError, KeyError):
        complete = False
    if not complete:
        raise NotAdmitted(f"this is not the service's answer: {response.text[:_MAX_ANSWER_CHARACTERS]}")
    return answer


def _retry_after_seconds(value: str | None) -> float | None:
    """The wait that a `Retry-After` header asks for, in seconds or as a date; None when there is none to understand."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):  # no date, or one without a time zone
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS) if math.isfinite(seconds) else None
