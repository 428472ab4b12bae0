#!/usr/bin/env bash
# Runs the unit tests with the newest versions of what Corral depends on, as users may get them, in an environment of
# its own at $2, made by the Python of the developers' environment at $1. The tools of the tests stay pinned.
set -euo pipefail
venv=$1 latest=$2

"$venv/bin/python" -m venv --clear "$latest"
pip() { "$latest/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
pip install --upgrade "pip>=25.1"
pip install --upgrade --upgrade-strategy eager --editable sdk/python --editable ".[llama-cpp]" --group protos --group test
"$latest/bin/python" -m pip --disable-pip-version-check list --format freeze >"$latest/versions"
echo "newer than the lock:"
# Names are spelled with - or _ and in either case.
tr A-Z_ a-z- <"$latest/versions" |
    grep -vxFf <(grep -oE '^[A-Za-z0-9._-]+==[^ ]+' requirements/developers.lock | tr A-Z_ a-z-) | sed 's/^/  /' || true
"$latest/bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile tests/unit tests/contract
