"""PredictOptions as the body of a llama.cpp request.

Proto3 cannot distinguish 0 from unset. `Temperature` 0 means greedy; 0 in any other sampler means
llama.cpp's default. A negative `TopK`, `MinP` or `Seed` means off, off and random.
"""

import json
import re
from typing import Any

from google.protobuf.message import Message

from corral.backend import backend_pb2 as pb

from .errors import InvalidRequest, Unsupported
from .schema import UnsupportedSchemaError, to_grammar

Body = dict[str, Any]

# PredictOptions field -> llama.cpp name; sent when it is not 0.
_NUMBERS = {
    "TopP": "top_p",
    "TypicalP": "typical_p",
    "Penalty": "repeat_penalty",
    "Repeat": "repeat_last_n",
    "FrequencyPenalty": "frequency_penalty",
    "PresencePenalty": "presence_penalty",
    "Mirostat": "mirostat",
    "MirostatETA": "mirostat_eta",
    "MirostatTAU": "mirostat_tau",
    "NKeep": "n_keep",
    "NDraft": "speculative.n_max",
}
_WORD_TRIGGER = 1
# What a caller might rely on and llama.cpp does not do.
IGNORED = ("NegativePrompt", "PromptCachePath", "TailFreeSamplingZ")


def ignored_fields(request: pb.PredictOptions) -> list[str]:
    """Names of the fields that are set and have no effect."""
    return [name for name in IGNORED if getattr(request, name)]


