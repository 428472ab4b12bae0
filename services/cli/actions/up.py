"""`corral up`: the services, their log, and the file from which other commands get their addresses."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

import typer

from services.cli import invoke
from services.cli.client import addresses
from services.cli.client.addresses import SERVICES, Running, Service
from services.cli.display.output import Output
from services.cli.failures import Failure
from services.cli.stack import arguments
from services.cli.stack.arguments import Options
from services.cli.stack.merged_log import MergedLog
from services.cli.stack.supervisor import Limits, Stack
from services.common.config.fields import corral_home
from services.common.file_lock import FileLock

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def up(
    out: Output,
    options: Options,
    *,
    limits: Limits | None = None,
    command: Callable[[Service], list[str]] = arguments.command,
) -> None:
    """Run the services until a signal arrives or one of them fails too often."""
    arguments.check(options)
    signalled = asyncio.run(_up(out, options, limits or Limits(), command))
    if signalled is signal.SIGINT:
        raise typer.Exit(invoke.INTERRUPTED)


async def _up(
    out: Output,
    options: Options,
    limits: Limits,
    command: Callable[[Service], list[str]],
) -> signal.Signals:
    home = corral_home()
    log = MergedLog(
        sys.stderr,
        as_json=options.log_format == "json",
        colours=out.stderr.is_terminal and out.stderr.color_system is not None,
    )
    file = addresses.addresses_file(home)
    with _only_one(home):
        try:
            async with Stack(options, log, limits=limits, command=command) as stack:
                with _Signals(log, stack.hurry) as signals:
                    await signals.unless_caught(_serve(out, stack, file))
                    addresses.remove(file, os.getpid())
                    await stack.stop()
        finally:
            addresses.remove(file, os.getpid())
    log.write("corral", "stopped")
    return signals.caught


async def _serve(out: Output, stack: Stack, file: Path) -> None:
    await stack.start()
    pid = os.getpid()
    addresses.write(file, Running(pid, addresses.start_time(pid), stack.addresses))
    # Without a reader (`corral up | true`) the services run all the same. Rich raises SystemExit for a
    # closed pipe.
    with suppress(OSError, SystemExit):
        _announce(out, stack)
    await stack.keep()


class _Signals:
    """The first signal stops the services, the second kills them."""

    def __init__(self, log: MergedLog, hurry: asyncio.Event) -> None:
        self.caught = signal.SIGTERM
        self._log = log
        self._first = asyncio.Event()
        self._hurry = hurry
        # Ignored signals stay ignored, as `nohup` and a shell's background jobs expect.
        self._wanted = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]

    async def unless_caught(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` until a signal arrives; its exception is raised here."""
        task = asyncio.ensure_future(work)
        first = asyncio.ensure_future(self._first.wait())
        try:
            await asyncio.wait({task, first}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first.cancel()
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in self._wanted:
            loop.add_signal_handler(number, self._catch, number)
        return self

    def __exit__(self, *details: object) -> None:
        loop = asyncio.get_running_loop()
        for number in self._wanted:
            loop.remove_signal_handler(number)

    def _catch(self, number: signal.Signals) -> None:
        if not self._first.is_set():
            self.caught = number
            self._first.set()
            self._log.write("corral", f"stopping on {number.name}; once more to kill")
        else:
            self._hurry.set()


def _announce(out: Output, stack: Stack) -> None:
    addresses = stack.addresses
    http = f"http://{addresses['http']}/metrics" if "http" in addresses else ""
    if out.as_json:
        services = {service: addresses[service] for service in SERVICES}
        out.emit({"type": "ready", "pid": os.getpid(), "services": services, "prometheus": http})
        return
    out.line()
    out.line("Corral is up.", "bold green")
    for service in SERVICES:
        out.line(f"  {service:<11} {addresses[service]}")
    if http:
        out.line(f"  {'prometheus':<11} {http}")
    out.line("Next, in another terminal:", "bold")
    out.line("  corral models --available      see what you can install")
    out.line("  corral install NAME            install it")
    out.line('  corral run NAME "Hello!"       ask it something')
    out.line("Ctrl-C stops everything.")
    out.line()
    sys.stdout.flush()


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the lock of this home: two stacks in it would overwrite each other's files."""
    path = home / "run" / "up.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, mode=0o644)
        free = lock.acquire()
    except OSError as error:
        raise Failure(
            f"cannot write to {home}: {error.strerror}",
            "set CORRAL_HOME to a folder that you can write to",
        ) from error
    with lock:
        if not free:
            running = addresses.read(addresses.addresses_file(home))
            pid = f" (pid {running.pid})" if running else ""
            raise Failure(
                f"`corral up` already runs{pid} in {home}",
                "see it with `corral status`; set CORRAL_HOME to another folder to run a second one",
                reason="ALREADY_UP",
            )
        yield
