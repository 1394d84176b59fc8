#!/bin/sh
# Print the Python that this project is to be set up with, or say in one sentence why there is none.
# PYTHON=… names one; otherwise python3 is taken, then the newest that has its version in its name.
set -eu

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
makes_venvs() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

without_venv=
consider() {
    new_enough "$1" || return 0
    if makes_venvs "$1"; then
        printf '%s\n' "$1"
        exit 0
    fi
    without_venv=${without_venv:-$1}
}

if [ -n "${PYTHON:-}" ]; then
    consider "$PYTHON"
else
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        consider "$name"
    done
fi

if [ -n "$without_venv" ]; then
    echo "setup: $without_venv cannot make virtual environments; install its venv module (on Debian: python3-venv)." >&2
elif [ -n "${PYTHON:-}" ]; then
    echo "setup: PYTHON=$PYTHON is not a Python 3.11 or newer." >&2
else
    found=$(python3 --version 2>/dev/null || echo "not installed")
    echo "setup: Python 3.11 or newer is needed and python3 is $found; name another with 'make setup PYTHON=/path/to/python'." >&2
fi
exit 1
