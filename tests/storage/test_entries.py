from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound, StaleRevision
from app.storage import db, entries
from app.storage.entries import Entry, Kind

NOW = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def create(session: Session, key: str = "ours", kind: Kind = "gpu", now: datetime = NOW, **content: object) -> Entry:
    return entries.create(session, kind=kind, key=key, content={"gpu": "b200", **content}, author="alice", now=now)


def replace(session: Session, expected_revision: int) -> Entry:
    return entries.replace(
        session, "gpu", "ours", expected_revision=expected_revision, content={"n": 2}, author="bob", now=LATER
    )


def test_an_entry_comes_back_as_it_was_stored_and_as_it_was_changed(session: Session) -> None:
    entry = create(session, name="é\u2028")
    assert entries.get(session, "gpu", "ours") == entry
    changed = replace(session, 1)
    assert entries.get(session, "gpu", "ours") == changed
    assert (changed.revision, changed.content) == (2, {"n": 2})
    assert (changed.created_at, changed.created_by) == (NOW, "alice")
    assert (changed.updated_at, changed.updated_by) == (LATER, "bob")


def test_a_key_is_taken_within_its_kind_only(session: Session) -> None:
    create(session)
    create(session, kind="instance")
    with pytest.raises(Conflict, match="PUT /v1/gpus/ours changes it"):
        create(session)
    assert [entry.kind for entry in entries.list_entries(session, "instance")] == ["instance"]


def test_entries_are_listed_by_key_and_found_by_what_they_name(session: Session) -> None:
    for key, gpu in (("b", "b200"), ("a", "l4"), ("c", "b200")):
        create(session, key, "node-shape", gpu=gpu)
    assert [entry.key for entry in entries.list_entries(session, "node-shape")] == ["a", "b", "c"]
    assert entries.naming(session, "node-shape", "gpu", "b200") == ("b", "c")
    entries.delete(session, "node-shape", "b", expected_revision=1, now=LATER)
    assert entries.naming(session, "node-shape", "gpu", "b200") == ("c",)


def test_what_is_deleted_is_gone_and_its_revisions_never_come_again(session: Session) -> None:
    create(session)
    replace(session, 1)
    entries.delete(session, "gpu", "ours", expected_revision=2, now=LATER)
    assert entries.list_entries(session, "gpu") == ()
    for gone in (lambda: entries.get(session, "gpu", "ours"), lambda: replace(session, 2)):
        with pytest.raises(NotFound, match=r"GET /v1/gpus\?origin=team"):
            gone()
    again = create(session, now=LATER)
    assert (again.revision, again.created_at) == (3, LATER)
    with pytest.raises(StaleRevision):
        replace(session, 2)


def test_of_two_changes_at_once_one_is_stale(fresh_database: str) -> None:
    engine = db.make_engine(fresh_database)
    sessions = db.make_sessions(engine)
    with db.transaction(sessions) as session:
        create(session)

    def change(_: int) -> bool:
        try:
            with db.transaction(sessions) as session:
                replace(session, 1)
        except StaleRevision:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(change, range(8))) == 1
    engine.dispose()


def test_of_two_new_entries_of_one_key_one_is_refused(fresh_database: str) -> None:
    engine = db.make_engine(fresh_database)
    sessions = db.make_sessions(engine)

    def add(_: int) -> bool:
        try:
            with db.transaction(sessions) as session:
                create(session)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(8))) == 1
    engine.dispose()
