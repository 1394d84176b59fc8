import shutil
import subprocess
import sys
from pathlib import Path


def test_a_changed_table_becomes_the_next_migration(
    root: Path, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    for name in ("app", "alembic", "tools"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "alembic.ini", tmp_path)
    before = {path.name for path in (tmp_path / "alembic/versions").glob("*.py")}
    with (tmp_path / "app/storage/tables.py").open("a") as tables:
        tables.write(
            '\nimport sqlalchemy\nsqlalchemy.Table("pets", metadata, sqlalchemy.Column("name", sqlalchemy.Text()))\n'
        )

    done = subprocess.run(
        [sys.executable, "tools/new_migration.py", "keep pets"],
        cwd=tmp_path,
        env={**bare_environment, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    (written,) = set((tmp_path / "alembic/versions").glob("*.py")) - {
        tmp_path / "alembic/versions" / name for name in before
    }
    assert written.name == f"{len(before) + 1:04}_keep_pets.py"
    assert "op.create_table" in written.read_text()
    assert written.read_text().count("op.") == 2  # nothing but the new table, up and down
