"""The way to the database: URL, engine, transactions, and what a database error means to a caller."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy import exc as sqlalchemy_exc
from sqlalchemy.engine.interfaces import ExceptionContext
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import PoolProxiedConnection, QueuePool

from app.errors import Conflict, InvalidInput, TonnageError, Unavailable
from app.storage import UnusableDatabase

_logger = logging.getLogger(__name__)

_CONFLICTS = {"uq_tokens_name": "a token of this name is in use; revoke it first, or choose another name"}
_UNSTORABLE = "a text has a character that cannot be stored: NUL, or half of a surrogate pair"
_AWAY = "the database cannot be reached just now; send the same request again in a moment"
_BUSY = "the database is too busy just now; send the same request again in a moment"

_UNSTORABLE_STATES = frozenset({"22021", "22P05"})  # in text, and as an escape in JSON
_LOST_STATES = frozenset({"25006", "25P03"})  # a standby, or a session that the server has ended
_BUSY_STATES = frozenset({"40001", "40P01", "53300", "55P03", "57014"})
_OVERSIZED_CLASS = "54"  # a row too large for an index is no reason to send it again

_SHORTEST_CONNECT_SECONDS = 2  # libpq knows no shorter wait
_IDLE_TRANSACTION_SECONDS = 120  # ends the transaction of a process that froze, so that its locks do not stay
_CONNECTION_AGE_SECONDS = 1800  # so that connections spread again after a fail-over


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStatistics:
    """Connections of one engine: how many there may be, how many are in use, and how many are open but idle."""

    limit: int
    in_use: int
    idle: int


def parse_url(url: str) -> URL:
    """The URL for SQLAlchemy and psycopg. Raises UnusableDatabase for one that does not name a PostgreSQL database."""
    try:
        parsed = make_url(url.strip())
    except (sqlalchemy_exc.ArgumentError, ValueError):
        raise UnusableDatabase("the database URL cannot be read; write postgresql://user:password@host/name") from None
    if parsed.drivername not in {"postgres", "postgresql", "postgresql+psycopg"}:
        raise UnusableDatabase(f"only PostgreSQL is supported, not {parsed.drivername}; write postgresql://…")
    return parsed.set(drivername="postgresql+psycopg")


def make_engine(
    url: str,
    *,
    pool_size: int = 20,
    wait_seconds: float = 5,
    statement_seconds: float = 20,
    application_name: str = "tonnage",
) -> Engine:
    """An engine that opens at most `pool_size` connections. It connects to nothing yet.

    `wait_seconds` bounds the wait for a free connection and for the server to take a new one; the server itself stops a
    statement after `statement_seconds`, waits for locks included. 0 is no bound on statements. Errors of the database
    are raised as `transaction` says. Raises UnusableDatabase for a URL that does not name a PostgreSQL database.
    """
    parsed = parse_url(url)
    settings = {
        "timezone": "UTC",
        "statement_timeout": math.ceil(statement_seconds * 1000),
        "idle_in_transaction_session_timeout": _IDLE_TRANSACTION_SECONDS * 1000,
    }
    given = parsed.query.get("options", "")
    options = " ".join([*([given] if isinstance(given, str) else given), *(f"-c {k}={v}" for k, v in settings.items())])
    engine = create_engine(
        parsed,
        poolclass=_Pool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=wait_seconds,
        pool_pre_ping=True,
        pool_use_lifo=True,
        pool_recycle=_CONNECTION_AGE_SECONDS,
        hide_parameters=True,
        use_native_hstore=False,  # would ask the server about a type that nothing here uses
        json_serializer=_to_json,
        connect_args={
            "application_name": application_name,
            "connect_timeout": max(_SHORTEST_CONNECT_SECONDS, math.ceil(wait_seconds)),
            "options": options.strip(),
        },
    )
    event.listen(engine, "handle_error", _raise_domain_error)
    return engine


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """What `transaction` makes its sessions with."""
    return sessionmaker(engine, autoflush=False, expire_on_commit=False)


@contextmanager
def transaction(sessions: sessionmaker[Session]) -> Iterator[Session]:
    """One transaction: committed when the block ends, rolled back when it raises.

    The statement that fails raises what it means: Conflict for a rule that it breaks, InvalidInput for text that cannot
    be stored, Unavailable when the database is away or overloaded. So does the commit.
    """
    with sessions.begin() as session:
        yield session


def pool_statistics(engine: Engine) -> PoolStatistics:
    """The state of the pool of an engine made by `make_engine`."""
    pool = engine.pool
    if not isinstance(pool, QueuePool):
        raise TypeError(f"{type(pool).__name__} keeps no connections")
    return PoolStatistics(limit=pool.size(), in_use=pool.checkedout(), idle=pool.checkedin())


def domain_error(error: BaseException, *, is_disconnect: bool = False) -> TonnageError | None:
    """What an error of the driver means to a caller, or None for one that only a mistake of ours can cause."""
    if isinstance(error, UnicodeEncodeError):
        return InvalidInput(_UNSTORABLE)
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    if state in _UNSTORABLE_STATES or (not state and isinstance(error, psycopg.DataError)):
        return InvalidInput(_UNSTORABLE)
    if isinstance(error, psycopg.IntegrityError):
        sentence = _CONFLICTS.get(error.diag.constraint_name or "")
        return None if sentence is None else Conflict(sentence)
    if state in _BUSY_STATES:
        return Unavailable(_BUSY)
    lost = is_disconnect or state in _LOST_STATES or isinstance(error, psycopg.OperationalError)
    return Unavailable(_AWAY) if lost and not state.startswith(_OVERSIZED_CLASS) else None


class _Pool(QueuePool):
    def connect(self) -> PoolProxiedConnection:
        try:
            return super().connect()
        except sqlalchemy_exc.TimeoutError as error:
            raise Unavailable(_BUSY) from error


def _to_json(value: object) -> str:
    """JSON in plain UTF-8, so that what cannot be encoded is noticed here. NaN, which JSON does not have, raises."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _raise_domain_error(context: ExceptionContext) -> None:
    if context.is_pre_ping:  # the pool replaces that connection, and nobody notices
        return
    original = context.original_exception
    meant = domain_error(original, is_disconnect=context.is_disconnect)
    if meant is None:
        return
    if isinstance(meant, Unavailable):
        state = original.sqlstate if isinstance(original, psycopg.Error) else None
        _logger.warning("the database failed: %s", str(original).strip(), extra={"sqlstate": state})
    raise meant from original
