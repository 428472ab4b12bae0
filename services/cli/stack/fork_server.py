"""A process that has imported the services, and forks one on request.

The services' common code is then in memory once, and a service starts in a tenth of the time of its
imports. Before it forks it only imports: no thread, no event loop, no gRPC call. Its client is
`fork_client.ForkServer`, at the other end of a socket: a request is a JSON object with the descriptors
of stdout and stderr; answers are JSON objects with the request's `number` and a `pid`, and later with
the `pid` and its `status`. It ends when the other end is closed; the services notice that themselves.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from services.common.process.title import set_process_title

LARGEST = 256 * 1024
"""Bytes of the largest request; an environment is most of it."""
ROOM = 4096
"""Bytes of padding among this process's arguments, for the services' own: as much as the kernel shows."""
UNKNOWN = 255
"""The exit code of a service whose own is unknown."""

Main = Callable[[], int]


def main() -> int:
    """Serve requests; in a forked process, run the service."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    for module in sys.argv[2].split(","):
        with suppress(ImportError):  # the service itself will report what is missing
            importlib.import_module(module)
    set_process_title([sys.executable, "-m", "services.cli.stack.fork_server"], "corral-fork")
    # Freeze all objects: a collection in a forked process would copy every page of them.
    gc.collect()
    gc.freeze()
    become = _serve(channel)
    return become() if become else 0


def _serve(channel: socket.socket) -> Main | None:
    """Fork on request until the client is gone; in a forked process, return the service's main."""
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        _answer(channel, {})  # ready
        while True:
            ready = [key for key, _ in selector.select()]
            for key in ready:
                if key.fileobj is not channel:
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    _answer(channel, {"pid": key.data, "status": _exit_code(key.data)})
            if any(key.fileobj is channel for key in ready):
                try:
                    data, descriptors, _, _ = socket.recv_fds(channel, LARGEST, 2)
                except ConnectionResetError:  # the client was killed before it had read everything
                    return None
                if not data:
                    return None
                request = json.loads(data)
                pid = os.fork()
                if not pid:
                    for key in selector.get_map().values():
                        if key.fileobj is not channel:
                            os.close(key.fd)
                    channel.close()
                    return _become(request, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
                _answer(channel, {"number": request["number"], "pid": pid})


def _become(request: dict[str, Any], descriptors: list[int]) -> Main:
    """Turn the forked process into the requested service."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((null, *descriptors)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    module, arguments = request["module"], request["arguments"]
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[:] = [module, *arguments]
    set_process_title([sys.executable, "-m", module, *arguments], request["name"])
    program: Main = importlib.import_module(f"{module}.__main__").main
    return program


def _exit_code(pid: int) -> int:
    """Reap a process and return its exit code; negative for a signal."""
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED)
    except ChildProcessError:
        return UNKNOWN  # SIGCHLD is ignored by inheritance, so the system has reaped it
    assert ended is not None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _answer(channel: socket.socket, answer: dict[str, int]) -> None:
    with suppress(OSError):  # the client is gone; the next read notices it
        channel.sendall(json.dumps(answer).encode())


if __name__ == "__main__":
    sys.exit(main())
