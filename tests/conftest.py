"""Databases for tests: one real server for the whole run, migrated once by the real migrations.

`session` is for most tests: whatever they do is rolled back. `fresh_database` is for those that need real commits or
several connections: an empty, migrated database of their own, copied from the migrated one in a few milliseconds.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from live_service import LiveService, add_test_routes, running
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from app.main import create_app
from app.settings import Settings
from app.storage import db
from app.storage.embedded import EmbeddedPostgres
from app.storage.migration import migrate


class Server:
    """A running PostgreSQL and the databases that tests get on it."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        administration = self._url.set(database="postgres")
        self._engine = create_engine(administration, poolclass=NullPool, isolation_level="AUTOCOMMIT")

    def url(self, database: str) -> str:
        return self._url.set(database=database).render_as_string(hide_password=False)

    def create(self, *, template: str = "template1") -> str:
        """A new database, a copy of `template`. Nobody may be connected to that meanwhile."""
        name = f"test_{uuid4().hex}"
        self._run(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop(self, database: str) -> None:
        self._run(f'DROP DATABASE "{database}" WITH (FORCE)')

    def _run(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(statement))


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    data_dir = Path(tempfile.mkdtemp(prefix="tonnage-"))  # short, so that the socket lies in it
    try:
        with EmbeddedPostgres(data_dir, options={"fsync": "off", "max_connections": "200"}) as postgres:
            yield Server(postgres.url)
    finally:
        shutil.rmtree(data_dir)


@pytest.fixture(scope="session")
def migrated(server: Server) -> str:
    """The name of a migrated database that nobody connects to: the template of all others."""
    name = server.create()
    migrate(server.url(name))
    return name


@pytest.fixture(scope="session")
def engine(server: Server, migrated: str) -> Iterator[Engine]:
    """An engine for a migrated database in which no test commits."""
    engine = db.make_engine(server.url(server.create(template=migrated)))
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection whose transaction is rolled back when the test ends."""
    with engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


@pytest.fixture
def session(connection: Connection) -> Iterator[Session]:
    """A session that may commit: that ends a savepoint, and everything is rolled back when the test ends."""
    with Session(connection, join_transaction_mode="create_savepoint", autoflush=False) as session:
        yield session


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    """The URL of a database without any table, of the test's own."""
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture
def fresh_database(server: Server, migrated: str) -> Iterator[str]:
    """The URL of a migrated, empty database of the test's own."""
    name = server.create(template=migrated)
    yield server.url(name)
    server.drop(name)


@pytest.fixture(scope="session")
def live_for_all(server: Server, migrated: str) -> Iterator[LiveService]:
    """One service for the whole run; tests ask for `live`, which empties it first."""
    url = server.url(server.create(template=migrated))
    settings = Settings.from_environment({}, database_url=url, max_body_bytes=1_000_000)
    app = create_app(settings)
    add_test_routes(app)
    with running(app, settings) as service:
        yield service


@pytest.fixture
def live(live_for_all: LiveService) -> LiveService:
    """A real service on a real port, with nothing in its database: so it is in local mode."""
    live_for_all.empty()
    return live_for_all


@pytest.fixture
def client(live: LiveService) -> Iterator[httpx.Client]:
    """Whoever is on this machine before the first token."""
    with live.client() as client:
        yield client
