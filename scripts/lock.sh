#!/usr/bin/env bash
# Renews the lock files with the newest versions that pyproject.toml allows. $1 is the developers' environment.
# The files name no index: pip and uv take the packages from the one they are configured for, and check the hashes.
set -euo pipefail
uv=$1/bin/uv

compile() {
    "$uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
        --custom-compile-command "make lock" --no-emit-package corral-sdk --extra llama-cpp pyproject.toml "$@"
}

compile --group dev --output-file requirements/developers.lock
# A user's versions are the developers': those that the tests ran with.
compile --group editable --constraints requirements/developers.lock --output-file requirements/users.lock
! grep -nE 'https?://|^--' requirements/*.lock
