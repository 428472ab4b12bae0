"""PredictOptions as a request for llama.cpp."""

import json
from typing import Any

import pytest

from backends.llama_cpp import sampling
from backends.llama_cpp.errors import InvalidRequest, Unsupported
from corral.backend import backend_pb2 as pb

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def body(**fields: Any) -> dict[str, Any]:
    return sampling.body(pb.PredictOptions(**fields))


def chat(**fields: Any) -> dict[str, Any]:
    messages = [pb.Message(role="system", content="s"), pb.Message(role="user", content="u")]
    return body(UseTokenizerTemplate=True, Messages=messages, **fields)


def test_the_least() -> None:
    assert body(Prompt="p") == {
        "prompt": "p",
        "stream": True,
        "timings_per_token": True,
        "cache_prompt": True,
        "n_predict": -1,
        "temperature": 0.0,
    }


@pytest.mark.parametrize(
    ("fields", "key", "value"),
    [
        ({"Tokens": 5}, "n_predict", 5),
        ({"Tokens": -5}, "n_predict", -1),
        ({"Temperature": 0.5}, "temperature", 0.5),
        ({"Temperature": -1.0}, "temperature", 0.0),
        ({"TopK": 7}, "top_k", 7),
        ({"TopK": -1}, "top_k", 0),
        ({"TopP": 0.5}, "top_p", 0.5),
        ({"MinP": -1.0}, "min_p", 0.0),
        ({"TypicalP": 0.5}, "typical_p", 0.5),
        ({"Penalty": 1.5}, "repeat_penalty", 1.5),
        ({"Repeat": 32}, "repeat_last_n", 32),
        ({"FrequencyPenalty": 0.5}, "frequency_penalty", 0.5),
        ({"PresencePenalty": 0.5}, "presence_penalty", 0.5),
        ({"Mirostat": 2}, "mirostat", 2),
        ({"MirostatETA": 0.5}, "mirostat_eta", 0.5),
        ({"MirostatTAU": 0.5}, "mirostat_tau", 0.5),
        ({"NKeep": 4}, "n_keep", 4),
        ({"Seed": 3}, "seed", 3),
        ({"Seed": -1}, "seed", -1),
        ({"IgnoreEOS": True}, "ignore_eos", True),
        ({"LogitBias": '{"5": -1}'}, "logit_bias", {"5": -1}),
        ({"Grammar": "root ::= [a]"}, "grammar", "root ::= [a]"),
        ({"Logprobs": 1}, "logprobs", 1),
        ({"Logprobs": 1, "TopLogprobs": 4}, "logprobs", 4),
    ],
)
def test_mapping(fields: dict[str, Any], key: str, value: Any) -> None:
    assert body(Prompt="p", **fields)[key] == value


@pytest.mark.parametrize("name", ["TopK", "TopP", "MinP", "Seed", "Penalty", "Repeat", "Mirostat"])
def test_zero_is_the_engines_default(name: str) -> None:
    assert body(Prompt="p", **{name: 0}) == body(Prompt="p")


def test_stop_words_stay_here() -> None:
    assert "stop" not in body(Prompt="p", StopPrompts=["x"])


def test_chat() -> None:
    made = chat(Tokens=3)
    assert "prompt" not in made
    assert [m["content"] for m in made["messages"]] == ["s", "u"]
    assert made["stream_options"] == {"include_usage": True}
    # Without the flag, or without messages, the prompt counts.
    assert "prompt" in body(Messages=[pb.Message(role="user", content="u")])
    assert "prompt" in body(UseTokenizerTemplate=True, Prompt="p")


