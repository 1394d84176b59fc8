"""A model that the catalogue does not have: its `config.json` from the cache, or from the hub and then into the cache.

What the hub said of a branch is good for `fresh_seconds`, a commit for ever. After that the hub is asked again, once
for all who want the same model; while it is away, what it said last goes on being the answer, with a warning. Nobody
holds a connection to the database meanwhile.
"""

import logging
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from sqlalchemy.orm import Session, sessionmaker

from app.api import json_body
from app.api.metrics import Metrics
from app.errors import InvalidInput, MalformedBody, TonnageError, UnknownName, UnsupportedModel
from app.hub import DEFAULT_REVISION, Hub, HubUnavailable, is_commit
from app.planning import architecture
from app.planning.architecture import Architecture
from app.storage import Json, db, hub_cache
from app.storage.hub_cache import CachedConfig, CachedRevision

KEPT_FOR = timedelta(days=90)

_MOST_VISITS = 8  # at once; others queue
_MOST_WAITING = 20  # half of the threads that requests run in: a hub that hangs must not stop all other work
_OUTCOMES = {HubUnavailable: "unavailable", UnknownName: "unknown", UnsupportedModel: "unusable"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model as the hub has it, or had it: `warnings` says so."""

    id: str
    sha: str
    host: str
    fetched_at: datetime
    config: Json
    warnings: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Where its config.json comes from, for people."""
        fetched = f"{self.fetched_at:%Y-%m-%dT%H:%M:%SZ}"
        return f"config.json of {self.id} at revision {self.sha}, fetched {fetched} from {self.host}"

    def architecture(self) -> Architecture:
        """Its exact shapes; their assumptions say where they are from. Raises UnsupportedModel, pointing at the id."""
        try:
            shapes = architecture.from_config(self.config, name=self.id)
        except InvalidInput as error:
            raise type(error).at("/model/id", f"{self.source}: {error.detail}") from None
        return replace(
            shapes, assumptions=(self.source, *shapes.assumptions), warnings=(*shapes.warnings, *self.warnings)
        )


class HubModels:
    """Looks models up in `hub`. One per process, so that a model is asked for once at a time."""

    def __init__(self, hub: Hub, sessions: sessionmaker[Session], metrics: Metrics, *, fresh_seconds: float) -> None:
        self._hub = hub
        self._sessions = sessions
        self._metrics = metrics
        self._fresh = timedelta(seconds=fresh_seconds)
        self._threads = ThreadPoolExecutor(_MOST_VISITS, thread_name_prefix="hub")
        self._lock = threading.Lock()
        self._visits: dict[tuple[str, str], Future[CachedConfig]] = {}
        self._waiting = 0
        self._away: tuple[float, str] | None = None  # until when the hub is taken to be away, and why

    def close(self) -> None:
        """Ask nothing more. Who still waits is answered with HubUnavailable."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def look_up(self, id: str, revision: str | None = None) -> HubModel:
        """The model `id` at a branch, tag or commit; by default at the branch `main`.

        Raises UnknownName or UnsupportedModel, pointing into the request, and HubUnavailable when the hub has no
        usable answer and none is kept.
        """
        revision = revision or DEFAULT_REVISION
        cached = self._cached(id, revision)
        if cached is not None and self._is_fresh(cached, revision):
            return self._answer("cache", cached.config)
        try:
            return self._answer("hub", self._ask(id, revision, has_copy=cached is not None))
        except HubUnavailable as unavailable:
            _log.warning("%s", unavailable.reason, extra={"model": id, "cause": repr(unavailable.__cause__)})
            if cached is None:
                raise
            return self._answer("stale cache", cached.config, _doubt(cached, revision, unavailable))

    def _answer(self, origin: str, found: CachedConfig, *warnings: str) -> HubModel:
        self._metrics.hub_lookups.labels(origin).inc()
        return HubModel(
            id=found.model_id,
            sha=found.sha,
            host=found.host,
            fetched_at=found.fetched_at,
            config=found.config,
            warnings=warnings,
        )

    def _cached(self, id: str, revision: str) -> CachedRevision | None:
        now = datetime.now(UTC)
        with db.transaction(self._sessions) as session:
            if not is_commit(revision):
                return hub_cache.at_revision(session, self._hub.url, id, revision, now=now)
            found = hub_cache.at_commit(session, id, revision, now=now)
        return None if found is None else CachedRevision(config=found, checked_at=now)

    def _is_fresh(self, cached: CachedRevision, revision: str) -> bool:
        return is_commit(revision) or datetime.now(UTC) - cached.checked_at < self._fresh

    def _ask(self, id: str, revision: str, *, has_copy: bool) -> CachedConfig:
        """What the hub says, asked together with all who want the same now.

        Who has a copy does not wait for a hub that has just kept somebody else waiting in vain.
        """
        away = self._away
        if has_copy and away is not None and time.monotonic() < away[0]:
            raise HubUnavailable(away[1])
        with self._lock:
            if self._waiting >= _MOST_WAITING:
                raise HubUnavailable(f"{self._waiting} requests are waiting for the model hub already")
            visit = self._visits.get((id, revision))
            if visit is None:
                visit = self._visits[id, revision] = self._threads.submit(self._visit, id, revision)
            self._waiting += 1
        try:
            return visit.result(self._hub.timeout_seconds)
        except (TimeoutError, CancelledError) as error:
            raise HubUnavailable(self._hub.too_slow) from error
        finally:
            with self._lock:
                self._waiting -= 1

    def _visit(self, id: str, revision: str) -> CachedConfig:
        outcome = "failed"
        try:
            found, outcome = self._fetch(id, revision)
        except TonnageError as error:
            outcome = next((word for kind, word in _OUTCOMES.items() if isinstance(error, kind)), outcome)
            if isinstance(error, HubUnavailable) and error.is_away:
                self._away = (time.monotonic() + self._hub.timeout_seconds, error.reason)
            raise
        else:
            self._away = None
            return found
        finally:
            self._metrics.hub_requests.labels(outcome).inc()
            with self._lock:
                del self._visits[id, revision]

    def _fetch(self, id: str, revision: str) -> tuple[CachedConfig, str]:
        cached = self._cached(id, revision)
        if cached is not None and self._is_fresh(cached, revision):  # somebody was quicker
            return cached.config, "spared"
        with self._hub.visit() as visit:
            sha = visit.commit(id, revision)
            known = self._cached(id, sha)
            text = b"" if known is not None else visit.config(id, sha)
        now = datetime.now(UTC)
        if known is not None:
            found = known.config
        else:
            config = _parsed(text, id, sha)
            found = CachedConfig(model_id=id, sha=sha, config=config, host=self._hub.host, fetched_at=now)
        with db.transaction(self._sessions) as session:
            hub_cache.store(session, found, hub=self._hub.url, revision=revision, checked_at=now)
        return found, "found" if known is None else "unchanged"


def _parsed(text: bytes, id: str, sha: str) -> Json:
    """The object in a config.json, read as strictly as a request. Raises UnsupportedModel."""
    try:
        config = json_body.parse(text)
        why = "holds no JSON object"
    except MalformedBody as error:
        config, why = None, f"is no usable JSON: {error.detail}"
    if not isinstance(config, dict):
        what = f"config.json of {id} at revision {sha} {why}"
        raise UnsupportedModel.at("/model/id", f"{what}; send `config` or `parameters` instead")
    return config


def _doubt(cached: CachedRevision, revision: str, unavailable: HubUnavailable) -> str:
    age = _age((datetime.now(UTC) - cached.checked_at).total_seconds())
    return f"{unavailable.reason}: {revision!r} was at revision {cached.config.sha} {age} ago and may have moved since"


def _age(seconds: float) -> str:
    """A time span for people: its largest whole unit."""
    for unit, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{max(seconds, 0):.0f} seconds"
