"""The migrations and the schema in the code say the same, in both directions, and from any number of processes."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import alembic
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.pool import NullPool

from app.storage import UnusableDatabase, db
from app.storage.embedded.programs import program
from app.storage.migration import alembic_config, locked_connection, migrate, schema_is_current, scripts
from app.storage.tables import metadata

ROOT = Path(__file__).parents[2]
REVISIONS = [script.revision for script in reversed(list(scripts().walk_revisions()))]


def tables(url: str) -> set[str]:
    engine = create_engine(url, poolclass=NullPool)
    return set(inspect(engine).get_table_names())


def test_autogenerate_finds_nothing_to_do(fresh_database: str) -> None:
    with locked_connection(fresh_database) as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []


def test_migrating_makes_what_is_written_down_to_the_last_clause(fresh_database: str, empty_database: str) -> None:
    """Autogenerate is blind to some clauses, such as which rows a partial index covers; the database's text is not."""
    with locked_connection(fresh_database) as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    with locked_connection(empty_database) as connection:
        metadata.create_all(connection)
    migrated, written = (sorted(line.rstrip(",") for line in dump(url)) for url in (fresh_database, empty_database))
    assert migrated == written


def test_every_migration_goes_down_and_up_again(empty_database: str) -> None:
    for revision in REVISIONS:
        with locked_connection(empty_database) as connection:
            command.upgrade(alembic_config(connection), revision)
        before = dump(empty_database)
        with locked_connection(empty_database) as connection:
            command.downgrade(alembic_config(connection), "-1")
            command.upgrade(alembic_config(connection), revision)
        assert dump(empty_database) == before
    with locked_connection(empty_database) as connection:
        command.downgrade(alembic_config(connection), "base")
    assert tables(empty_database) == {"alembic_version"}


def dump(url: str) -> list[str]:
    """The whole schema as text: tables, constraints, indexes and their storage."""
    address = make_url(url)
    where = ["-h", str(address.query["host"]), "-p", str(address.query["port"]), "-U", str(address.username)]
    command = [program("pg_dump"), "--schema-only", *where, str(address.database)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line for line in said.splitlines() if not line.startswith("\\")]  # commands with a key of each run


def test_migrating_twice_changes_nothing(empty_database: str) -> None:
    migrate(empty_database)
    migrate(empty_database)
    assert tables(empty_database) == {*metadata.tables, "alembic_version"}


def test_threads_that_migrate_at_once_all_succeed(empty_database: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(migrate, empty_database) for _ in range(6)]:
            done.result(timeout=60)
    engine = db.make_engine(empty_database)
    assert schema_is_current(engine)
    engine.dispose()


def test_processes_that_migrate_at_once_all_succeed(empty_database: str) -> None:
    workers = [multiprocessing.get_context("spawn").Process(target=migrate, args=[empty_database]) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert tables(empty_database) == {*metadata.tables, "alembic_version"}


def test_a_failed_migration_leaves_nothing_behind(empty_database: str) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_after_migrating(empty_database)
    assert tables(empty_database) == set()


def fail_after_migrating(url: str) -> None:
    with locked_connection(url) as connection:
        command.upgrade(alembic_config(connection), "head")
        raise ZeroDivisionError


def test_waiting_for_another_migration_ends_with_a_sentence(empty_database: str) -> None:
    with locked_connection(empty_database), pytest.raises(UnusableDatabase, match="another migration"):
        migrate(empty_database, lock_wait_seconds=0.1)
    migrate(empty_database)


def test_a_role_that_may_not_make_tables_is_told_so(empty_database: str) -> None:
    guest = make_url(empty_database).set(username="guest")
    with locked_connection(empty_database) as connection:
        connection.execute(text("DROP ROLE IF EXISTS guest"))
        connection.execute(text("CREATE ROLE guest LOGIN"))
    with pytest.raises(UnusableDatabase, match="permission denied for schema public"):
        migrate(guest.render_as_string(hide_password=False))


def test_a_limit_on_requests_is_none_on_waiting_for_a_migration(empty_database: str) -> None:
    limited = make_url(empty_database).update_query_dict({"options": "-c statement_timeout=50"})
    waiting = threading.Thread(target=migrate, args=[limited.render_as_string(hide_password=False)])
    with locked_connection(empty_database):
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(20)
    assert "plans" in tables(empty_database)


def test_a_database_newer_than_the_program_is_refused_and_left_alone(fresh_database: str) -> None:
    with locked_connection(fresh_database) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UnusableDatabase, match="schema 9999"):
        migrate(fresh_database)
    engine = db.make_engine(fresh_database)
    assert not schema_is_current(engine)
    engine.dispose()


def test_a_database_without_schema_is_not_current(empty_database: str) -> None:
    engine = db.make_engine(empty_database)
    assert not schema_is_current(engine)
    migrate(empty_database)
    assert schema_is_current(engine)
    engine.dispose()


def test_the_alembic_command_works_by_itself(empty_database: str) -> None:
    def run(*arguments: str, url: str | None = empty_database) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.defpath} | ({} if url is None else {"TONNAGE_DATABASE_URL": url})
        program = [sys.executable, "-m", "alembic", *arguments]
        return subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    assert run("upgrade", "head").returncode == 0
    checked = run("check")
    assert (checked.returncode, "No new upgrade operations" in checked.stdout) == (0, True), checked.stdout
    assert run("downgrade", "base").returncode == 0
    assert "CREATE TABLE plans" in run("upgrade", "head", "--sql", url=None).stdout
    assert "set TONNAGE_DATABASE_URL" in run("upgrade", "head", url=None).stderr


def test_the_migrations_folder_hides_no_installed_package() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()
    assert alembic.__file__ is not None
    assert not Path(alembic.__file__).is_relative_to(ROOT / "alembic")


def test_every_foreign_key_has_an_index() -> None:
    for table in metadata.tables.values():
        leading = {next(iter(columns)) for columns in (table.primary_key.columns, *(i.columns for i in table.indexes))}
        for key in table.foreign_keys:
            assert key.parent in leading, key.parent
