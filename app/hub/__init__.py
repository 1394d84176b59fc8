"""The model hub: which commit a branch is at, and a model's `config.json` at a commit. Keeps nothing.

Any endpoint that speaks as Hugging Face does will serve. Whatever it answers, a look-up goes only to the hosts that
the operator named, never onto more private ground than the hub itself stands on, shows the token to nobody but the
hub, reads no more than it must, and ends in time.
"""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote, urljoin

import httpcore

from app import __version__
from app.errors import InvalidInput, Unavailable, UnknownName, UnsupportedModel
from app.hub.network import Deadline, ForbiddenGround, Network, Place
from app.units import MIB

DEFAULT_REVISION = "main"

_MOST_REDIRECTS = 5
_MOST_REVISION_BYTES = 8 * MIB  # the answer lists every file of the model
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REFUSALS = frozenset({401, 403, 404})
_BUSY = frozenset({429, 502, 503, 504})
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_MODEL_ID = re.compile(rf"(?!.*\.\.)(?:{_NAME}/)?{_NAME}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


class HubUnavailable(Unavailable):
    """The model hub did not answer, or not as a model hub does, and nothing of this model is kept from before.

    Send the same request again in a moment, or send the model's `config.json` as `config`: then no hub is asked.
    """

    slug = "hub-unavailable"
    title = "The model hub cannot be asked"

    def __init__(self, reason: str, *, is_away: bool = False) -> None:
        """`is_away`: there was no answer at all, so that the next look-up would have to wait as long for none."""
        super().__init__(f"{reason}; try again in a moment, or send the model's config.json as `config`")
        self.reason = reason
        self.is_away = is_away


class _Refused(Exception):
    """The hub has no such thing, or not for us. `code` is its own word for that, if it has one."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status)
        self.status = status
        self.code = code


class _TooLarge(Exception):
    """The hub sends more than is read."""


def is_model_id(text: str) -> bool:
    """Whether `text` can be the id of a model in a hub: `name` or `organization/name`."""
    return _MODEL_ID.fullmatch(text) is not None


def is_commit(revision: str) -> bool:
    """Whether `revision` is a whole commit, which never changes, and no branch or tag."""
    return _COMMIT.fullmatch(revision) is not None


class Hub:
    """The hub at `url` (https, or http on this machine). Safe to use from several threads.

    A visit may take `timeout_seconds` in all. Redirects may lead to the hub itself and to `allowed_hosts`, each `host`
    or `host:port`. `token` is sent to the hub alone. Raises ValueError for what is no plain URL.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        timeout_seconds: float,
        max_config_bytes: int,
        allowed_hosts: Iterable[str] = (),
    ) -> None:
        self.url = url.rstrip("/")
        self.home = Place.of(self.url)
        self.token = token
        self.timeout_seconds = timeout_seconds
        self.max_config_bytes = max_config_bytes
        self._allowed = {self.home.address, *(host.lower() for host in allowed_hosts)}
        self._tls = httpcore.default_ssl_context() if self.home.scheme == "https" else None  # reads every authority

    @property
    def host(self) -> str:
        """Where the hub is, for people."""
        return self.home.name

    @property
    def too_slow(self) -> str:
        """What is wrong when the time is over, for people."""
        return f"the model hub at {self.host} did not answer within {self.timeout_seconds:g} s"

    @contextmanager
    def visit(self) -> Iterator["Visit"]:
        """A few questions that together may take `timeout_seconds`, from now on."""
        network = Network(Deadline(self.timeout_seconds))
        with httpcore.ConnectionPool(ssl_context=self._tls, network_backend=network) as pool:
            yield Visit(self, pool)

    def check(self, place: Place) -> None:
        """Raises HubUnavailable for a place that a redirect must not lead to."""
        where = f"the model hub at {self.host} leads to {place.name}"
        if place.scheme != "https" and self.home.scheme == "https":
            raise HubUnavailable(f"{where} without https")
        if place.name not in self._allowed and place.address not in self._allowed:
            raise HubUnavailable(f"{where}, which TONNAGE_HUB_ALLOWED_HOSTS does not name")


