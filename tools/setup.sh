#!/bin/sh
# Make .venv what requirements/ says, with this project in it; in a moment when it already is.
# `make setup` runs this. PYTHON=… chooses another Python and then remakes .venv.
set -eu
cd -- "$(dirname -- "$0")/.."

venv=.venv
python=$venv/bin/python
made=$venv/.made           # which Python made it, and where: a moved or half-made one is made again
installed=$venv/.installed # checksum of everything that says what belongs in it

# Tests compile a stand-in for the NVIDIA driver's library. Where no compiler is at hand, a wheel brings one.
set -- requirements/dev.txt
command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || set -- "$@" requirements/compiler.txt
wanted=$(cat "$@" pyproject.toml tools/setup.sh | cksum)

identity() { "$1" -c 'import os, sys; print(sys.version, sys.base_prefix, os.getcwd())' 2>/dev/null || echo none; }
content() { cat "$1" 2>/dev/null || true; }
sound() { [ -x $python ] && [ "$(content $made)" = "$(identity "$base")" ]; }
finished() { sound && [ "$(content $installed)" = "$wanted" ]; }

# What is there stays, with its own Python, unless another one is asked for.
base=${PYTHON:-$python}
if finished; then exit 0; fi

# Two makes at once (a server in one terminal, tests in another) must not install into each other.
if [ -z "${SETUP_LOCKED:-}" ] && command -v flock >/dev/null; then
    SETUP_LOCKED=1 exec flock . sh tools/setup.sh
fi

if ! sound; then
    base=$(sh tools/find_python.sh)
    echo "setup: making $venv with $("$base" --version)"
    "$base" -m venv --clear $venv
    identity "$base" >$made
fi

echo "setup: installing $*"
pip() { $python -m pip --disable-pip-version-check --no-input --quiet install "$@"; }
for requirements in "$@"; do
    pip --require-hashes --only-binary :all: --requirement "$requirements"
done
pip --no-deps --no-build-isolation --editable .
echo "$wanted" >$installed
