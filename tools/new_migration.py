"""Write a migration from the newest schema to what `app/storage/tables.py` says: `new_migration.py "add node labels"`.

Compares against a private, empty database that is migrated first and thrown away after. Read what comes out before you
keep it: a rename looks like a drop and an add, and data is not seen at all.
"""

import argparse
import os
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config

from app.storage.embedded import database

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("message", help="what changes, in a few words; becomes the file's name")
    message = parser.parse_args().message
    number = 1 + max(int(path.name[:4]) for path in (ROOT / "alembic/versions").glob("[0-9]*.py"))
    config = Config(ROOT / "alembic.ini")
    with tempfile.TemporaryDirectory() as folder, database(None, Path(folder)) as url:
        os.environ["TONNAGE_DATABASE_URL"] = url  # where alembic/env.py looks
        command.upgrade(config, "head")
        command.revision(config, message, autogenerate=True, rev_id=f"{number:04}")


if __name__ == "__main__":
    main()
