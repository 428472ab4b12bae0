#!/usr/bin/env bash
# Compares the contracts with those of the last release tag, or of the branch's parent commit.
# $1 is the buf program. Without any history there is nothing to break.
set -euo pipefail
buf=$1
if base=$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null) ||
    base=$(git rev-parse --verify --quiet HEAD~1); then
    if git cat-file -e "$base:buf.yaml" 2>/dev/null; then
        "$buf" breaking --against ".git#ref=$(git rev-parse "$base")"
        echo "no breaking change of the contracts since $base"
    fi
else
    echo "no history to compare the contracts with"
fi