class Visit:
    """Asks the hub. Made by `Hub.visit`; raises HubUnavailable where there is no usable answer, or not in time."""

    def __init__(self, hub: Hub, pool: httpcore.ConnectionPool) -> None:
        self._hub = hub
        self._name = f"the model hub at {hub.host}"
        self._pool = pool

    def commit(self, model_id: str, revision: str) -> str:
        """The commit that `revision` of the model is at. Raises UnknownName for a model or revision not to be seen."""
        path = f"/api/models/{quote(model_id)}/revision/{quote(revision, safe='')}"
        try:
            commit = str(json.loads(self._get(path, _MOST_REVISION_BYTES))["sha"])
        except _Refused as refused:
            raise self._unknown(model_id, revision, refused) from None
        except (_TooLarge, ValueError, LookupError, TypeError, RecursionError):
            commit = ""
        if not is_commit(commit) or (is_commit(revision) and commit != revision):
            raise HubUnavailable(f"{self._name} does not say which commit {revision!r} of {model_id} is")
        return commit

    def config(self, model_id: str, commit: str) -> bytes:
        """The model's `config.json` at a commit, as published.

        Raises UnsupportedModel where there is none or it is too large, UnknownName where it is not shown to us.
        """
        most_bytes = self._hub.max_config_bytes
        try:
            return self._get(f"/{quote(model_id)}/resolve/{commit}/config.json", most_bytes)
        except _Refused as refused:
            if refused.status != 404:
                raise self._unknown(model_id, commit, refused) from None
            why = f"{model_id} has no config.json at revision {commit}; send `config` or `parameters` instead"
        except _TooLarge:
            why = (
                f"config.json of {model_id} at revision {commit} is larger than {most_bytes:,} bytes, "
                "the most that TONNAGE_HUB_MAX_CONFIG_BYTES allows; send what matters of it as `config`"
            )
        raise UnsupportedModel.at("/model/id", why)

    def _unknown(self, model_id: str, revision: str, refused: _Refused) -> InvalidInput:
        if refused.code == "RevisionNotFound":
            return UnknownName.at("/model/revision", f"{self._name} has no revision {revision!r} of {model_id}")
        if refused.status == 404:
            at = "" if revision == DEFAULT_REVISION else f" with revision {revision!r}"
            return UnknownName.at("/model/id", f"{self._name} has no model {model_id!r}{at}")
        way_out = "set TONNAGE_HUB_TOKEN to a token that may read it"
        if self._hub.token is not None:
            way_out = "the token in TONNAGE_HUB_TOKEN may not read it"
        why = f"does not show {model_id!r} ({refused.status}): it is unknown there, gated or private; {way_out}"
        return UnknownName.at("/model/id", f"{self._name} {why}")

    def _get(self, path: str, most_bytes: int) -> bytes:
        place = Place.of(self._hub.url + path)
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                self._hub.check(place)
                url = httpcore.URL(scheme=place.scheme, host=place.host, port=place.port, target=place.target)
                with self._pool.stream("GET", url, headers=self._headers(place)) as response:
                    if response.status not in _REDIRECTS:
                        return self._body(response, most_bytes)
                    place = self._next(place, response)
        except httpcore.TimeoutException as error:
            raise HubUnavailable(self._hub.too_slow, is_away=True) from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise HubUnavailable(f"{self._name} cannot be reached, or broke off", is_away=True) from error
        except ForbiddenGround as host:
            raise HubUnavailable(f"{self._name} leads to {host}, which lies in a more private network") from None
        raise HubUnavailable(f"{self._name} redirects more than {_MOST_REDIRECTS} times")

    def _headers(self, place: Place) -> list[tuple[bytes | str, bytes | str]]:
        headers: list[tuple[bytes | str, bytes | str]] = [
            ("Host", place.name),
            ("User-Agent", f"tonnage/{__version__}"),
            ("Accept-Encoding", "identity"),
        ]
        if self._hub.token is not None and place.is_beside(self._hub.home):
            headers.append(("Authorization", f"Bearer {self._hub.token}"))
        return headers

    def _body(self, response: httpcore.Response, most_bytes: int) -> bytes:
        """What was sent, and never inflated: a few bytes can be made to swell into gigabytes."""
        status, headers = response.status, _lowered(response)
        if status in _REFUSALS:
            raise _Refused(status, headers.get("x-error-code", ""))
        if status != 200:
            raise HubUnavailable(f"{self._name} answered {status}", is_away=status in _BUSY)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise HubUnavailable(f"{self._name} answers compressed, although it was asked not to")
        if int(headers.get("content-length", "0")) > most_bytes:
            raise _TooLarge
        body = bytearray()
        for chunk in response.iter_stream():
            body += chunk
            if len(body) > most_bytes:
                raise _TooLarge
        return bytes(body)

    def _next(self, place: Place, response: httpcore.Response) -> Place:
        try:
            return Place.of(urljoin(place.url, _lowered(response).get("location", "")))
        except ValueError:
            raise HubUnavailable(f"{self._name} redirects to what is no plain URL") from None


def _lowered(response: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
