"""`corral run`."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli import invoke

from .parameters import AdvisingGallery, JsonFlag, LoaderAddress, ModelName, Timeout

_SAMPLING = "How it answers"


def run(
    model: ModelName,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT]",
            help="What to say to it; - reads it from stdin. Needed without --chat.",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", "-c", help="Keep a conversation: type, or pipe in one message a line."
        ),
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The system message to begin with.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send the prompt as it is, without the chat template.")
    ] = False,
    max_tokens: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Tokens at most.", rich_help_panel=_SAMPLING),
    ] = 512,
    temperature: Annotated[
        float,
        typer.Option(
            min=0, max=5, metavar="T", help="0 is the likeliest word.", rich_help_panel=_SAMPLING
        ),
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            help="Only the likeliest words that make up P.",
            rich_help_panel=_SAMPLING,
        ),
    ] = 0.95,
    seed: Annotated[
        int,
        typer.Option(
            min=-1,
            max=2**31 - 1,
            metavar="N",
            help="The same seed, the same answer; -1 draws one.",
            rich_help_panel=_SAMPLING,
        ),
    ] = -1,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="End before this text; repeatable.", rich_help_panel=_SAMPLING
        ),
    ] = None,
    timeout: Timeout = 600.0,
    stats: Annotated[
        bool, typer.Option("--stats", help="Tell tokens, speed and times on stderr.")
    ] = False,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
    gallery: AdvisingGallery = None,
) -> None:
    """Let a model answer, word by word; it is loaded first if it must be. Ctrl-C stops the answer."""
    from services.cli.actions import chat as chat_action
    from services.cli.actions import run as action

    if raw and (chat or system):
        raise typer.BadParameter(
            "has no conversation: leave out --chat and --system", param_hint="--raw"
        )
    if prompt is None and not chat:
        raise typer.BadParameter(
            "give a prompt in quotes, - to read it from stdin, or --chat to talk",
            param_hint="PROMPT",
        )
    settings = action.Settings(
        model=model,
        system=system or "",
        raw=raw,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        timeout=timeout,
        stats=stats,
    )
    addresses = {"loader": loader, "gallery": gallery}
    if chat:
        chat_action.talk(settings, first=prompt, as_json=json, addresses=addresses)
        return
    invoke.run(
        lambda clients, out: action.answer_once(clients, out, settings, prompt or ""),
        as_json=json,
        addresses=addresses,
        model=model,
    )
