import re
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.errors import Conflict, NotFound
from app.storage import db, tables, tokens

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def make(session: Session, name: str = "ops", **changes: object) -> tuple[str, tokens.Token]:
    wanted = {"name": name, "role": "planner", "expires_at": None, "now": NOW, **changes}
    return tokens.create(session, **wanted)  # type: ignore[arg-type]  # a test says what it changes


def test_a_secret_finds_its_token_and_nothing_else_does(session: Session) -> None:
    secret, token = make(session)
    make(session, "other")
    assert tokens.find(session, secret, now=NOW) == token
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), token.prefix, "tng_planner_", "\0", "\ud800"):
        assert tokens.find(session, wrong, now=NOW) is None


def test_a_secret_says_its_kind_and_has_256_random_bits(session: Session) -> None:
    for role in tokens.ROLES:
        secret, token = make(session, role, role=role)
        assert re.fullmatch(rf"tng_{role}_[A-Za-z0-9_-]{{43}}", secret)
        assert secret.startswith(token.prefix)
        assert len(secret) - len(token.prefix) >= 39
    assert len({make(session, f"t{n}")[0] for n in range(20)}) == 20


def test_the_database_never_sees_a_secret(session: Session) -> None:
    secret, _ = make(session)
    [row] = session.execute(select(text("tokens::text")).select_from(tables.tokens)).all()
    assert secret[len("tng_planner_") + 4 :] not in row[0]
    assert secret.encode().hex() not in row[0]


def test_an_expired_or_revoked_token_is_not_found(session: Session) -> None:
    expiring, _ = make(session, "expiring", expires_at=NOW + MINUTE)
    revoked, token = make(session, "revoked")
    assert tokens.find(session, expiring, now=NOW + MINUTE - timedelta(microseconds=1)) is not None
    assert tokens.find(session, expiring, now=NOW + MINUTE) is None
    assert tokens.revoke(session, "revoked", NOW).id == token.id
    assert tokens.find(session, revoked, now=NOW) is None


def test_a_token_is_revoked_by_id_or_name_and_only_once(session: Session) -> None:
    _, token = make(session, "by id")
    make(session, str(token.id))  # a name that looks like the other's id
    assert tokens.revoke(session, str(token.id), NOW).name == "by id"
    assert tokens.revoke(session, str(token.id), NOW).name == str(token.id)
    with pytest.raises(NotFound, match="tonnage token list"):
        tokens.revoke(session, str(token.id), NOW)


def test_a_name_is_taken_until_it_is_revoked(session: Session) -> None:
    make(session)
    with pytest.raises(Conflict, match="revoke it first"), session.begin_nested():
        make(session)
    tokens.revoke(session, "ops", NOW)
    make(session)
    assert [token.revoked_at for token in tokens.list_tokens(session)].count(None) == 1


def test_the_list_has_every_token_oldest_first(session: Session) -> None:
    _, second = make(session, "second", now=NOW + MINUTE)
    _, first = make(session, "first", node="gpu-01", role="agent", expires_at=NOW)
    assert tokens.list_tokens(session) == (first, second)


def test_last_use_is_noted_at_most_once_a_minute(session: Session) -> None:
    _, token = make(session)
    noted = []
    for seconds in (0, 30, 59, 60, 90, 120):
        tokens.touch(session, token.id, NOW + timedelta(seconds=seconds))
        noted.append(tokens.list_tokens(session)[0].last_used_at)
    assert noted == [NOW, NOW, NOW, NOW + MINUTE, NOW + MINUTE, NOW + 2 * MINUTE]


def test_noting_a_use_never_waits_for_a_long_request_that_notes_the_same(fresh_database: str) -> None:
    engine = db.make_engine(fresh_database)
    sessions = db.make_sessions(engine)
    with db.transaction(sessions) as session:
        _, token = make(session)

    def touch() -> None:
        with db.transaction(sessions) as other:
            tokens.touch(other, token.id, NOW)

    with db.transaction(sessions) as session:
        tokens.touch(session, token.id, NOW)
        second = threading.Thread(target=touch)
        second.start()
        second.join(10)
        assert not second.is_alive()
    engine.dispose()


def test_whether_any_token_is_usable(session: Session) -> None:
    assert not tokens.any_usable(session, NOW)
    make(session, "short", expires_at=NOW + MINUTE)
    assert tokens.any_usable(session, NOW)
    assert not tokens.any_usable(session, NOW + MINUTE)
    make(session, "long")
    assert tokens.any_usable(session, NOW + MINUTE)
    tokens.revoke(session, "long", NOW)
    assert not tokens.any_usable(session, NOW + MINUTE)
