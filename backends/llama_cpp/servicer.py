"""The RPCs of `backend.Backend` that this backend serves; the others answer UNIMPLEMENTED."""

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from grpc import aio

from corral.backend import backend_pb2 as pb

from . import errors, metadata, sampling
from .counters import resident_bytes
from .generation import generate
from .model import Model, ModelHost, State
from .replies import Whole

log = logging.getLogger(__name__)

SERVICE = "backend.Backend"
LOADED = "Loading succeeded"
INT32 = 2**31 - 1

Context: TypeAlias = "aio.ServicerContext[Any, Any]"


class BackendServicer:
    """Checks, calls the model, converts."""

    def __init__(self, host: ModelHost) -> None:
        """Serve the model that `host` holds."""
        self._host = host
        self._reported: set[str] = set()

    async def Health(self, _: pb.HealthMessage, __: Context) -> pb.Reply:
        """The process serves, with or without a model."""
        return pb.Reply(message=b"OK")

    async def LoadModel(self, request: pb.ModelOptions, _: Context) -> pb.Result:
        """Load a model; the same options again change nothing."""
        try:
            model = await self._host.load(request)
        except errors.EngineFailed as error:
            return pb.Result(success=False, message=f"Error loading model: {error}")
        ignored = ", ".join(model.plan.ignored)
        return pb.Result(
            success=True, message=f"{LOADED}; ignored: {ignored}" if ignored else LOADED
        )

    async def Free(self, _: pb.HealthMessage, __: Context) -> pb.Result:
        """Unload the model, ending its requests; without one there is nothing to do."""
        freed = await self._host.free()
        return pb.Result(success=True, message="Model freed" if freed else "No model was loaded")

    async def Predict(self, request: pb.PredictOptions, _: Context) -> pb.Reply:
        """Generate, and answer with everything at once."""
        whole = Whole()
        async with generate(self._generating(request), request) as replies:
            async for reply in replies:
                whole.add(reply)
        return whole.reply()

    async def PredictStream(self, request: pb.PredictOptions, context: Context) -> None:
        """Generate, token by token; the last message carries the final counts."""
        # Written here instead of yielded: a cancelled call then leaves the block at once.
        async with generate(self._generating(request), request) as replies:
            async for reply in replies:
                await context.write(reply)

    async def Embedding(self, request: pb.PredictOptions, _: Context) -> pb.EmbeddingResult:
        """One vector for a text or its tokens; one a token when the model does not pool."""
        model = self._host.require(request.ModelIdentity)
        if not model.plan.parameters.get("embedding"):
            raise errors.WrongState(
                "the model was not loaded for embeddings; load it with Embeddings: true"
            )
        content: str | list[int] = list(request.EmbeddingTokens)
        content = content or request.Embeddings or request.Prompt
        if not content:
            raise errors.InvalidRequest("nothing to embed: set Embeddings, or EmbeddingTokens")
        rows, tokens = await model.in_slot(lambda: model.engine.embed(content))
        model.counters.prompt_tokens += tokens
        layout = pb.EMBEDDING_LAYOUT_FINAL if len(rows) == 1 else pb.EMBEDDING_LAYOUT_PER_TOKEN
        return pb.EmbeddingResult(
            embeddings=[value for row in rows for value in row],
            tokens=tokens,
            prompt_tokens=tokens,
            dim=len(rows[0]),
            layout=layout,
        )

    async def TokenizeString(
        self, request: pb.PredictOptions, _: Context
    ) -> pb.TokenizationResponse:
        """The prompt's tokens, without those that the model adds at its ends."""
        model = self._host.require(request.ModelIdentity)
        tokens = await model.call(model.engine.tokenize(request.Prompt, special=False))
        return pb.TokenizationResponse(length=len(tokens), tokens=tokens)

    async def Detokenize(self, request: pb.DetokenizeRequest, _: Context) -> pb.DetokenizeResponse:
        """The text of tokens."""
        model = self._host.require()
        text = await model.call(model.engine.detokenize(list(request.tokens)))
        return pb.DetokenizeResponse(content=text)

    async def Rerank(self, request: pb.RerankRequest, _: Context) -> pb.RerankResult:
        """Order documents by how well they answer the query, best first."""
        model = self._host.require(request.ModelIdentity)
        documents = list(request.documents)
        if not documents:
            raise errors.InvalidRequest("documents: there is nothing to rank")
        top = request.top_n if 0 < request.top_n < len(documents) else len(documents)
        answer = await model.in_slot(lambda: model.engine.rerank(request.query, documents, top))
        model.counters.prompt_tokens += answer["usage"]["prompt_tokens"]
        ranked = sorted(answer["results"], key=lambda item: -item["relevance_score"])[:top]
        return pb.RerankResult(
            usage=pb.Usage(
                total_tokens=answer["usage"]["total_tokens"],
                prompt_tokens=answer["usage"]["prompt_tokens"],
            ),
            results=[
                pb.DocumentResult(
                    index=item["index"],
                    text=documents[item["index"]],
                    relevance_score=item["relevance_score"],
                )
                for item in ranked
            ],
        )

    async def Status(self, _: pb.HealthMessage, __: Context) -> pb.StatusResponse:
        """What the model does now, and the memory of its processes."""
        model = self._host.loaded
        memory = pb.MemoryUsageData()
        memory.breakdown["server_rss"] = resident_bytes()
        if pid := self._host.engine_pid:
            memory.breakdown["engine_rss"] = resident_bytes(pid)
        memory.total = sum(memory.breakdown.values())
        if model is None:
            failed = self._host.state is State.FAILED
            state = pb.StatusResponse.ERROR if failed else pb.StatusResponse.UNINITIALIZED
            return pb.StatusResponse(state=state, memory=memory)
        memory.breakdown["model_file"] = model.header.file_size
        state = pb.StatusResponse.BUSY if model.busy else pb.StatusResponse.READY
        return pb.StatusResponse(state=state, memory=memory)

    async def GetMetrics(self, _: pb.MetricsRequest, __: Context) -> pb.MetricsResponse:
        """Sums since the model was loaded, and the latest request's slot and speed."""
        counters = self._host.require().counters
        return pb.MetricsResponse(
            slot_id=counters.slot,
            tokens_per_second=counters.tokens_per_second,
            tokens_generated=min(counters.tokens, INT32),
            prompt_tokens_processed=min(counters.prompt_tokens, INT32),
        )

    async def ModelMetadata(self, request: pb.ModelOptions, _: Context) -> pb.ModelMetadataResponse:
        """What the loaded model's chat template looks like and can do."""
        model = self._host.require(request.Model)
        return await model.call(metadata.describe(model))

    def _generating(self, request: pb.PredictOptions) -> Model:
        model = self._host.require(request.ModelIdentity)
        if model.header.is_encoder:
            raise errors.Unsupported("this model makes embeddings; it can not generate text")
        for name in sampling.ignored_fields(request):
            if name not in self._reported:
                self._reported.add(name)
                log.warning("ignored in requests: %s (llama.cpp does not use it)", name)
        return model


