"""A conversation: typed at a prompt on a terminal, or piped in, one message in each line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Final

from corral.backend import backend_pb2
from services.cli import invoke
from services.cli.client.addresses import resolve
from services.cli.client.clients import Clients
from services.cli.display.output import Output
from services.cli.failures import Failure, explain
from services.common.config.fields import corral_home
from services.common.errors import CorralError

from . import run
from .run import Settings

_HELP: Final = "/reset forgets the conversation, /system TEXT sets the system message, /exit ends"
_PROMPT: Final = ">>> "


def talk(
    settings: Settings, *, first: str | None, as_json: bool, addresses: Mapping[str, str | None]
) -> None:
    """Hold a conversation until its end; `first` is the first message, before any input is read."""
    out = Output(as_json=as_json)
    invoke.quiet_grpc()

    def work() -> None:
        # The event loop does not run while a line is typed, so that input() has the terminal's
        # signals and line editing to itself; the channel survives that.
        with asyncio.Runner() as runner:
            clients = Clients(resolve(addresses, corral_home()))
            runner.run(clients.__aenter__())
            try:
                _Conversation(runner, clients, out, settings).hold(first)
            finally:
                runner.run(clients.__aexit__(None, None, None))

    invoke.guarded(work, out, model=settings.model)


class _Conversation:
    def __init__(
        self, runner: asyncio.Runner, clients: Clients, out: Output, settings: Settings
    ) -> None:
        self._runner = runner
        self._clients = clients
        self._out = out
        self._settings = settings
        self._typed = sys.stdin.isatty() and sys.stdout.isatty() and not out.as_json
        self._messages: list[backend_pb2.Message] = []
        self._reset(settings.system)

    def hold(self, first: str | None) -> None:
        self._runner.run(run.prepare(self._clients, self._out, self._settings))
        if self._typed:
            self._out.note(f"{self._settings.model} is ready. {_HELP} (or Ctrl-D).", "dim")
        if first:
            self._send(sys.stdin.read() if first == "-" else first)
        for line in _typed_lines() if self._typed else sys.stdin:
            if not self._handle(line.strip()):
                return

    def _handle(self, line: str) -> bool:
        """Handle one line; return whether to continue."""
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit", "/bye"):
            return False
        if command == "/reset":
            self._reset(self._settings.system)
            self._out.note("forgotten", "dim")
        elif command == "/system":
            self._reset(rest.strip())
            self._out.note("forgotten; the system message is set", "dim")
        elif command == "/help" or (self._typed and command.startswith("/")):
            self._out.note(_HELP, "dim")
        elif line:
            self._send(line)
        return True

    def _send(self, line: str) -> None:
        """Send a message and write the answer. At a prompt a failure ends only this turn."""
        message = backend_pb2.Message(role="user", content=line)
        request = run.request_for(self._settings, [*self._messages, message], line)
        try:
            answer = self._runner.run(
                run.respond(self._clients, self._out, self._settings, request)
            )
        except KeyboardInterrupt:
            if not self._typed:
                raise
            self._out.note("(stopped; that turn is forgotten)", "dim")
            return
        except CorralError as error:
            self._show(explain(error, model=self._settings.model))
            return
        except Failure as failure:
            self._show(failure)
            return
        self._messages += [message, backend_pb2.Message(role="assistant", content=answer.text)]

    def _show(self, failure: Failure) -> None:
        if not self._typed:
            raise failure
        self._out.failure(failure)

    def _reset(self, system: str) -> None:
        self._messages = [backend_pb2.Message(role="system", content=system)] if system else []


def _typed_lines() -> Iterator[str]:
    """Yield typed lines until Ctrl-D; Ctrl-C discards the line."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing keys and a history
    while True:
        try:
            yield input(_PROMPT)
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            sys.stdout.write("\n(Ctrl-D or /exit ends)\n")
