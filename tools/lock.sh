#!/bin/sh
# Pin every dependency with its hashes, for Python 3.11 and newer on every platform. `make lock` runs this.
# What is pinned stays unless pyproject.toml forbids it; `make lock ARGS=--upgrade` takes the newest of everything.
set -eu
cd -- "$(dirname -- "$0")/.."

compile() {
    .venv/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --custom-compile-command "make lock" "$@"
}

# The widest set first: the others are held to it, so that tests run what the images ship.
compile pyproject.toml --extra server --extra agent --extra dev --output-file requirements/dev.txt "$@"
compile pyproject.toml --group compiler --output-file requirements/compiler.txt "$@"
narrower() { compile --constraint requirements/dev.txt "$@"; }
narrower pyproject.toml --extra server --output-file requirements/server.txt
narrower pyproject.toml --extra agent --output-file requirements/agent.txt
.venv/bin/python -c 'import pathlib, tomllib
print(*tomllib.loads(pathlib.Path("pyproject.toml").read_text())["build-system"]["requires"], sep="\n")' |
    narrower - --output-file requirements/build.txt
