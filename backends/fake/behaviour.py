"""The settings of the backend's behaviour, and the sources of their values.

The environment sets them (`FAKE_LOAD_SECONDS=3`), `behaviour.json` in the working folder overrides it
and may be changed while the backend runs, and the metadata `fake-set: key=value` of one call overrides
both for that call.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

FILE = "behaviour.json"
PREFIX = "FAKE_"
METADATA = "fake-set"

_GROUPS = ("Start", "Health", "Load", "Calls", "Streams", "Crashes", "Output", "Processes", "End")


class BehaviourError(Exception):
    """An unknown setting, or a value that is not valid for it."""


def _of(group: str, default: Any, help: str, *choices: str) -> Any:
    assert group in _GROUPS
    return field(default=default, metadata={"group": group, "help": help, "choices": choices})


@dataclass(frozen=True, slots=True)
class Behaviour:
    """All settings. The defaults are a well-behaved backend."""

    start: str = _of(
        "Start",
        "ok",
        "`exit:CODE` or `kill:SIGNAL` ends instead of serving; `hang` never listens",
        "ok",
        "exit",
        "kill",
        "hang",
    )
    start_seconds: float = _of("Start", 0.0, "Seconds before it listens, exits or hangs")
    start_text: str = _of("Start", "cannot open libfoo.so", "Written to stderr before such an end")
    elsewhere: bool = _of("Start", False, "Listens on a port other than that of `--addr`")
    unix: bool = _of("Start", True, "Takes `--addr unix:/path`; ends with code 2 otherwise")
    announce: bool = _of("Start", True, "Prints `ready fake ADDRESS` when it serves")
    parent_watch: bool = _of("Start", True, "Ends when its parent process is gone")

    health: str = _of(
        "Health",
        "ok",
        "`hang` never answers, `not_ok` answers something else, or `status:CODE`",
        "ok",
        "hang",
        "not_ok",
        "status",
    )
    health_seconds: float = _of(
        "Health", 0.0, "Seconds after it starts listening before it answers Health"
    )

    load: str = _of(
        "Load",
        "ok",
        "`refuse` (`success` false), `oom` (the same, for lack of memory), `error`"
        " (INVALID_ARGUMENT), `status:CODE`, `crash`, `hang`",
        "ok",
        "refuse",
        "oom",
        "error",
        "status",
        "crash",
        "hang",
    )
    load_text: str = _of("Load", "", "Replaces the text of such an answer")
    load_seconds: float = _of("Load", 0.0, "Seconds that LoadModel takes")
    load_progress: bool = _of("Load", False, "Uses a CPU meanwhile, as reading weights does")
    load_failures: int = _of(
        "Load",
        0,
        "The number of loads that fail as in `load` (`refuse` if that is `ok`) before they succeed;"
        " counted in `loads.count` in the working folder, across restarts",
    )
    load_memory_mib: int = _of("Load", 0, "Memory (MiB) that LoadModel allocates and keeps")
    identity: str = _of("Load", "", "The name it reports for its model, instead of the loaded one")
    needs_model: bool = _of(
        "Load", True, "Answers FAILED_PRECONDITION before LoadModel, as the contract requires"
    )

    status: str = _of("Calls", "", "Answers every call of the model with this status code")
    status_text: str = _of("Calls", "", "The text of that status; a default if empty")
    call: str = _of(
        "Calls",
        "ok",
        "`hang` never answers; `close` closes the connections instead of answering",
        "ok",
        "hang",
        "close",
    )
    call_seconds: float = _of("Calls", 0.0, "Seconds before the first answer of a call")
    workers: int = _of(
        "Calls",
        0,
        "The maximum number of calls at once, Health included; others wait. LocalAI's Python"
        " backends have 1; 0 is no limit",
    )
    parallel: int = _of(
        "Calls", 0, "The maximum number of calls of the model at once; 0 is no limit"
    )
    queue: bool = _of("Calls", True, "Queues further calls; `false` answers RESOURCE_EXHAUSTED")
    unimplemented: str = _of("Calls", "", "RPCs that are not implemented, such as `Status,Free`")
    call_memory_mib: int = _of("Calls", 0, "Memory (MiB) that each call allocates until its end")
    leak_mib: int = _of("Calls", 0, "Memory (MiB) that each call allocates and never frees")
    message_bytes: int = _of("Calls", 0, "Fills `Reply.message` up to this size")
    write_files: bool = _of("Calls", True, "Writes the files that a request names as `dst`")
    check_token: bool = _of("Calls", True, "Checks `LOCALAI_GRPC_AUTH_TOKEN`")
    echo: str = _of(
        "Calls",
        "prompt",
        "The answer to Predict: the `prompt`, or as JSON the `request` with its metadata",
        "prompt",
        "request",
    )
    state: str = _of("Calls", "", "The state in Status; the real one if empty")
    memory_mib: int = _of("Calls", 0, "The memory (MiB) in Status; the real amount if 0")

    tokens: int = _of(
        "Streams", 0, "Messages of PredictStream if the request has no limit; 0 is one per word"
    )
    token_seconds: float = _of("Streams", 0.0, "Seconds between two messages of a stream")
    stall_after: int = _of(
        "Streams", 0, "Stops sending after this many messages, without ending the stream"
    )
    ignore_cancel: bool = _of("Streams", False, "Keeps working on a call after it was cancelled")

    crash: bool = _of("Crashes", False, "Crashes at the next call of the model")
    crash_after: float = _of("Crashes", 0.0, "Seconds after the load at which it crashes")
    crash_after_messages: int = _of("Crashes", 0, "Messages of a stream after which it crashes")
    crash_with: str = _of(
        "Crashes",
        "",
        "How it crashes: `exit:CODE` or a signal; if empty SIGABRT in a load, SIGKILL otherwise",
    )
    crash_text: str = _of("Crashes", "", "The last line on stderr; a default if empty")
    freeze_after: float = _of("Crashes", 0.0, "Seconds after the load at which it stops (SIGSTOP)")

    stderr_lines: int = _of("Output", 0, "Lines written to stderr before it listens")
    stdout_lines: int = _of("Output", 0, "Lines written to stdout before it listens")
    flood: str = _of(
        "Output", "", "Writes to `stderr` or `stdout` endlessly", "", "stderr", "stdout"
    )
    flood_kind: str = _of(
        "Output",
        "lines",
        "`lines`, `endless` (one line), `binary`, `progress` (carriage returns)",
        "lines",
        "endless",
        "binary",
        "progress",
    )
    flood_bytes: int = _of("Output", 0, "Bytes per second of the flood; 0 is no limit")
    log: str = _of(
        "Output",
        "",
        "Writes a line per call, with changing levels: `text`, `json`, `glog`, `python`",
        "",
        "text",
        "json",
        "glog",
        "python",
    )
    notes: str = _of("Output", "", "File to which it appends loads, cancellations and a slow end")
    load_request: str = _of("Output", "", "File to which it writes LoadModel's request, serialized")

    children: int = _of("Processes", 0, "Helper processes in its own group")
    escapee: int = _of("Processes", 0, "Helper processes in their own sessions")
    stubborn_children: int = _of("Processes", 0, "Helper processes that ignore SIGTERM")

    ignore_sigterm: bool = _of("End", False, "Does not end on SIGTERM")
    sigterm_seconds: float = _of("End", 0.0, "Seconds it takes to end on SIGTERM")
    free: str = _of(
        "End",
        "ok",
        "What Free does: `fail`, `hang`, `crash` or `status:CODE`",
        "ok",
        "fail",
        "hang",
        "crash",
        "status",
    )


def settings() -> Iterator[tuple[str, str, str, Any, str]]:
    """Yield group, name, type, default and help of every setting."""
    for item in fields(Behaviour):
        yield item.metadata["group"], item.name, str(item.type), item.default, item.metadata["help"]


def with_settings(base: Behaviour, values: Mapping[str, object]) -> Behaviour:
    """Return `base` with these settings. Raises BehaviourError."""
    known = {item.name: item for item in fields(Behaviour)}
    changes: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else "`corral backend fake --list` shows all"
            )
            raise BehaviourError(f"there is no setting {name!r}; {hint}")
        changes[name] = _value(known[name], value)
    return replace(base, **changes)


def from_pairs(pairs: Iterable[str]) -> dict[str, object]:
    """Return the settings in texts such as `load_seconds=3`. Raises BehaviourError."""
    values: dict[str, object] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise BehaviourError(f"{pair!r} is not key=value")
        values[name.strip().lower().removeprefix(PREFIX.lower())] = value
    return values


def from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the settings in environment variables."""
    return {
        name.removeprefix(PREFIX).lower(): value
        for name, value in environ.items()
        if name.startswith(PREFIX)
    }


