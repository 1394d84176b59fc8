"""Errors of the database in the words of the domain, and what the engine promises."""

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from app.errors import Unavailable
from app.storage import UnusableDatabase, db
from app.storage.migration import migrate, schema_is_current


@pytest.fixture
def small(fresh_database: str) -> Iterator[Engine]:
    engine = db.make_engine(fresh_database, pool_size=2, wait_seconds=0.2, statement_seconds=0.3)
    yield engine
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u:p%40@h:5433/d?sslmode=require",
        "postgresql://u:p%40@h:5433/d?sslmode=require",
        " postgresql+psycopg://u:p%40@h:5433/d?sslmode=require\n",
    ],
)
def test_every_spelling_of_a_postgres_url_is_understood(url: str) -> None:
    parsed = db.parse_url(url)
    assert parsed.drivername == "postgresql+psycopg"
    assert (parsed.username, parsed.password, parsed.host, parsed.port, parsed.database) == ("u", "p@", "h", 5433, "d")
    assert parsed.query == {"sslmode": "require"}


@pytest.mark.parametrize(
    "url", ["sqlite://", "mysql://secret@h/d", "postgresql+asyncpg://h/d", "", "secret", "postgresql://h:secret/d"]
)
def test_anything_else_is_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(UnusableDatabase, match="postgresql://") as refused:
        db.make_engine(url)
    assert "secret" not in str(refused.value)


def test_a_session_lives_in_utc_says_who_it_is_and_keeps_options_of_the_url(fresh_database: str) -> None:
    url = f"{fresh_database}&options=-c%20work_mem%3D5MB"
    engine = db.make_engine(url, application_name="me", statement_seconds=7.5)
    with engine.connect() as connection:
        names = ("TimeZone", "application_name", "statement_timeout", "work_mem")
        shown = [connection.scalar(text(f"SHOW {name}")) for name in names]
    assert shown == ["UTC", "me", "7500ms", "5MB"]
    engine.dispose()


def test_the_pool_tells_its_state(small: Engine) -> None:
    assert db.pool_statistics(small) == db.PoolStatistics(limit=2, in_use=0, idle=0)
    with small.connect():
        with small.connect():
            assert db.pool_statistics(small) == db.PoolStatistics(limit=2, in_use=2, idle=0)
        assert db.pool_statistics(small) == db.PoolStatistics(limit=2, in_use=1, idle=1)


def test_when_every_connection_is_taken_the_wait_has_an_end(small: Engine) -> None:
    sessions = db.make_sessions(small)
    with small.connect(), small.connect():
        with pytest.raises(Unavailable, match="busy"):
            schema_is_current(small)
        began = time.monotonic()
        with pytest.raises(Unavailable, match="busy"), db.transaction(sessions) as session:
            session.execute(text("SELECT 1"))
        assert time.monotonic() - began < 2


def test_a_statement_that_takes_too_long_is_stopped(small: Engine) -> None:
    with pytest.raises(Unavailable, match="busy"), db.transaction(db.make_sessions(small)) as session:
        session.execute(text("SELECT pg_sleep(30)"))


def test_a_session_cut_off_is_unavailable_and_the_next_one_works(small: Engine) -> None:
    sessions = db.make_sessions(small)
    with sessions() as session:
        cut_off(session, small)
        with pytest.raises(Unavailable, match="cannot be reached"):
            session.execute(text("SELECT 1"))
    for _ in range(3):
        with db.transaction(sessions) as session:
            assert session.scalar(text("SELECT 1")) == 1


def test_idle_connections_that_were_cut_off_are_replaced_unnoticed(small: Engine) -> None:
    sessions = db.make_sessions(small)
    with db.transaction(sessions) as session:
        pid = session.scalar(text("SELECT pg_backend_pid()"))
    admin = db.make_engine(small.url.render_as_string(hide_password=False))
    with admin.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    admin.dispose()
    with db.transaction(sessions) as session:
        assert session.scalar(text("SELECT 1")) == 1


def test_a_commit_that_fails_is_not_taken_for_one_that_worked(small: Engine) -> None:
    with pytest.raises(Unavailable), db.transaction(db.make_sessions(small)) as session:
        cut_off(session, small)


def cut_off(session: Session, engine: Engine) -> None:
    pid = session.scalar(text("SELECT pg_backend_pid()"))
    with engine.connect() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://127.0.0.1:1/nowhere",
        "postgresql:///d?host=/nonexistent",
        "postgresql://u:secret@127.0.0.1:1/d?password=secret",
    ],
)
def test_a_database_that_is_not_there(url: str) -> None:
    engine = db.make_engine(url)
    with pytest.raises(Unavailable) as away, db.transaction(db.make_sessions(engine)) as session:
        session.execute(text("SELECT 1"))
    with pytest.raises(UnusableDatabase) as unusable:
        migrate(url)
    assert "secret" not in f"{away.value.detail} {unusable.value}"
    assert "\n" not in str(unusable.value)
    engine.dispose()


def test_two_transactions_that_wait_for_each_other_do_not_wait_for_ever(fresh_database: str) -> None:
    engine = db.make_engine(fresh_database)
    sessions = db.make_sessions(engine)
    both, ends = threading.Barrier(2), []

    def lock(first: int, second: int) -> None:
        try:
            with db.transaction(sessions) as session:
                session.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": first})
                both.wait(10)
                session.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": second})
        except Unavailable as error:
            ends.append(error.detail)

    threads = [threading.Thread(target=lock, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(ends) == 1
    assert "busy" in ends[0]
    engine.dispose()


def test_mistakes_of_our_own_stay_what_they_are(session: Session) -> None:
    with pytest.raises(DBAPIError), session.begin_nested():
        session.execute(text("SELECT no_such_column"))
    insert = "INSERT INTO plan_revisions SELECT gen_random_uuid(), 1, '{}', '{}', '{}', '', now(), ''"
    with pytest.raises(IntegrityError), session.begin_nested():
        session.execute(text(insert))


def test_what_is_too_large_for_an_index_is_not_worth_sending_again() -> None:
    assert db.domain_error(psycopg.errors.ProgramLimitExceeded()) is None
    assert isinstance(db.domain_error(psycopg.errors.DiskFull()), Unavailable)
    assert isinstance(db.domain_error(psycopg.errors.ReadOnlySqlTransaction()), Unavailable)


def test_errors_name_no_values(session: Session) -> None:
    with pytest.raises(DBAPIError) as failed, session.begin_nested():
        session.execute(text("SELECT no_such_column WHERE :value = ''"), {"value": "s3cret"})
    assert "s3cret" not in str(failed.value)
