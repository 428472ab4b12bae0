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
            metavar="PROMPT",
            help="The prompt; - reads it from stdin. Required without --chat.",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            "-c",
            help="Hold a conversation: type messages, or pipe them in, one in each line.",
        ),
    ] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="The system message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send the prompt as it is, without the chat template.")
    ] = False,
    max_tokens: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="The maximum number of tokens.", rich_help_panel=_SAMPLING
        ),
    ] = 512,
    temperature: Annotated[
        float,
        typer.Option(
            min=0,
            max=5,
            metavar="T",
            help="0 always takes the likeliest word.",
            rich_help_panel=_SAMPLING,
        ),
    ] = 0.7,
    top_p: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="P",
            help="Choose among the likeliest words with a total probability of P.",
            rich_help_panel=_SAMPLING,
        ),
    ] = 0.95,
    seed: Annotated[
        int,
        typer.Option(
            min=-1,
            max=2**31 - 1,
            metavar="N",
            help="The same seed gives the same answer; -1 picks one at random.",
            rich_help_panel=_SAMPLING,
        ),
    ] = -1,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="Stop before this text; repeatable.", rich_help_panel=_SAMPLING
        ),
    ] = None,
    timeout: Timeout = 600.0,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print tokens, speed and times to stderr.")
    ] = False,
    json: JsonFlag = False,
    loader: LoaderAddress = None,
    gallery: AdvisingGallery = None,
) -> None:
    """Ask a model and stream its answer; the model is loaded if necessary. Ctrl-C stops the answer."""
    from services.cli.actions import run as action
    from services.cli.actions.chat import talk

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
        talk(settings, first=prompt, as_json=json, addresses=addresses)
        return
    invoke.run(
        lambda clients, out: action.answer_once(clients, out, settings, prompt or ""),
        as_json=json,
        addresses=addresses,
        model=model,
    )
