"""The process: command line, start, serving and end."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import NAME, VERSION, disorder
from .behaviour import (
    FILE,
    PREFIX,
    Behaviour,
    BehaviourError,
    Script,
    from_environment,
    from_pairs,
    settings,
    with_settings,
)
from .installing import InstallError, install

DEFAULT_ADDRESS = "127.0.0.1:50051"
EXIT_BIND, EXIT_USAGE, EXIT_ORPHAN = 1, 2, 1
MAX_MESSAGE = 64 * 1024 * 1024
# How long calls may still take after SIGTERM, in seconds.
STOP_GRACE = 0.5
_PARENT_INTERVAL = 0.5
_TOKEN = "LOCALAI_GRPC_AUTH_TOKEN"
_PARENT_WATCH = "LOCALAI_BACKEND_PARENT_WATCH"
_FALSE = ("false", "0", "no", "off")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="corral backend fake",
        description="Serves backend.Backend without an engine, well or badly, as configured.",
    )
    made.add_argument(
        "--addr", default=DEFAULT_ADDRESS, help="host:port or unix:/path (default: %(default)s)"
    )
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="repeatable")
    made.add_argument("--list", action="store_true", help="list all settings and exit")
    made.add_argument("--install", metavar="DIR", help="write a backend folder into DIR and exit")
    made.add_argument("--name", default=NAME, help="the installed backend's name (default: fake)")
    made.add_argument(
        "--no-exec",
        action="store_true",
        help="install a run.sh that does not exec, so that its shell stays",
    )
    made.add_argument("--version", action="version", version=f"{NAME} {VERSION}")
    return made


def main(argv: Sequence[str], parent: int) -> int:
    """Run the program; return the exit code. `parent` is the parent process's id."""
    given = parser().parse_args(argv)
    if given.list:
        sys.stdout.write("\n".join(listing()) + "\n")
        return 0
    try:
        given_settings = from_pairs(given.set)
        if given.install is not None:
            folder = install(
                Path(given.install), given.name, given_settings, exec_=not given.no_exec
            )
            sys.stdout.write(f"{folder}\n")
            return 0
        base = with_settings(Behaviour(), from_environment(os.environ) | given_settings)
        script = Script(base, Path(FILE))
    except (BehaviourError, InstallError) as error:
        disorder.say(f"{NAME}: {error}")
        return EXIT_USAGE
    how = script.now()
    disorder.begin(how)
    if given.addr.startswith("unix:") and not how.unix:
        disorder.say(f"{NAME}: unknown address {given.addr}")
        return EXIT_USAGE
    try:
        code = asyncio.run(_serve(script, given.addr, parent))
    except RuntimeError as error:
        disorder.say(f"{NAME}: cannot listen on {given.addr}: {error}")
        code = EXIT_BIND
    sys.stdout.flush()
    # Not sys.exit: it would wait for a thread that floods a pipe.
    os._exit(code)


def listing() -> list[str]:
    """Return the lines of `--list`."""
    lines = [
        f"Set with --set key=value, as {PREFIX}KEY=value in the environment, in {FILE} in the working",
        "folder (read again when it changes), or for one call as metadata `fake-set: key=value`.",
    ]
    for group, items in itertools.groupby(settings(), key=lambda item: item[0]):
        lines += ["", group]
        lines += [
            f"  {f'{name}={_shown(default)}':<26} {help}" for _, name, _, default, help in items
        ]
    return lines


def table() -> str:
    """Return the README's tables of settings."""
    lines = []
    for group, items in itertools.groupby(settings(), key=lambda item: item[0]):
        lines += [f"**{group}**", "", "| Variable | Default | What |", "|---|---|---|"]
        for _, name, _, default, help in items:
            shown = f"`{_shown(default)}`" if _shown(default) else ""
            lines.append(f"| `{PREFIX}{name.upper()}` | {shown} | {help} |")
        lines.append("")
    return "\n".join(lines)


def _shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


async def _serve(script: Script, address: str, parent: int) -> int:
    # Imported here: a backend that fails or hangs at the start does so without them.
    import grpc

    from corral.backend import backend_pb2  # noqa: F401 - to fail here rather than in a call

    from .servicer import Backend, Newer
    from .steps import Steps

    how = script.now()
    limits = ("grpc.max_receive_message_length", "grpc.max_send_message_length")
    options: list[tuple[str, Any]] = [("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options + [(limit, MAX_MESSAGE) for limit in limits])
    flood = disorder.Flood(script.now)
    token = os.environ.get(_TOKEN, "")
    server.add_generic_rpc_handlers(
        (Steps(script, token), Backend(script, flood, token).handlers(), Newer())
    )
    socket = address.removeprefix("unix:").removeprefix("//")
    bound = _bind(server, "127.0.0.1:0" if how.elsewhere else address)
    await server.start()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stopping.set)
    if not how.ignore_sigterm:
        loop.add_signal_handler(signal.SIGTERM, stopping.set)
    watching = asyncio.create_task(_watch_parent(how, parent))
    if how.announce:
        sys.stdout.write(f"ready {NAME} {address if how.elsewhere else bound}\n")
        sys.stdout.flush()
    flood.ensure()
    await stopping.wait()
    watching.cancel()
    how = script.now()
    if how.sigterm_seconds:
        await asyncio.sleep(how.sigterm_seconds)
        disorder.note(how, "ended in peace")
    else:
        await server.stop(STOP_GRACE)
    if address.startswith("unix:"):
        with suppress(OSError):
            os.unlink(socket)
    return 0


def _bind(server: Any, address: str) -> str:
    """Listen; return the address with the real port."""
    port = server.add_insecure_port(address)
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


async def _watch_parent(how: Behaviour, parent: int) -> None:
    """End this process when its parent is gone."""
    unwanted = os.environ.get(_PARENT_WATCH, "").strip().lower() in _FALSE
    if not how.parent_watch or unwanted or parent == 1:
        return
    # Polled: no notification exists on every system.
    while os.getppid() == parent:  # noqa: ASYNC110
        await asyncio.sleep(_PARENT_INTERVAL)
    disorder.say(f"{NAME}: the parent process {parent} is gone")
    os._exit(EXIT_ORPHAN)
