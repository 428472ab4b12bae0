"""Runs a command's work: every failure becomes two lines and an exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import typer

from services.cli.display.output import Output
from services.common.errors import CorralError

from .failures import Failure, explain

if TYPE_CHECKING:
    from services.cli.client.clients import Clients

INTERRUPTED: Final = 130

_traceback = False


def show_tracebacks(show: bool) -> None:
    """Show tracebacks of unexpected errors, for `corral --traceback`."""
    global _traceback
    _traceback = show


def quiet_grpc() -> None:
    """Keep gRPC's own log off stderr: its failures are shown once, as errors."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def run(
    work: Callable[[Clients, Output], Awaitable[Any]],
    *,
    as_json: bool,
    addresses: Mapping[str, str | None],
    model: str = "",
) -> None:
    """Run a command's work with clients of the services; exits with a code if it fails.

    `model` is the model that the command is about, for the hints.
    """
    out = Output(as_json=as_json)
    quiet_grpc()

    async def main() -> None:
        from services.cli.client.addresses import resolve
        from services.cli.client.clients import Clients
        from services.common.config.fields import corral_home

        async with Clients(resolve(addresses, corral_home())) as clients:
            await work(clients, out)

    guarded(lambda: asyncio.run(main()), out, model=model)


def guarded(work: Callable[[], Any], out: Output, *, model: str = "") -> None:
    """Call `work`; an exception is shown in two lines and becomes the exit code."""
    try:
        work()
    except Failure as failure:
        _fail(out, failure)
    except CorralError as error:
        _fail(out, explain(error, model=model))
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except (BrokenPipeError, typer.Exit):
        raise
    except UnicodeError:
        # A prompt from a file in another encoding, or an argument with bytes that are no text.
        hint = "convert the text to UTF-8 first"
        _fail(out, Failure("the input is not UTF-8", hint, exit_code=2, reason="NOT_UTF8"))
    except Exception as error:
        if _traceback:
            raise
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        hint = "this is a bug: repeat it as `corral --traceback ...` and report what it prints"
        _fail(out, Failure(f"unexpected {' '.join(text.split())}", hint, reason="INTERNAL"))


def _fail(out: Output, failure: Failure) -> None:
    # Keep the order if stdout and stderr go to the same file.
    sys.stdout.flush()
    out.failure(failure)
    raise typer.Exit(failure.exit_code) from None