class Script:
    """The current behaviour: the file is read again when it changes."""

    def __init__(self, base: Behaviour, file: Path) -> None:
        """`base` is the behaviour without the file. Raises BehaviourError."""
        self._base = base
        self._file = file.absolute()
        self._seen: tuple[int, int] | None = None
        self._now = base
        self._read()

    def now(self, overrides: Iterable[str] = ()) -> Behaviour:
        """Return the behaviour; `overrides` are texts such as `load=hang`. Raises BehaviourError."""
        try:
            self._read()
        except BehaviourError as error:
            # The file may be half edited.
            sys.stderr.write(f"{FILE}: {error}\n")
        pairs = from_pairs(overrides)
        return with_settings(self._now, pairs) if pairs else self._now

    def _read(self) -> None:
        try:
            found = self._file.stat()
        except OSError:
            self._seen, self._now = None, self._base
            return
        seen = (found.st_mtime_ns, found.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            content = json.loads(self._file.read_text())
        except (OSError, ValueError) as error:
            raise BehaviourError(str(error)) from None
        if not isinstance(content, dict):
            raise BehaviourError("is not a JSON object")
        self._now = with_settings(self._base, content)


def _value(item: Field[Any], value: object) -> object:
    kind = str(item.type)
    text = str(value).strip()
    if kind == "bool":
        if text.lower() in ("true", "1", "yes", "on"):
            return True
        if text.lower() in ("false", "0", "no", "off", ""):
            return False
        raise BehaviourError(f"{item.name}: {text!r} is neither true nor false")
    if kind == "str":
        choices = item.metadata["choices"]
        if choices and text.partition(":")[0] not in choices:
            named = ", ".join(choice or "(empty)" for choice in choices)
            raise BehaviourError(f"{item.name}: {text!r} is not one of {named}")
        return str(value)
    number = {"true": "1", "false": "0"}.get(text.lower(), text)
    try:
        return int(number) if kind == "int" else float(number)
    except ValueError:
        raise BehaviourError(f"{item.name}: {text!r} is not a number") from None
