"""What Alembic runs around migrations: in the service on the connection it is given, on the command line on its own."""

import os
import sys

from alembic import context
from sqlalchemy import Connection

from app.storage import UnusableDatabase
from app.storage.migration import locked_connection
from app.storage.tables import metadata


def migrate(connection: Connection) -> None:
    """Run what the command asks for, in the transaction that `connection` is in."""
    context.configure(
        connection=connection, target_metadata=metadata, compare_server_default=True, transactional_ddl=True
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """Find the database, or write the statements down when Alembic is asked for `--sql`."""
    if (given := context.config.attributes.get("connection")) is not None:
        migrate(given)
        return
    if context.is_offline_mode():
        context.configure(dialect_name="postgresql", target_metadata=metadata, literal_binds=True)
        with context.begin_transaction():
            context.run_migrations()
        return
    url = os.environ.get("TONNAGE_DATABASE_URL")
    if url is None:
        sys.exit("set TONNAGE_DATABASE_URL to the database to work on")
    try:
        with locked_connection(url) as connection:
            migrate(connection)
    except UnusableDatabase as error:
        sys.exit(str(error))


main()
