#!/usr/bin/env bash
# Builds the wheel and uses it as someone would who has nothing but it: an empty environment, with the
# newest versions of all dependencies, from another folder. $1 is the developers' environment.
set -euo pipefail
venv=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$venv/bin/python" -m build --wheel --outdir "$work/dist" . >"$work/build.log" 2>&1 ||
    { cat "$work/build.log" >&2; exit 1; }
"$venv/bin/python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --upgrade pip
"$work/venv/bin/python" -m pip install --quiet "$(echo "$work"/dist/*.whl)[llama-cpp]"
mkdir -p "$work/home/models"
"$venv/bin/python" -m tests.tools.tiny_gguf count "$work/home/models/tiny.gguf"
cd /
export CORRAL_HOME=$work/home
for command in corral corral-loader corral-gallery corral-monitor corral-metrics; do
    "$work/venv/bin/$command" --version
    "$work/venv/bin/$command" --help >/dev/null
done
test -x "$work/venv/share/corral/backends/llama_cpp/run.sh"
"$work/venv/bin/corral" backend fake --list >/dev/null
"$work/venv/bin/corral" backend fake --install "$work/home/backends" >/dev/null

# Each service starts, says so, and stops when told to.
for service in loader gallery monitor metrics; do
    arguments=(--listen 127.0.0.1:0)
    [ "$service" != metrics ] || arguments+=(--http-listen 127.0.0.1:0)
    "$work/venv/bin/corral-$service" "${arguments[@]}" >"$work/$service.out" 2>"$work/$service.err" &
    pid=$!
    for _ in $(seq 200); do
        grep -q "^ready $service 127.0.0.1:" "$work/$service.out" && break
        kill -0 $pid 2>/dev/null || break
        read -rt 0.1 <> <(:) || true
    done
    grep "^ready $service 127.0.0.1:" "$work/$service.out" ||
        { cat "$work/$service.err" >&2; exit 1; }
    kill -TERM $pid
    wait $pid
done

# The bundled backend runs from where the wheel put it, and a loose model file needs no configuration.
"$work/venv/bin/corral" up --listen 127.0.0.1:0 --metrics-http-listen 127.0.0.1:0 \
    >"$work/up.out" 2>"$work/up.err" &
pid=$!
trap 'kill $pid 2>/dev/null || true; wait $pid 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 300); do
    [ ! -e "$work/home/run/endpoints.json" ] || break
    read -rt 0.1 <> <(:) || true
done
answer=$("$work/venv/bin/corral" run tiny.gguf "one two three" --raw --max-tokens 3 2>"$work/run.err") ||
    { cat "$work/run.err" "$work/up.err" >&2; exit 1; }
[ "$answer" = " four five six" ] || { echo "the model said: $answer" >&2; exit 1; }
kill -TERM $pid
wait $pid
echo "the wheel works in an empty environment"