def parse_json(text: str, what: str) -> Any:
    """Decode a JSON field.

    Raises:
        InvalidRequest: naming the field.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{what} is not JSON: {error}") from error


def schema_of(request: pb.PredictOptions) -> Any | None:
    """The JSON schema the answer must follow: Metadata `json_schema` or `response_format`.

    `response_format` is OpenAI's object: `{"type": "json_object"}`, or `{"type": "json_schema",
    "json_schema": {"schema": …}}`.
    """
    if text := request.Metadata.get("json_schema"):
        return parse_json(text, "Metadata[json_schema]")
    text = request.Metadata.get("response_format", "")
    if not text:
        return None
    wanted = (
        parse_json(text, "Metadata[response_format]") if text.startswith("{") else {"type": text}
    )
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return wanted.get("schema", {"type": "object"})
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        if isinstance(inner, dict) and isinstance(inner.get("schema", inner), dict):
            return inner.get("schema", inner)
    raise InvalidRequest(
        "Metadata[response_format] must be text, json_object or json_schema with a schema"
    )


def is_chat(request: pb.PredictOptions) -> bool:
    """Whether the model's own chat template makes the prompt."""
    return request.UseTokenizerTemplate and len(request.Messages) > 0


def body(
    request: pb.PredictOptions,
    triggers: tuple[str, ...] = (),
    *,
    strict_engine: bool = True,
    reuse: bool = True,
) -> Body:
    """The request for llama.cpp, without stop words: these are matched in this process.

    `strict_engine`: the engine's own JSON schemas work with this model's vocabulary. `reuse`: the part
    of the prompt that a slot has read already is not read again.

    Raises:
        InvalidRequest: a field cannot be understood.
        Unsupported: video input.
    """
    if request.Videos:
        raise Unsupported("Videos: this backend takes images and audio only")
    out: Body = {
        "stream": True,
        # Counts in every chunk: a request that a stop word ends has no last chunk.
        "timings_per_token": True,
        "cache_prompt": reuse,
        "n_predict": request.Tokens if request.Tokens > 0 else -1,
        "temperature": max(request.Temperature, 0.0),
    }
    for name, key in _NUMBERS.items():
        if value := getattr(request, name):
            out[key] = value
    if request.TopK:
        out["top_k"] = max(request.TopK, 0)
    if request.MinP:
        out["min_p"] = max(request.MinP, 0.0)
    if request.Seed:
        out["seed"] = request.Seed if request.Seed > 0 else -1
    if request.IgnoreEOS:
        out["ignore_eos"] = True
    if request.LogitBias:
        out["logit_bias"] = parse_json(request.LogitBias, "LogitBias")
    _constrain(out, request, triggers, strict_engine)
    if is_chat(request):
        _chat(out, request)
    else:
        _completion(out, request)
    return out


def _constrain(
    out: Body, request: pb.PredictOptions, triggers: tuple[str, ...], strict_engine: bool
) -> None:
    schema = schema_of(request)
    if request.Grammar and schema is not None:
        raise InvalidRequest("give either Grammar or a JSON schema, not both")
    if schema is not None:
        _follow(out, schema, strict_engine)
    if request.Grammar:
        out["grammar"] = request.Grammar
        if triggers:
            # The grammar starts to bind where one of the words comes up.
            out["grammar_lazy"] = True
            out["grammar_triggers"] = [{"type": _WORD_TRIGGER, "value": w} for w in triggers]
            out["preserved_tokens"] = list(triggers)


def _follow(out: Body, schema: Any, strict_engine: bool) -> None:
    """Constrain the answer to a schema, with a grammar if one can express it."""
    try:
        out["grammar"] = to_grammar(schema)
    except UnsupportedSchemaError as error:
        if not strict_engine:
            raise InvalidRequest(
                f"the JSON schema is too much for this model's tokenizer: {error}; leave that out"
            ) from error
        out["json_schema"] = schema


def _completion(out: Body, request: pb.PredictOptions) -> None:
    if count := max(request.Logprobs, request.TopLogprobs):
        out["logprobs"] = count
    media = [_base64(item) for item in (*request.Images, *request.Audios)]
    out["prompt"] = (
        {"prompt_string": request.Prompt, "multimodal_data": media} if media else request.Prompt
    )


def _chat(out: Body, request: pb.PredictOptions) -> None:
    out["messages"] = [_message(message) for message in request.Messages]
    _attach_media(out["messages"], request)
    out["stream_options"] = {"include_usage": True}
    if count := max(request.Logprobs, request.TopLogprobs):
        out["logprobs"] = True
        out["top_logprobs"] = count
    # As in LocalAI: a grammar from the caller replaces the one the tools would make.
    if request.Tools and not request.Grammar:
        out["tools"] = parse_json(request.Tools, "Tools")
        out["tool_choice"] = _tool_choice(request.ToolChoice)
    kwargs: dict[str, Any] = {}
    if text := request.Metadata.get("enable_thinking"):
        kwargs["enable_thinking"] = text.lower() == "true"
    if text := request.Metadata.get("reasoning_effort"):
        kwargs["reasoning_effort"] = text
    if text := request.Metadata.get("chat_template_kwargs"):
        given = parse_json(text, "Metadata[chat_template_kwargs]")
        if not isinstance(given, dict):
            raise InvalidRequest("Metadata[chat_template_kwargs] must be a JSON object")
        kwargs.update(given)
    if kwargs:
        out["chat_template_kwargs"] = kwargs


def _message(message: Message) -> Body:
    """One conversation turn in OpenAI's form."""
    assert isinstance(message, pb.Message)
    out: Body = {"role": message.role, "content": message.content}
    for key in ("name", "tool_call_id", "reasoning_content"):
        if value := getattr(message, key):
            out[key] = value
    if message.tool_calls:
        out["tool_calls"] = parse_json(message.tool_calls, "Messages.tool_calls")
    return out


def _tool_choice(text: str) -> str:
    if not text:
        return "auto"
    try:
        choice = json.loads(text)
    except ValueError:
        choice = text
    # llama.cpp knows only words; naming one function means that a call must come.
    return choice if isinstance(choice, str) else "required"


_DATA_URI = re.compile(r"^data:[^,]*;base64,")
_IMAGE_KINDS = {"/9j/": "jpeg", "iVBOR": "png", "R0lGOD": "gif", "UklGR": "webp"}


def _base64(item: str) -> str:
    return _DATA_URI.sub("", item, count=1)


def _attach_media(messages: list[Body], request: pb.PredictOptions) -> None:
    """Put images and audio into the last user message, where OpenAI's form has them."""
    parts: list[Body] = []
    for image in map(_base64, request.Images):
        kind = next((k for start, k in _IMAGE_KINDS.items() if image.startswith(start)), "png")
        parts.append(
            {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}}
        )
    for audio in map(_base64, request.Audios):
        kind = "mp3" if audio.startswith(("SUQz", "//")) else "wav"
        parts.append({"type": "input_audio", "input_audio": {"data": audio, "format": kind}})
    if not parts:
        return
    for message in reversed(messages):
        if message["role"] == "user":
            text = message["content"]
            message["content"] = [*([{"type": "text", "text": text}] if text else []), *parts]
            return
    raise InvalidRequest("Images and Audios need a user message to belong to")