def test_chat_messages_keep_their_parts() -> None:
    message = pb.Message(
        role="assistant",
        content="c",
        name="n",
        tool_call_id="i",
        reasoning_content="r",
        tool_calls='[{"id": "1"}]',
    )
    made = body(UseTokenizerTemplate=True, Messages=[message])["messages"][0]
    assert made == {
        "role": "assistant",
        "content": "c",
        "name": "n",
        "tool_call_id": "i",
        "reasoning_content": "r",
        "tool_calls": [{"id": "1"}],
    }


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        ("", "auto"),
        ("none", "none"),
        ('"required"', "required"),
        ('{"type": "function", "function": {"name": "f"}}', "required"),
    ],
)
def test_tools(choice: str, sent: str) -> None:
    made = chat(Tools='[{"type": "function"}]', ToolChoice=choice)
    assert made["tools"] == [{"type": "function"}]
    assert made["tool_choice"] == sent


def test_a_grammar_replaces_tools() -> None:
    assert "tools" not in chat(Tools="[{}]", Grammar="root ::= [a]")


def test_template_arguments() -> None:
    metadata = {"enable_thinking": "true", "chat_template_kwargs": '{"x": 1}'}
    assert chat(Metadata=metadata)["chat_template_kwargs"] == {"enable_thinking": True, "x": 1}


def test_media() -> None:
    made = chat(Images=["iVBORw0"], Audios=["UklG"])["messages"][-1]["content"]
    assert made[0] == {"type": "text", "text": "u"}
    assert made[1]["image_url"]["url"] == "data:image/png;base64,iVBORw0"
    assert made[2]["input_audio"] == {"data": "UklG", "format": "wav"}
    uri = chat(Images=["data:image/jpeg;base64,/9j/4A"])["messages"][-1]["content"][1]
    assert uri["image_url"]["url"] == "data:image/jpeg;base64,/9j/4A"
    prompt = body(Prompt="p", Images=["a"], Audios=["b"])["prompt"]
    assert prompt == {"prompt_string": "p", "multimodal_data": ["a", "b"]}


@pytest.mark.parametrize(
    ("metadata", "schema"),
    [
        ({}, None),
        ({"response_format": "text"}, None),
        ({"response_format": '{"type": "text"}'}, None),
        ({"response_format": '{"type": "json_object"}'}, {"type": "object"}),
        ({"response_format": "json_object"}, {"type": "object"}),
        ({"json_schema": json.dumps(SCHEMA)}, SCHEMA),
        (
            {
                "response_format": json.dumps(
                    {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
                )
            },
            SCHEMA,
        ),
    ],
)
def test_schemas(metadata: dict[str, str], schema: Any) -> None:
    assert sampling.schema_of(pb.PredictOptions(Metadata=metadata)) == schema


def test_schemas_that_no_grammar_can_say_go_to_the_engine() -> None:
    hard = pb.PredictOptions(Metadata={"json_schema": '{"type": "string", "pattern": "a"}'})
    assert sampling.body(hard)["json_schema"] == {"type": "string", "pattern": "a"}
    with pytest.raises(InvalidRequest, match="pattern"):
        sampling.body(hard, strict_engine=False)


def test_triggers_make_a_grammar_lazy() -> None:
    request = pb.PredictOptions(Prompt="p", Grammar="root ::= [a]")
    made = sampling.body(request, ("w",))
    assert made["grammar_lazy"] is True
    assert made["grammar_triggers"] == [{"type": 1, "value": "w"}]
    assert "grammar_lazy" not in sampling.body(pb.PredictOptions(Prompt="p"), ("w",))


def test_refusals() -> None:
    with pytest.raises(Unsupported):
        body(Prompt="p", Videos=["v"])
    with pytest.raises(InvalidRequest, match="not both"):
        body(Prompt="p", Grammar="root ::= [a]", Metadata={"json_schema": "{}"})
    with pytest.raises(InvalidRequest, match="user message"):
        body(
            UseTokenizerTemplate=True,
            Messages=[pb.Message(role="system", content="s")],
            Images=["i"],
        )


def test_what_has_no_effect_is_named() -> None:
    request = pb.PredictOptions(NegativePrompt="n", TailFreeSamplingZ=0.5, Threads=4)
    assert sampling.ignored_fields(request) == ["NegativePrompt", "TailFreeSamplingZ"]
