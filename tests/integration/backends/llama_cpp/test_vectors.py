"""Embeddings and reranking with the real engine."""

import math
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from corral.backend import backend_pb2 as pb
from tests.tools.llama_backend import Backend, backend
from tests.tools.tiny_gguf import write_tiny

DOCUMENTS = ["one two", "paris is the capital of france", "cat", "dog", "berlin"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vectors")


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Iterator[Backend]:
    model = write_tiny("embed", folder / "embed.gguf")
    with backend(f"unix:{folder}/embed.sock", folder / "embed") as running:
        assert running.load(model, Options=["parallel:2"]).success
        yield running


@pytest.fixture(scope="module")
def reranker(folder: Path) -> Iterator[Backend]:
    model = write_tiny("rerank", folder / "rerank.gguf")
    with backend(f"unix:{folder}/rerank.sock", folder / "rerank") as running:
        assert running.load(model, Reranking=True).success
        yield running


def test_one_normalised_vector_for_a_text(embedder: Backend) -> None:
    with embedder.stub() as stub:
        result = stub.Embedding(pb.PredictOptions(Embeddings="one two"))
        again = stub.Embedding(pb.PredictOptions(Prompt="one two"))
        other = stub.Embedding(pb.PredictOptions(Embeddings="paris"))
    assert result.dim == len(result.embeddings) == 64
    assert result.layout == pb.EMBEDDING_LAYOUT_FINAL
    assert result.tokens == result.prompt_tokens == 4
    assert math.isclose(sum(v * v for v in result.embeddings), 1.0, rel_tol=1e-4)
    assert list(again.embeddings) == list(result.embeddings) != list(other.embeddings)


def test_tokens_can_be_embedded(embedder: Backend) -> None:
    with embedder.stub() as stub:
        tokens = stub.TokenizeString(pb.PredictOptions(Prompt="paris")).tokens
        result = stub.Embedding(pb.PredictOptions(EmbeddingTokens=tokens))
    assert result.dim == 64
    assert result.tokens == len(tokens)


def test_the_whole_context_can_be_embedded(embedder: Backend) -> None:
    with embedder.stub() as stub:
        assert stub.Embedding(pb.PredictOptions(Embeddings="one " * 250)).tokens == 252
        with pytest.raises(grpc.RpcError) as caught:
            stub.Embedding(pb.PredictOptions(Embeddings="one " * 300))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_nothing_to_embed(embedder: Backend) -> None:
    with embedder.stub() as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Embedding(pb.PredictOptions())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_encoder_generates_nothing(embedder: Backend) -> None:
    with embedder.stub() as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Predict(pb.PredictOptions(Prompt="one"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_embedder_ranks_nothing(embedder: Backend) -> None:
    with embedder.stub() as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Rerank(pb.RerankRequest(query="a", documents=["b"]))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("top_n", [0, 1, 3, 9])
def test_documents_come_best_first(reranker: Backend, top_n: int) -> None:
    with reranker.stub() as stub:
        result = stub.Rerank(pb.RerankRequest(query="france", documents=DOCUMENTS, top_n=top_n))
    scores = [item.relevance_score for item in result.results]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == (min(top_n, 5) or 5)
    for item in result.results:
        assert item.text == DOCUMENTS[item.index]
    assert result.usage.prompt_tokens == result.usage.total_tokens > 0


def test_nothing_to_rank(reranker: Backend) -> None:
    with reranker.stub() as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Rerank(pb.RerankRequest(query="france"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("lines", "layout", "count"),
    [
        ([], pb.EMBEDDING_LAYOUT_FINAL, 64),
        (["pooling:none"], pb.EMBEDDING_LAYOUT_PER_TOKEN, 64 * 4),
    ],
)
def test_a_language_model_embeds_when_asked_to(
    folder: Path, tmp_path: Path, lines: list[str], layout: int, count: int
) -> None:
    model = write_tiny("count", folder / "count.gguf")
    with backend("127.0.0.1:0", tmp_path) as running:
        assert running.load(model, Embeddings=True, Options=lines).success
        with running.stub() as stub:
            result = stub.Embedding(pb.PredictOptions(Embeddings="one two three"))
            text = stub.Predict(pb.PredictOptions(Prompt="one two three", Tokens=2)).message
    assert (result.layout, result.dim, len(result.embeddings)) == (layout, 64, count)
    assert result.tokens == 4
    assert text == b" four five"
