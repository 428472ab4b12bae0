"""The main job, live: start the four services, install a real language model, load it, let it speak.

Everything happens in a folder of its own, which is removed at the end; so are all processes, and the
demo looks whether they really are.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

CORRAL = Path(sys.executable).with_name("corral")
MODEL = "smollm2-135m-instruct"
QUESTION = "In one short sentence: what does a corral keep together?"
UP_SECONDS = 60.0
STOP_SECONDS = 60.0
GONE_SECONDS = 5.0


def show(*arguments: str) -> None:
    """Run a command as a user would, and end the demo with its exit code if it fails."""
    words = [f'"{word}"' if " " in word else word for word in arguments]
    print(f"\n\033[1m$ corral {' '.join(words)}\033[0m", flush=True)
    code = subprocess.run([CORRAL, *arguments], check=False).returncode
    if code:
        raise SystemExit(code)


def start(log: Path) -> subprocess.Popen[str]:
    """Start the services on free ports; return when all are up."""
    print("\033[1m$ corral up\033[0m", flush=True)
    with log.open("w") as errors:
        up = subprocess.Popen(
            [CORRAL, "up", "--listen", "127.0.0.1:0", "--metrics-http-listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    endpoints = Path(os.environ["CORRAL_HOME"]) / "run" / "endpoints.json"
    deadline = time.monotonic() + UP_SECONDS
    assert up.stdout is not None
    for line in up.stdout:
        print(line, end="", flush=True)
        if line.startswith("Ctrl-C") or time.monotonic() > deadline:
            break
    if not endpoints.exists():
        print(log.read_text(), file=sys.stderr)
        raise SystemExit("the services did not start; their log is above")
    return up


def show_metrics() -> None:
    """Print what Prometheus would see of the calls just made."""
    endpoints = json.loads((Path(os.environ["CORRAL_HOME"]) / "run" / "endpoints.json").read_text())
    url = f"http://{endpoints['addresses']['http']}/metrics"
    print(f"\n\033[1m$ curl {url} | grep PredictStream\033[0m", flush=True)
    deadline = time.monotonic() + GONE_SECONDS
    while time.monotonic() < deadline:  # calls are reported in batches, twice a second
        with urllib.request.urlopen(url, timeout=GONE_SECONDS) as page:
            lines = page.read().decode().splitlines()
        if found := [line for line in lines if "PredictStream" in line and "_bucket" not in line]:
            print("\n".join(found), flush=True)
            return
        time.sleep(0.1)
    raise SystemExit("the call is not among the metrics")


def stop(up: subprocess.Popen[str]) -> None:
    """Stop as ctrl-C does, and check that nothing is left."""
    family = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)]
    print(f"\n\033[1mctrl-C\033[0m: stopping {len(family)} processes", flush=True)
    up.send_signal(signal.SIGINT)
    up.wait(STOP_SECONDS)
    _, left = psutil.wait_procs(family[1:], timeout=GONE_SECONDS)
    left = [process for process in left if process.is_running()]
    if left:
        raise SystemExit(f"still running: {left}")
    print("all of them are gone", flush=True)


def main() -> None:
    """Run the demo."""
    with tempfile.TemporaryDirectory(prefix="corral-demo-") as home:
        os.environ["CORRAL_HOME"] = home
        up = start(Path(home) / "log")
        try:
            show("models", "--available")
            show("install", MODEL)
            show("load", MODEL)
            show("run", MODEL, QUESTION, "--stats", "--temperature", "0", "--max-tokens", "64")
            show("status")
            show_metrics()
        finally:
            stop(up)


if __name__ == "__main__":
    main()
