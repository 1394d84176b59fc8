"""The schema's version: what the database has, what this program wants, and the way from one to the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, func, select, text
from sqlalchemy import exc as sqlalchemy_exc
from sqlalchemy.pool import NullPool

import app
from app.storage import UnusableDatabase
from app.storage.db import parse_url

OLDEST_VERSION = 15
"""Oldest major version of PostgreSQL that is supported."""

_LOCK_NUMBER = 0x746F6E6E616765  # the advisory lock that migrations take: "tonnage" in ASCII
_CONNECT_SECONDS = 10
_OF_THE_SERVER = (psycopg.OperationalError, psycopg.errors.InsufficientPrivilege)  # and no mistake in a migration


def migrate(url: str, *, lock_wait_seconds: float = 60) -> None:
    """Bring the schema up to this version, all or nothing; does nothing when it is there already.

    May run in several processes at once: one migrates, the others wait for it. Raises UnusableDatabase when the
    database cannot be reached, is older than PostgreSQL 15, has a schema newer than this version knows, or a migration
    elsewhere takes longer than `lock_wait_seconds`.
    """
    with locked_connection(url, lock_wait_seconds=lock_wait_seconds) as connection:
        present = MigrationContext.configure(connection).get_current_heads()
        known = {script.revision for script in scripts().walk_revisions()}
        if newer := [revision for revision in present if revision not in known]:
            what = f"the database has schema {', '.join(newer)}, which this version does not know"
            raise UnusableDatabase(f"{what}; run the newer version that made it")
        command.upgrade(alembic_config(connection), "head")


def schema_is_current(engine: Engine) -> bool:
    """Whether the database has exactly the schema of this version. Raises Unavailable when it cannot be asked."""
    with engine.connect() as connection:
        present = MigrationContext.configure(connection).get_current_heads()
    return frozenset(present) == _newest()


@contextmanager
def locked_connection(url: str, *, lock_wait_seconds: float = 60) -> Iterator[Connection]:
    """A connection in a transaction beside which no other migration of this database runs. Raises as `migrate` does."""
    parsed = parse_url(url)
    connect_args = {"connect_timeout": _CONNECT_SECONDS, "application_name": "tonnage-migrate"}
    engine = create_engine(parsed, poolclass=NullPool, connect_args=connect_args)
    try:
        with engine.begin() as connection:
            _check_version(connection)
            _take_lock(connection, lock_wait_seconds)
            yield connection
    except sqlalchemy_exc.DBAPIError as error:
        if not isinstance(error.orig, _OF_THE_SERVER):
            raise
        where = parsed.set(password=None).difference_update_query(["password"]).render_as_string()
        raise UnusableDatabase(f"the database at {where} cannot be used: {_first_line(error.orig)}") from error
    finally:
        engine.dispose()


def alembic_config(connection: Connection) -> Config:
    """How Alembic's commands work on `connection`, inside its transaction."""
    config = Config()
    config.set_main_option("script_location", str(_script_location()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def scripts() -> ScriptDirectory:
    """The migrations of this version."""
    return ScriptDirectory(str(_script_location()))


@cache
def _newest() -> frozenset[str]:
    return frozenset(scripts().get_heads())


def _script_location() -> Path:
    package = Path(app.__file__).parent
    installed = package / "migrations"  # where the wheel has them; a checkout has them beside the package
    return installed if installed.is_dir() else package.parent / "alembic"


def _check_version(connection: Connection) -> None:
    major = int(connection.execute(select(func.current_setting("server_version_num"))).scalar_one()) // 10_000
    if major < OLDEST_VERSION:
        raise UnusableDatabase(f"the database is PostgreSQL {major}; version {OLDEST_VERSION} or newer is needed")


def _take_lock(connection: Connection, wait_seconds: float) -> None:
    connection.execute(text("SET LOCAL statement_timeout = 0"))  # a limit meant for requests, if the role has one
    connection.execute(text(f"SET LOCAL lock_timeout = {max(1, round(wait_seconds * 1000))}"))
    try:
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK_NUMBER)))
    except sqlalchemy_exc.OperationalError as error:
        if isinstance(error.orig, psycopg.errors.LockNotAvailable):
            raise UnusableDatabase(
                f"another migration of this database has been running for {wait_seconds:g} s; "
                "wait for it to end and start again"
            ) from error
        raise


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
