"""One model in llama.cpp's server engine, through xllamacpp; every method blocks.

xllamacpp releases the interpreter's lock while it loads, waits and generates, so these methods
belong in worker threads. Any number of threads may call them, until `close`.
"""

import contextlib
import http.client
import json
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from . import errors
from .options import Plan
from .scratch import Scratch
from .settings import Enum

log = logging.getLogger(__name__)

# For the engine's own HTTP routes (tokenising, templates): they answer in milliseconds, but wait
# for their turn between two batches.
HTTP_TIMEOUT = 60.0
HTTP_THREADS = 4
# The engine's log is written by a thread of its own, which may lag behind the exception.
LOG_SETTLE = 0.2
LOG_POLL = 0.02
LOG_TAIL = 6
STDERR = 2

Chunk = dict[str, Any]


def _engine_module() -> Any:
    import xllamacpp

    return xllamacpp


def _resolve(module: Any, value: Any) -> Any:
    if isinstance(value, Enum):
        return getattr(getattr(module, value.type), value.name)
    if isinstance(value, list):
        return [_resolve(module, item) for item in value]
    return value


def _parameters(plan: Plan, socket_path: Path, key: str) -> Any:
    """The engine's parameter object for a plan."""
    module = _engine_module()
    parameters = module.CommonParams()
    for path, value in plan.parameters.items():
        target = parameters
        *parents, name = path.split(".")
        for parent in parents:
            target = getattr(target, parent)
        try:
            setattr(target, name, _resolve(module, value))
        except (AttributeError, AssertionError, TypeError, ValueError, OverflowError) as error:
            raise errors.InvalidRequest(f"the engine refuses {path}={value!r}: {error}") from error
    if plan.adapters:
        adapters = []
        for path, scale in plan.adapters:
            adapter = module.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = path, scale
            adapters.append(adapter)
        parameters.lora_adapters = adapters
    parameters.hostnames = [str(socket_path)]
    parameters.api_keys = [key]
    parameters.n_threads_http = HTTP_THREADS
    parameters.endpoint_slots = False
    parameters.ui = False
    return parameters


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=HTTP_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """A loaded model."""

    def __init__(self, plan: Plan, scratch: Scratch) -> None:
        """Load the model.

        Raises:
            InvalidRequest: the engine does not take a parameter.
            EngineFailed: the load failed; the text ends with the engine's last log lines.
        """
        # A fresh name each time: the engine leaves its socket behind, and refuses to start on it.
        self._socket = scratch.new_socket()
        self._key = secrets.token_hex(16)
        parameters = _parameters(plan, self._socket, self._key)
        self._server = _start(plan, parameters, self._socket)

    def close(self) -> None:
        """Free the model. Nobody may be inside another method; calling it twice does nothing."""
        self._server = None
        self._socket.unlink(missing_ok=True)

    def generate(self, body: Mapping[str, Any], on_chunk: Callable[[Chunk], bool]) -> None:
        """Run one request (chat when it has `messages`); `on_chunk` returns True to stop it.

        Raises:
            BackendError: what the engine answered instead of text.
        """
        failure: list[Mapping[str, Any]] = []

        def receive(chunk: Chunk) -> bool:
            if "error" in chunk:
                failure.append(chunk["error"])
                return True
            return on_chunk(chunk)

        handle = (
            self._server.handle_chat_completions
            if "messages" in body
            else self._server.handle_completions
        )
        try:
            handle(dict(body), receive)
        except (RuntimeError, ValueError) as error:
            # Raised while the request is read: its shape, its media, its tools.
            raise errors.InvalidRequest(str(error)) from error
        if failure:
            raise errors.from_engine(failure[0])

    def embed(self, content: str | list[int]) -> tuple[list[list[float]], int]:
        """Vectors for one input (one, or one a token without pooling), and its token count."""
        answer = self._server.handle_embeddings({"input": content})
        if "error" in answer and "none" in str(answer["error"].get("message", "")):
            # OpenAI's form has no vectors per token; the engine's own route has.
            rows = self.http("/embedding", {"content": content})[0]["embedding"]
            return rows, len(rows)
        answer = _checked(answer)
        return [row["embedding"] for row in answer["data"]], answer["usage"]["prompt_tokens"]

    def rerank(self, query: str, documents: list[str], top_n: int) -> Chunk:
        """Score documents against a query: `results` with `index` and `relevance_score`."""
        body = {"query": query, "documents": documents, "top_n": top_n}
        answer: Chunk = _checked(self._server.handle_rerank(body))
        return answer

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token numbers of a text; `special` adds those the model wants at its ends."""
        body = {"content": text, "add_special": special, "parse_special": True}
        tokens: list[int] = self.http("/tokenize", body)["tokens"]
        return tokens

    def detokenize(self, tokens: list[int]) -> str:
        """The text of tokens."""
        text: str = self.http("/detokenize", {"tokens": tokens})["content"]
        return text

    def apply_template(self, messages: list[Chunk]) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        prompt: str = self.http("/apply-template", {"messages": messages})["prompt"]
        return prompt

    def properties(self) -> Chunk:
        """What the engine says about the loaded model."""
        found: Chunk = self.http("/props")
        return found

    def http(self, route: str, body: Any = None) -> Any:
        """Call one of the engine's own HTTP routes over its private socket."""
        connection = _UnixConnection(str(self._socket))
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        try:
            payload = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", route, payload, headers)
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise errors.EngineFailed(f"{route}: {error}") from error
        finally:
            connection.close()
        return _checked(answer)


