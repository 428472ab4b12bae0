"""Text from the real engine: whole, streamed, constrained, stopped, several at once."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from corral.backend import backend_pb2 as pb
from corral.backend import backend_pb2_grpc
from tests.tools.llama_backend import CALL_TIMEOUT, Backend, backend
from tests.tools.tiny_gguf import write_tiny
from tests.tools.waiting import eventually

COUNT = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["x", "y"]},
        "numbers": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "numbers"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def counting(folder: Path) -> Iterator[Backend]:
    """Two slots with the counting model."""
    model = write_tiny("count", folder / "count.gguf")
    with backend(f"unix:{folder}/count.sock", folder / "count") as running:
        assert running.load(model, Options=["parallel:2"], ContextSize=4096).success
        yield running


@pytest.fixture(scope="module")
def babbling(folder: Path) -> Iterator[Backend]:
    """The random model, whose text is full of broken UTF-8."""
    model = write_tiny("random", folder / "random.gguf")
    with backend(f"unix:{folder}/random.sock", folder / "random") as running:
        assert running.load(model).success
        yield running


@asynccontextmanager
async def client(running: Backend) -> AsyncIterator["backend_pb2_grpc.BackendAsyncStub"]:
    async with grpc.aio.insecure_channel(running.address) as channel:
        yield backend_pb2_grpc.BackendStub(channel)


def options(prompt: str = "one two three", tokens: int = 3, **more: Any) -> pb.PredictOptions:
    return pb.PredictOptions(Prompt=prompt, Tokens=tokens, **more)


def chat(text: str, tokens: int = 3, **more: Any) -> pb.PredictOptions:
    messages = [pb.Message(role="user", content=text)]
    return pb.PredictOptions(UseTokenizerTemplate=True, Messages=messages, Tokens=tokens, **more)


async def predict(running: Backend, request: pb.PredictOptions) -> pb.Reply:
    async with client(running) as stub:
        return await stub.Predict(request, timeout=CALL_TIMEOUT)


async def stream(running: Backend, request: pb.PredictOptions) -> list[pb.Reply]:
    async with client(running) as stub:
        return [reply async for reply in stub.PredictStream(request, timeout=CALL_TIMEOUT)]


async def failure(running: Backend, request: pb.PredictOptions) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await predict(running, request)
    return caught.value


async def test_greedy_text_and_counts(counting: Backend) -> None:
    reply = await predict(counting, options())
    assert reply.message == b" four five six"
    assert (reply.tokens, reply.prompt_tokens) == (3, 4)
    assert reply.timing_prompt_processing > 0
    assert reply.timing_token_generation > 0


async def test_stream_comes_in_pieces_and_ends_with_the_counts(counting: Backend) -> None:
    replies = await stream(counting, options())
    assert [reply.message for reply in replies] == [b" four", b" five", b" six", b""]
    assert [reply.tokens for reply in replies] == [1, 2, 3, 3]
    assert replies[-1].prompt_tokens == 4
    assert replies[-1].timing_token_generation > 0


@pytest.mark.parametrize("seed", [1, 2, 7, 42, 1234])
async def test_stream_and_whole_are_the_same_bytes(babbling: Backend, seed: int) -> None:
    request = options("hello", 80, Temperature=1.0, Seed=seed, TopK=-1, TopP=1.0, MinP=-1.0)
    whole = await predict(babbling, request)
    replies = await stream(babbling, request)
    assert b"".join(reply.message for reply in replies) == whole.message
    assert replies[-1].tokens == whole.tokens
    for reply in replies:
        reply.message.decode()  # no character is ever split
    assert len(whole.message) > 40


async def test_same_seed_same_text_other_seed_other_text(babbling: Backend) -> None:
    texts = [
        (await predict(babbling, options("hello", 40, Temperature=1.0, Seed=seed))).message
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


async def test_sampling_reaches_the_engine(counting: Backend) -> None:
    biased = await predict(counting, options(LogitBias='{"262": -100}'))
    assert b"four" not in biased.message
    greedy = await predict(counting, options(Temperature=0.0))
    assert greedy.message == b" four five six"


@pytest.mark.parametrize(
    ("stops", "text"),
    [
        (["seven"], " four five six "),
        (["five", "six"], " four "),
        ([" four five six seven eight"], ""),
        (["six seven eight", "nine ten"], " four five "),
    ],
)
async def test_stop_words(counting: Backend, stops: list[str], text: str) -> None:
    request = options(tokens=8, StopPrompts=stops)
    assert (await predict(counting, request)).message.decode() == text
    assert b"".join(r.message for r in await stream(counting, request)).decode() == text


@pytest.mark.parametrize("request_of", [options, chat])
async def test_text_held_for_a_stop_word_is_not_lost(counting: Backend, request_of: Any) -> None:
    request = request_of("one two three", 3, StopPrompts=["six seven", "three four"])
    expected = " four five six" if request_of is options else " one two three"
    assert (await predict(counting, request)).message.decode() == expected


async def test_stop_words_end_the_work(counting: Backend) -> None:
    reply = await predict(counting, options(tokens=4000, StopPrompts=["six"], IgnoreEOS=True))
    assert reply.message == b" four five "
    assert reply.tokens < 100


async def test_grammar(counting: Backend) -> None:
    grammar = 'root ::= " seven" (" two" | " nine") " two"'
    reply = await predict(counting, options(tokens=16, Grammar=grammar))
    assert reply.message in (b" seven two two", b" seven nine two")


async def test_bad_grammar_is_the_callers_fault(counting: Backend) -> None:
    error = await failure(counting, options(Grammar="root ::= ("))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "grammar" in (error.details() or "")


@pytest.mark.parametrize("model", ["counting", "babbling"])
@pytest.mark.parametrize("request_of", [options, chat])
@pytest.mark.parametrize(
    "metadata",
    [
        {"json_schema": json.dumps(SCHEMA)},
        {
            "response_format": json.dumps(
                {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
            )
        },
    ],
)
async def test_json_schema(
    model: str, request_of: Any, metadata: dict[str, str], request: pytest.FixtureRequest
) -> None:
    running = request.getfixturevalue(model)
    asked = request_of("one", 200, Metadata=metadata, Temperature=1.0, Seed=3)
    answer = json.loads((await predict(running, asked)).message)
    assert answer["name"] in ("x", "y")
    assert 1 <= len(answer["numbers"]) <= 3
    assert set(map(type, answer["numbers"])) == {bool}


async def test_schema_that_the_tokenizer_can_not_follow(counting: Backend) -> None:
    schema = json.dumps({"type": "string", "pattern": "^a+$"})
    error = await failure(counting, options(Metadata={"json_schema": schema}))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "pattern" in (error.details() or "")


@pytest.mark.parametrize("request_of", [options, chat])
async def test_logprobs(counting: Backend, request_of: Any) -> None:
    request = request_of("one two three", 3, Logprobs=1, TopLogprobs=2)
    whole = await predict(counting, request)
    content = json.loads(whole.logprobs)["content"]
    assert "".join(entry["token"] for entry in content) == whole.message.decode()
    for entry in content:
        assert entry["logprob"] <= 0
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 2
    replies = await stream(counting, request)
    streamed = [e for r in replies if r.logprobs for e in json.loads(r.logprobs)["content"]]
    assert [e["token"] for e in streamed] == [e["token"] for e in content]


async def test_chat_uses_the_models_template(counting: Backend) -> None:
    reply = await predict(counting, chat("one two three"))
    # "user: one two three\nassistant:" does not end in a word, so the count starts again.
    assert reply.message == b" one two three"
    assert reply.prompt_tokens > 10
    assert [delta.content for delta in reply.chat_deltas] == [" one two three"]
    replies = await stream(counting, chat("one two three"))
    deltas = [delta.content for reply in replies for delta in reply.chat_deltas]
    assert "".join(deltas) == " one two three"
    assert len(deltas) == 3


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (chat("x", Tools="{"), "Tools"),
        (chat("x", Tools='{"a": 1}'), "tools"),
        (options(LogitBias="{"), "LogitBias"),
        (options(Metadata={"json_schema": "{"}), "json_schema"),
        (options(Metadata={"response_format": '{"type": "xml"}'}), "response_format"),
        (options(Grammar="root ::= [a]", Metadata={"json_schema": "{}"}), "not both"),
        (chat("x", Images=["aGk="]), "image"),
        (options(Images=["aGk="]), "multimodal"),
    ],
)
async def test_bad_requests(counting: Backend, request_: pb.PredictOptions, word: str) -> None:
    error = await failure(counting, request_)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert word in (error.details() or "")


async def test_prompt_too_long(counting: Backend) -> None:
    error = await failure(counting, options("one " * 3000))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "n_prompt=3002" in (error.details() or "")
    assert "n_ctx=2048" in (error.details() or "")


async def test_identity(counting: Backend) -> None:
    assert (await predict(counting, options(ModelIdentity="count.gguf"))).message
    error = await failure(counting, options(ModelIdentity="other"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "model identity mismatch" in (error.details() or "")


async def test_tokens_there_and_back(counting: Backend) -> None:
    async with client(counting) as stub:
        for text in ("one two three", "Grüße, 世界 🙂", " twenty"):
            answer = await stub.TokenizeString(pb.PredictOptions(Prompt=text))
            assert answer.length == len(answer.tokens) > 0
            back = await stub.Detokenize(pb.DetokenizeRequest(tokens=answer.tokens))
            assert back.content.strip() == text.strip()


async def test_eight_streams_on_two_slots(counting: Backend) -> None:
    async with client(counting) as stub:

        async def one(number: int) -> bytes:
            request = options(f"one {COUNT[number]}", 40, IgnoreEOS=True)
            return b"".join([r.message async for r in stub.PredictStream(request, timeout=60)])

        texts = await asyncio.gather(*(one(number) for number in range(8)))
    for number, text in enumerate(texts):
        words = text.decode().split()
        assert len(words) == 40
        assert words[0] == COUNT[number + 1]


async def test_health_and_status_while_it_generates(counting: Backend) -> None:
    async with client(counting) as stub:
        call = stub.PredictStream(options(tokens=1500, IgnoreEOS=True))
        await call.read()
        assert (await stub.Health(pb.HealthMessage(), timeout=5)).message == b"OK"
        busy = await stub.Status(pb.HealthMessage(), timeout=5)
        call.cancel()
        assert busy.state == pb.StatusResponse.BUSY
        assert busy.memory.total > 10_000_000

        async def ready() -> bool:
            status = await stub.Status(pb.HealthMessage(), timeout=5)
            return status.state == pb.StatusResponse.READY

        await eventually(ready, timeout=CALL_TIMEOUT, what="the slot is free again")


async def test_metrics_and_metadata(counting: Backend) -> None:
    async with client(counting) as stub:
        before = await stub.GetMetrics(pb.MetricsRequest())
        # Four tokens; the one before the text starts every prompt, so it has already been read.
        await stub.Predict(options("ten nine eight"))
        after = await stub.GetMetrics(pb.MetricsRequest())
        assert after.tokens_generated == before.tokens_generated + 3
        assert after.prompt_tokens_processed == before.prompt_tokens_processed + 3
        assert after.tokens_per_second > 0
        about = await stub.ModelMetadata(pb.ModelOptions())
    assert about.rendered_template == "user: Hello\nassistant:"
    assert not about.supports_thinking
    assert not about.media_marker


async def test_what_is_not_offered(counting: Backend) -> None:
    async with client(counting) as stub:
        for call, code in (
            (stub.TTS(pb.TTSRequest()), grpc.StatusCode.UNIMPLEMENTED),
            (stub.Embedding(options()), grpc.StatusCode.FAILED_PRECONDITION),
            (
                stub.Rerank(pb.RerankRequest(query="a", documents=["b"])),
                grpc.StatusCode.FAILED_PRECONDITION,
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is code