# RPC -> request, response, whether it streams. What is not here is UNIMPLEMENTED.
_RPCS: dict[str, tuple[Any, Any, bool]] = {
    "Health": (pb.HealthMessage, pb.Reply, False),
    "LoadModel": (pb.ModelOptions, pb.Result, False),
    "Free": (pb.HealthMessage, pb.Result, False),
    "Predict": (pb.PredictOptions, pb.Reply, False),
    "PredictStream": (pb.PredictOptions, pb.Reply, True),
    "Embedding": (pb.PredictOptions, pb.EmbeddingResult, False),
    "TokenizeString": (pb.PredictOptions, pb.TokenizationResponse, False),
    "Detokenize": (pb.DetokenizeRequest, pb.DetokenizeResponse, False),
    "Rerank": (pb.RerankRequest, pb.RerankResult, False),
    "Status": (pb.HealthMessage, pb.StatusResponse, False),
    "GetMetrics": (pb.MetricsRequest, pb.MetricsResponse, False),
    "ModelMetadata": (pb.ModelOptions, pb.ModelMetadataResponse, False),
}


def handlers(servicer: BackendServicer) -> grpc.GenericRpcHandler:
    """The servicer's methods as gRPC knows them."""
    made: dict[str, Any] = {}
    for name, (request, response, streams) in _RPCS.items():
        make: Callable[..., Any] = (
            grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
        )
        made[name] = make(
            getattr(servicer, name),
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )
    generic: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(SERVICE, made)
    return generic
