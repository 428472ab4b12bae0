"""The answers of a well-behaved backend to unary RPCs: plausible, and always the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from corral.backend import backend_pb2 as pb

from . import senses, words
from .behaviour import Behaviour
from .errors import Answer, Refused
from .stores import Jobs, Stores

_NAME = re.compile(r"\b[A-Z][a-z]+\b")


def unary(stores: Stores, jobs: Jobs) -> Mapping[str, Answer]:
    """Return the answers by the RPC's name, except for those that the servicer gives itself."""
    return {
        **_TABLE,
        "StoresSet": stores.set,
        "StoresDelete": stores.delete,
        "StoresGet": stores.get,
        "StoresFind": stores.find,
        "StartFineTune": lambda request, _: pb.FineTuneJobResult(**jobs.start(request.job_id)),
        "StopFineTune": lambda request, _: jobs.stop(request.job_id),
        "StartQuantization": lambda request, _: pb.QuantizationJobResult(
            **jobs.start(request.job_id)
        ),
        "StopQuantization": lambda request, _: jobs.stop(request.job_id),
    }


def write(how: Behaviour, path: str, content: bytes) -> pb.Result:
    """Write a result to the file that the request names."""
    if path and how.write_files:
        try:
            Path(path).write_bytes(content)
        except (OSError, ValueError) as error:
            return pb.Result(success=False, message=f"cannot write {path}: {error}")
    return pb.Result(success=True, message=f"{len(content)} bytes")


def _embedding(request: Any, _: Behaviour) -> Any:
    text = request.Embeddings or " ".join(map(str, request.EmbeddingTokens))
    count = len(words.pieces(text))
    return pb.EmbeddingResult(
        embeddings=words.vector(text),
        tokens=count,
        dim=words.DIMENSION,
        prompt_tokens=count,
        layout=pb.EMBEDDING_LAYOUT_FINAL,
    )


def _tokenize(request: Any, _: Behaviour) -> Any:
    found = words.tokens(request.Prompt)
    return pb.TokenizationResponse(length=len(found), tokens=found)


def _detokenize(request: Any, _: Behaviour) -> Any:
    try:
        return pb.DetokenizeResponse(content=words.untokenized(request.tokens))
    except (ValueError, OverflowError):
        raise Refused(
            grpc.StatusCode.INVALID_ARGUMENT, "a token is not in the vocabulary"
        ) from None


def _rerank(request: Any, _: Behaviour) -> Any:
    asked = set(request.query.lower().split())
    scored = sorted(
        ((len(asked & set(text.lower().split())) / (len(asked) or 1), at, text)
         for at, text in enumerate(request.documents)),
        key=lambda item: (-item[0], item[1]),
    )  # fmt: skip
    if request.top_n > 0:
        scored = scored[: request.top_n]
    count = sum(len(words.pieces(text)) for text in (request.query, *request.documents))
    return pb.RerankResult(
        usage=pb.Usage(total_tokens=count, prompt_tokens=count),
        results=[
            pb.DocumentResult(index=at, text=text, relevance_score=score)
            for score, at, text in scored
        ],
    )


def _classify(request: Any, _: Behaviour) -> Any:
    """Report every capitalized word as a name; offsets are in bytes, as the contract requires."""
    return pb.TokenClassifyResponse(
        entities=[
            pb.TokenClassifyEntity(
                entity_group="NAME",
                start=len(request.text[: found.start()].encode()),
                end=len(request.text[: found.end()].encode()),
                score=0.9,
                text=found.group(),
            )
            for found in _NAME.finditer(request.text)
            if request.threshold <= 0.9
        ]
    )


def _score(request: Any, _: Behaviour) -> Any:
    answer = pb.ScoreResponse()
    for candidate in request.candidates:
        parts = words.pieces(candidate)
        chances = [-1 - words.share(request.prompt + part) for part in parts]
        total = sum(chances)
        answer.candidates.add(
            log_prob=total,
            length_normalized_log_prob=total / len(parts)
            if request.length_normalize and parts
            else 0,
            num_tokens=len(parts),
            tokens=[
                pb.TokenLogProb(token=part, log_prob=chance)
                for part, chance in zip(parts, chances, strict=True)
            ]
            if request.include_token_logprobs
            else [],
        )
    return answer


def _encode(request: Any, _: Behaviour) -> Any:
    """Cut the samples into frames of 20 ms, without encoding them."""
    rate = request.sample_rate if request.sample_rate > 0 else 48000
    each = max(rate // 50, 1)
    size = 2 * each * max(request.channels, 1)
    data = request.pcm_data
    return pb.AudioEncodeResult(
        frames=[data[at : at + size] for at in range(0, len(data), size)],
        sample_rate=rate,
        samples_per_frame=each,
    )


def _decode(request: Any, _: Behaviour) -> Any:
    return pb.AudioDecodeResult(
        pcm_data=b"".join(request.frames), sample_rate=48000, samples_per_frame=960
    )


def _transform(request: Any, how: Behaviour) -> Any:
    samples = words.sound(words.contents(request.audio_path))
    written = write(how, request.dst, words.wav(samples))
    if not written.success:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, written.message)
    return pb.AudioTransformResult(
        dst=request.dst,
        sample_rate=words.RATE,
        samples=len(samples) // 2,
        reference_provided=bool(request.reference_path),
    )


def _chat_format(request: Any, _: Behaviour) -> Any:
    return pb.ModelMetadataResponse(
        rendered_template="<user>{{ prompt }}</user>", media_marker="<media>"
    )


def _checkpoints(request: Any, _: Behaviour) -> Any:
    folder = Path(request.output_dir)
    answer = pb.ListCheckpointsResponse()
    try:
        found = sorted(folder.glob("checkpoint-*")) if request.output_dir else []
    except (OSError, ValueError):
        found = []
    for path in found:
        step = path.name.removeprefix("checkpoint-")
        answer.checkpoints.add(path=str(path), step=int(step) if step.isdecimal() else 0)
    return answer


def _export(request: Any, how: Behaviour) -> Any:
    if not request.output_path:
        return pb.Result(success=False, message="output_path is empty")
    facts = json.dumps({"from": request.checkpoint_path, "format": request.export_format})
    return write(how, str(Path(request.output_path) / "model.fake"), facts.encode())


_TABLE: Mapping[str, Answer] = {
    **senses.TABLE,
    "Embedding": _embedding,
    "GenerateImage": lambda request, how: write(
        how, request.dst, words.png(request.positive_prompt)
    ),
    "UpscaleImage": lambda request, how: write(
        how, request.dst, words.png(words.contents(request.src))
    ),
    "GenerateVideo": lambda request, how: write(how, request.dst, words.video(request.prompt)),
    "Generate3D": lambda request, how: write(
        how, request.dst, words.glb(words.contents(request.src))
    ),
    "TTS": lambda request, how: write(how, request.dst, words.wav(words.sound(request.text))),
    "SoundGeneration": lambda request, how: write(
        how, request.dst, words.wav(words.sound(request.text))
    ),
    "TokenizeString": _tokenize,
    "Detokenize": _detokenize,
    "Rerank": _rerank,
    "TokenClassify": _classify,
    "Score": _score,
    "AudioEncode": _encode,
    "AudioDecode": _decode,
    "AudioTransform": _transform,
    "ModelMetadata": _chat_format,
    "ListCheckpoints": _checkpoints,
    "ExportModel": _export,
}
