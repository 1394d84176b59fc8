from datetime import UTC, datetime, timedelta
from typing import Any

from hub.fake_hub import CONFIG, FIRST, MODEL, SECOND
from sqlalchemy.orm import Session

from app.storage import hub_cache
from app.storage.hub_cache import CachedConfig, CachedRevision

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
HUB = "https://hub.example.org"


def config(sha: str = FIRST, **changes: Any) -> CachedConfig:
    given = {"model_id": MODEL, "sha": sha, "config": CONFIG, "host": "hub.example.org", "fetched_at": NOW}
    return CachedConfig(**{**given, **changes})


def store(session: Session, sha: str = FIRST, *, revision: str = "main", at: datetime = NOW) -> None:
    hub_cache.store(session, config(sha), hub=HUB, revision=revision, checked_at=at)


def current(session: Session, revision: str = "main", *, hub: str = HUB, at: datetime = NOW) -> CachedRevision | None:
    return hub_cache.at_revision(session, hub, MODEL, revision, now=at)


def test_what_was_stored_comes_back(session: Session) -> None:
    assert current(session) is None
    assert hub_cache.at_commit(session, MODEL, FIRST, now=NOW) is None
    store(session)
    assert current(session) == CachedRevision(config=config(), checked_at=NOW)
    assert hub_cache.at_commit(session, MODEL, FIRST, now=NOW) == config()
    assert current(session, "other") is None
    assert current(session, hub="https://other.example.org") is None
    assert hub_cache.at_commit(session, "acme/other", FIRST, now=NOW) is None


def test_a_branch_moves_and_the_old_commit_stays(session: Session) -> None:
    store(session)
    store(session, SECOND, at=NOW + timedelta(hours=1))
    moved = current(session)
    assert moved is not None
    assert (moved.config.sha, moved.checked_at) == (SECOND, NOW + timedelta(hours=1))
    assert hub_cache.at_commit(session, MODEL, FIRST, now=NOW) == config()


def test_an_older_word_does_not_replace_a_newer_one(session: Session) -> None:
    store(session, SECOND)
    store(session, FIRST, at=NOW - timedelta(seconds=1))
    assert current(session) == CachedRevision(config=config(SECOND), checked_at=NOW)


def test_a_commit_s_file_is_never_replaced(session: Session) -> None:
    store(session)
    hub_cache.store(session, config(config={}), hub=HUB, revision="tag", checked_at=NOW)
    assert hub_cache.at_commit(session, MODEL, FIRST, now=NOW) == config()


def test_what_is_in_use_is_kept_and_the_rest_is_dropped(session: Session) -> None:
    store(session)
    store(session, SECOND, revision="tag")
    later = NOW + timedelta(days=10)
    assert current(session, at=later) is not None
    assert hub_cache.drop_unused(session, before=NOW) == 0
    assert hub_cache.drop_unused(session, before=NOW + timedelta(days=5)) == 1
    assert current(session) is not None
    assert current(session, "tag") is None
    store(session, SECOND, revision="main", at=later)
    assert current(session, "tag") is None, "the word about it went with it"
