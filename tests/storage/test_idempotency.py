import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.errors import IdempotencyMismatch, Unavailable
from app.storage import db, idempotency, plans
from app.storage.idempotency import StoredAnswer

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ONE, OTHER = b"1" * 32, b"2" * 32
ANSWER = StoredAnswer(status=201, headers={"ETag": '"1"', "Location": "/v1/plans/x"}, body=b'{"id": "\xc3\xa4"}')


def claim(session: Session, key: str = "k", request: bytes = ONE, scope: str = "ops create") -> StoredAnswer | None:
    return idempotency.claim(session, scope=scope, key=key, request_sha256=request)


def store(session: Session, key: str = "k", now: datetime = NOW, answer: StoredAnswer = ANSWER) -> None:
    idempotency.store(session, scope="ops create", key=key, request_sha256=ONE, answer=answer, now=now)


def test_the_first_answer_is_given_again(session: Session) -> None:
    assert claim(session) is None
    store(session)
    assert claim(session) == ANSWER


def test_another_request_under_the_same_key_is_refused(session: Session) -> None:
    assert claim(session) is None
    store(session)
    with pytest.raises(IdempotencyMismatch, match="another request"):
        claim(session, request=OTHER)


def test_keys_of_different_callers_or_operations_have_nothing_to_do_with_each_other(session: Session) -> None:
    store(session)
    assert claim(session, scope="somebody create") is None
    assert claim(session, key="K") is None
    assert claim(session, scope="ops", key="create k") is None


def test_old_answers_are_dropped(session: Session) -> None:
    store(session, "old", NOW - timedelta(days=1, seconds=1))
    store(session, "new", NOW - timedelta(days=1) + timedelta(seconds=1))
    assert idempotency.drop_old(session, before=NOW - timedelta(days=1)) == 1
    assert claim(session, "old") is None
    assert claim(session, "new") == ANSWER


@pytest.fixture
def own_engine(fresh_database: str) -> Iterator[Engine]:
    engine = db.make_engine(fresh_database, statement_seconds=10)
    yield engine
    engine.dispose()


def test_requests_sent_at_once_create_once_and_get_one_answer(own_engine: Engine) -> None:
    sessions = db.make_sessions(own_engine)
    together = threading.Barrier(8)
    content = plans.PlanContent(request={}, resolved={}, estimate={}, engine_version="0")

    def request(_: int) -> StoredAnswer:
        together.wait(30)
        with db.transaction(sessions) as session:
            if (stored := claim(session)) is not None:
                return stored
            plan = plans.create(
                session, name="n", description=None, labels={}, content=content, created_by="ops", now=NOW
            )
            answer = StoredAnswer(status=201, headers={}, body=str(plan.id).encode())
            store(session, answer=answer)
            return answer

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(request, range(8)))
    with db.transaction(sessions) as session:
        [plan] = plans.list_plans(session, limit=10).items
    assert {answer.body for answer in answers} == {str(plan.id).encode()}


def test_when_the_first_request_fails_the_second_does_the_work(own_engine: Engine) -> None:
    sessions = db.make_sessions(own_engine)
    claimed, found = threading.Event(), []

    def second() -> None:
        claimed.wait()
        with db.transaction(sessions) as session:
            found.append(claim(session))

    waiting = threading.Thread(target=second)
    waiting.start()
    with sessions() as session:
        assert claim(session) is None
        store(session)
        claimed.set()
        waiting.join(0.2)
        assert waiting.is_alive()
        session.rollback()
    waiting.join(10)
    assert found == [None]


def test_the_wait_for_the_first_request_has_an_end(fresh_database: str) -> None:
    engine = db.make_engine(fresh_database, statement_seconds=0.2)
    sessions = db.make_sessions(engine)
    with db.transaction(sessions) as first:
        assert claim(first) is None
        with pytest.raises(Unavailable, match="busy"), db.transaction(sessions) as second:
            claim(second)
        assert claim(first) is None
    engine.dispose()
