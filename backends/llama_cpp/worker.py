"""The process that llama.cpp runs in; the backend starts it as a plain program, next to itself.

xllamacpp holds the interpreter's lock while it loads and frees a model, and native code may abort
the process at any time. So the engine has a process of its own, and the backend always answers.

Protocol: one line of JSON on stdin (`parameters`, `adapters`, `socket`, `key`, `threads`), one
line on stdout (`loaded`, `refused REASON` or `failed REASON`), then the engine serves HTTP on the
socket until stdin ends. It uses nothing of the package, so that it starts quickly.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1
FAILED, REFUSED, INCOMPLETE = 1, 2, 3


def _die_with(parent: int) -> None:
    """Be killed when the backend is, even in the middle of a load."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(FAILED)


def _answer(descriptor: int, word: str, reason: str = "") -> None:
    os.write(descriptor, f"{word} {json.dumps(reason) if reason else ''}".strip().encode() + b"\n")


def _resolve(module: Any, value: Any) -> Any:
    """Turn `{"enum": [type, name]}` into the engine's value."""
    if isinstance(value, list):
        return [_resolve(module, item) for item in value]
    if isinstance(value, dict) and set(value) == {"enum"}:
        kind, name = value["enum"]
        return getattr(getattr(module, kind), name)
    return value


def _set(target: Any, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        target = getattr(target, parent)
    setattr(target, name, value)


def _parameters(module: Any, order: dict[str, Any]) -> Any:
    """The engine's parameter object; raises ValueError for what it does not take."""
    parameters = module.CommonParams()
    for path, given in order["parameters"].items():
        try:
            _set(parameters, path, _resolve(module, given))
        except (AttributeError, AssertionError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the engine refuses {path}={given!r}: {error}") from error
    adapters = []
    for path, scale in order["adapters"]:
        adapter = module.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = path, scale
        adapters.append(adapter)
    if adapters:
        parameters.lora_adapters = adapters
    parameters.hostnames = [order["socket"]]
    parameters.api_keys = [order["key"]]
    parameters.n_threads_http = order["threads"]
    # Pings would look like the first token of a prompt that is still being read.
    parameters.sse_ping_interval = -1
    parameters.ui = False
    return parameters


def main() -> int:
    """Load the model that stdin names, and serve it until stdin ends."""
    _die_with(int(sys.argv[1]))
    # The backend ends this process; a Ctrl-C for the whole group must not.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # llama.cpp sometimes prints to stdout; only the answer may go there.
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        import xllamacpp
    except ImportError as error:
        sys.stderr.write(
            f"llama-cpp: xllamacpp can not be imported: {error}; "
            "run: pip install 'corral[llama-cpp]'\n"
        )
        return INCOMPLETE
    line = sys.stdin.readline()
    if not line:
        return 0
    try:
        parameters = _parameters(xllamacpp, json.loads(line))
    except ValueError as error:
        _answer(answer, "refused", str(error))
        return REFUSED
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        _answer(answer, "failed", str(error))
        return FAILED
    _answer(answer, "loaded")
    sys.stdin.read()
    del server
    return 0


if __name__ == "__main__":
    code = main()
    if code:
        sys.exit(code)  # waits for the engine's log to be written
    os._exit(code)  # nothing to save, and no time to lose
