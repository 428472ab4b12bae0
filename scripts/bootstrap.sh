#!/usr/bin/env bash
# Makes the virtual environment at $1 with Corral and its bundled backend, for $2: `users`, or `developers` with
# their tools. The versions are those of requirements/$2.lock, and pip checks each file's hash.
# Needs Python 3.11 or newer; on Debian it installs what is missing if it may.
set -euo pipefail
venv=$1 for_whom=${2:-developers}
lock=requirements/$for_whom.lock

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

# Prints what pip does: each package with its number, on one line of a terminal or every tenth on a line.
show_progress() {
    local total
    total=$(grep -cE '^[A-Za-z0-9]' "$lock")
    awk -v total="$total" -v terminal="$([ -t 2 ] && echo 1)" '
        function show(text) {
            if (terminal) printf "\r\033[K  %s", text
            else print "  " text
            fflush()
        }
        /^(Collecting|Requirement already satisfied:) / {
            count++
            name = $1 == "Collecting" ? $2 : $4
            if (terminal || count % 10 == 0) show(count " of about " total " packages: " name)
        }
        /^ *Downloading .*\([0-9.]+ [MG]B\)/ { show(count " of about " total " packages: downloading " $2 " " $3 " " $4) }
        /^Installing collected packages/ { show("unpacking; this takes a while") }
        END { if (terminal) printf "\r\033[K" }
    ' >&2
}

case $for_whom in
users) size="60 MB to download, 240 MB on disk" ;;
*) size="140 MB to download, 510 MB on disk" ;;
esac
say "installing Corral for $for_whom into $venv ($size)"
pip() { PYTHONUNBUFFERED=1 "$venv/bin/python" -m pip --disable-pip-version-check install "$@"; }
pip --require-hashes --progress-bar off --requirement "$lock" | show_progress
pip --quiet --no-deps --no-build-isolation --editable sdk/python --editable .
say "installed"

# The llama.cpp engine is built with OpenMP, whose library minimal systems lack.
if ! "$venv/bin/python" -c 'import xllamacpp' 2>/dev/null; then
    apt_install libgomp1 || say "the llama.cpp engine cannot be loaded; install libgomp1"
fi