def _checked(answer: Any) -> Any:
    if isinstance(answer, dict) and "error" in answer:
        raise errors.from_engine(answer["error"])
    return answer


def _start(plan: Plan, parameters: Any, socket_path: Path) -> Any:
    """Load the model; when that fails, load once more to hear why.

    The engine says why only on stderr. Listening there all the time would swallow the last words
    of a load that aborts the process, so only a load that failed without that is repeated.
    """
    server = _engine_module().Server
    started = time.monotonic()
    try:
        return server(parameters)
    except RuntimeError as first:
        log.warning("load failed after %.3f s: %s", time.monotonic() - started, first)
        socket_path.unlink(missing_ok=True)
        with _captured_stderr() as output:
            try:
                return server(parameters)
            except RuntimeError:
                reason = _tail(output)
    raise errors.EngineFailed(f"llama.cpp can not load {str(plan.path)!r}: {reason}")


_stderr_lock = threading.Lock()


@contextlib.contextmanager
def _captured_stderr() -> Iterator[BinaryIO]:
    """Catch what native code writes to stderr, and pass it on afterwards."""
    with _stderr_lock, tempfile.TemporaryFile() as output:
        saved = os.dup(STDERR)
        os.dup2(output.fileno(), STDERR)
        try:
            yield output
        finally:
            os.dup2(saved, STDERR)
            output.seek(0)
            os.write(saved, output.read() or b"")
            os.close(saved)


def _tail(output: BinaryIO) -> str:
    """The last error lines of the engine's log, once it is written."""
    deadline = time.monotonic() + LOG_SETTLE
    settled, size = threading.Event(), -1
    while time.monotonic() < deadline:
        now = os.fstat(output.fileno()).st_size
        if now == size and now > 0:
            break
        size = now
        settled.wait(LOG_POLL)
    output.seek(0)
    lines = output.read().decode("utf-8", "replace").splitlines()
    # `0.00.004.869 E llama_model_load: …`: the time and the level say nothing here.
    wanted = [line.split(" E ", 1)[-1].strip() for line in lines if " E " in line] or lines
    unique = list(dict.fromkeys(line for line in wanted if line))
    return "; ".join(unique[:LOG_TAIL]) or "it gave no reason"
