"""A fake service, run as `python -m tests.fakes.standin <service> --listen=...`.

It takes the services' flags, writes its arguments to `$STANDIN_LOG/<service>`, prints its ready
line and waits. `STANDIN_<SERVICE>` scripts it: exit-at-start, usage-at-start, hang-at-start,
ignore-sigterm, flood, crash-always.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path


def main() -> int:
    service, *flags = sys.argv[1:]
    mode = os.environ.get(f"STANDIN_{service.upper()}", "")
    told = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    with (Path(os.environ["STANDIN_LOG"]) / service).open("a") as log:
        log.write(f"{os.getpid()} {' '.join(flags)}\n")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if mode == "ignore-sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "exit-at-start":
        sys.stderr.write(f"corral-{service}: cannot listen on {told.get('listen')}: in use\n")
        return 1
    if mode == "usage-at-start":
        sys.stderr.write(f"corral-{service}: --config x: no such setting\nSee --help.\n")
        return 2
    if mode == "flood":
        for number in range(2000):
            sys.stderr.write(f"line {number} {'x' * 200}\n")
    threading.Thread(target=watch, args=(stop,), daemon=True).start()
    host, _, port = told.get("listen", "127.0.0.1:0").rpartition(":")
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, int(port)))
        server.listen()
        if mode != "hang-at-start":
            sys.stdout.write(f"ready {service} {host}:{server.getsockname()[1]}\n")
            sys.stdout.flush()
        sys.stderr.write(f"{service} serves\n")
        sys.stderr.flush()
        if mode == "crash-always":
            os.kill(os.getpid(), signal.SIGKILL)
        stop.wait()
    order = Path(os.environ["STANDIN_LOG"]) / "stopped"
    with order.open("a") as log:
        log.write(f"{service}\n")
    sys.stderr.write(f"{service} stopped\n")
    return 0


def watch(stop: threading.Event) -> None:
    """Stop at EOF on the descriptor that `corral up` holds open."""
    fd = int(os.environ["CORRAL_WATCH_FD"])
    while os.read(fd, 1):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
