#!/usr/bin/env bash
# Makes the virtual environment at $1 with Corral, its bundled backend and the developers' tools.
# Needs Python 3.11 or newer; on Debian it installs what is missing if it may.
set -euo pipefail
venv=$1

say() { printf '%s\n' "$*" >&2; }

find_python() {
    for name in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
        if [ -n "$name" ] && command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

apt_install() {
    command -v apt-get >/dev/null || return 1
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    say "installing $* with apt-get"
    "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq "$@" >&2
}

python=$(find_python) || apt_install python3 python3-venv || true
python=$(find_python) || {
    say "Corral needs Python 3.11 or newer; install it, or name it with PYTHON=..."
    exit 1
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making $venv with $python"
    rm -rf "$venv"
    if ! "$python" -m venv "$venv" 2>/dev/null; then
        # Debian ships venv apart from Python.
        apt_install python3-venv || {
            say "$python cannot make a virtual environment; install python3-venv"
            exit 1
        }
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
fi

say "installing Corral and its tools (about 400 MB, a few minutes the first time)"
# Groups of dependencies need pip 25.1.
"$venv/bin/python" -m pip install --quiet --upgrade "pip>=25.1"
"$venv/bin/python" -m pip install --quiet --editable ".[llama-cpp]" --group dev

# The llama.cpp engine is built with OpenMP, whose library minimal systems lack.
if ! "$venv/bin/python" -c 'import xllamacpp' 2>/dev/null; then
    apt_install libgomp1 || say "the llama.cpp engine cannot be loaded; install libgomp1"
fi
