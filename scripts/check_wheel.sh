#!/usr/bin/env bash
# Builds both distributions, the suite and its SDK, and uses them as someone would who has nothing but them: in empty
# environments, with the newest versions of all dependencies, from another folder. $1 is the developers' environment.
set -euo pipefail
venv=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Each wheel is built from the source distribution, so that is tried too.
for source in sdk/python .; do
    "$venv/bin/python" -m build --outdir "$work/dist" "$source" >"$work/build.log" 2>&1 ||
        { cat "$work/build.log" >&2; exit 1; }
done
for name in venv client; do
    "$venv/bin/python" -m venv "$work/$name"
    "$work/$name/bin/python" -m pip install --quiet --upgrade pip
done
install() { "$work/$1/bin/python" -m pip install --quiet --find-links "$work/dist" "$2"; }
install venv "$(echo "$work"/dist/corral-[0-9]*.whl)[llama-cpp]"
install client "$(echo "$work"/dist/corral_sdk-*.whl)"
cp tests/tools/sdk_client.py "$work/sdk_client.py"
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

# A client that installed only the SDK streams from that loader.
loader=$("$work/venv/bin/python" -c '
import json, sys
print(json.load(open(sys.argv[1]))["addresses"]["loader"])' "$work/home/run/endpoints.json")
answer=$(env -u CORRAL_HOME "$work/client/bin/python" "$work/sdk_client.py" "$loader" tiny.gguf "one two three")
[ "$answer" = " four five six" ] || { echo "the SDK received: $answer" >&2; exit 1; }
kill -TERM $pid
wait $pid
echo "the suite and the SDK work in empty environments"
