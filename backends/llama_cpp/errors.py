"""One exception for each kind of error, without gRPC."""

import re
from collections.abc import Mapping
from typing import Any


class BackendError(Exception):
    """A failure whose text is meant for the caller."""


class InvalidRequest(BackendError):
    """The request can never succeed as it is; the text names the remedy."""


class Missing(BackendError):
    """A file that the request names does not exist."""


class BadModel(BackendError):
    """The model's file exists and can not be used."""


class IdentityMismatch(BackendError):
    """The request is meant for another model than the one loaded here."""


class NotLoaded(BackendError):
    """No model is loaded."""


class WrongState(BackendError):
    """The request is valid, but not for the model that is loaded, or not the way it is loaded."""


class Unsupported(BackendError):
    """This backend can not do that at all with this kind of model."""


class Exhausted(BackendError):
    """A limit was reached; the same request may succeed later."""


class Unloaded(BackendError):
    """The model was unloaded while the request ran."""


class EngineFailed(BackendError):
    """llama.cpp failed in a way it does not explain as the caller's fault."""


class EngineGone(EngineFailed):
    """The engine's process broke off in the middle of an answer; this backend is about to end too."""


_MORE_CONTEXT = (
    "shorten the prompt, or load the model with a larger ContextSize, fewer parallel slots, "
    "or Options kv_unified:true"
)
# llama.cpp reports what it dislikes while reading a request as a server error.
_CALLERS_FAULT = re.compile(
    r"(Failed to parse|Failed to load (image|audio)|\w+ input is not supported|unsupported |invalid "
    r"|Cannot |Only |Expected |Missing |Unable to generate parser|Assistant response prefill)",
    re.IGNORECASE,
)
_BY_TYPE: dict[str, type[BackendError]] = {
    "invalid_request_error": InvalidRequest,
    "exceed_context_size_error": InvalidRequest,
    "not_supported_error": WrongState,
    "unavailable_error": Unloaded,
}


def from_engine(error: Mapping[str, Any]) -> BackendError:
    """Translate the `error` object of a llama.cpp answer; the only place that reads one."""
    text = str(error.get("message") or "llama.cpp gave no reason")
    kind = str(error.get("type", ""))
    if kind == "exceed_context_size_error":
        prompt, limit = error.get("n_prompt_tokens"), error.get("n_ctx")
        return InvalidRequest(
            f"prompt too long: n_prompt={prompt} tokens, n_ctx={limit}; {_MORE_CONTEXT}"
        )
    if "too large to process" in text:
        return InvalidRequest(f"{text}; load the model with a larger NBatch")
    if "Context size has been exceeded" in text:
        return Exhausted(f"the context shared by all slots is full; {_MORE_CONTEXT}")
    if "does not support logits" in text:
        return Unsupported("this model makes embeddings; it can not generate text")
    if kind == "server_error" and _CALLERS_FAULT.match(text):
        return InvalidRequest(text)
    return _BY_TYPE.get(kind, EngineFailed)(text)
