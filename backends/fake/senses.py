"""Answers about pictures and sounds: always the same for the same file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corral.backend import backend_pb2 as pb

from . import words
from .behaviour import Behaviour
from .errors import Answer

_FACE = pb.FacialArea(x=10, y=10, w=100, h=100)
_THRESHOLD = 0.5


def transcript(path: str, language: str = "") -> pb.TranscriptResult:
    """Return the transcript of a file."""
    heard = ["You", " spoke", f" {words.contents(path)}"]
    result = pb.TranscriptResult(
        text="".join(heard),
        language=language or "en",
        duration=len(heard) * words.WORD_TICKS / 1e9,
        eou=True,
    )
    segment = result.segments.add(
        text=result.text, end=len(heard) * words.WORD_TICKS, tokens=words.tokens(result.text)
    )
    for at, word in enumerate(heard):
        segment.words.add(
            start=at * words.WORD_TICKS, end=(at + 1) * words.WORD_TICKS, text=word.strip()
        )
    return result


def detect(request: Any, _: Behaviour) -> Any:
    """Detect one object, named like the prompt."""
    name = request.prompt or "thing"
    return pb.DetectResponse(
        Detections=[pb.Detection(x=10, y=20, width=30, height=40, confidence=0.9, class_name=name)]
    )


def sounds(request: Any, _: Behaviour) -> Any:
    """Detect speech or music."""
    heard = words.contents(request.src)
    scores = sorted(
        ((words.share(heard + label), at, label) for at, label in enumerate(("speech", "music"))),
        reverse=True,
    )
    return pb.SoundDetectionResponse(
        detections=[
            pb.SoundClass(label=label, score=score, index=at)
            for score, at, label in scores[: request.top_k if request.top_k > 0 else None]
            if score >= request.threshold
        ]
    )


def depth(request: Any, _: Behaviour) -> Any:
    """Return the depth of a picture of two by two pixels."""
    seen = words.contents(request.src)
    grid = [words.share(f"{seen}{at}") for at in range(4)]
    one = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    return pb.DepthResponse(
        width=2,
        height=2,
        depth=grid if request.include_depth else [],
        confidence=[1.0] * 4 if request.include_confidence else [],
        sky=[0.0] * 4 if request.include_sky else [],
        extrinsics=[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0] if request.include_pose else [],
        intrinsics=one if request.include_pose else [],
        num_points=1 if request.include_points else 0,
        points=[0.0, 0.0, grid[0]] if request.include_points else [],
        point_colors=b"\x80\x80\x80" if request.include_points else b"",
        is_metric=True,
    )


def _same(one: str, other: str, wanted: float) -> dict[str, Any]:
    """Compare two pictures or voices by their content."""
    near = words.similarity(words.vector(words.contents(one)), words.vector(words.contents(other)))
    distance, threshold = 1 - near, wanted or _THRESHOLD
    return {
        "verified": distance <= threshold,
        "distance": distance,
        "threshold": threshold,
        "confidence": 100 * max(near, 0),
        "model": "fake",
    }


def face_verify(request: Any, _: Behaviour) -> Any:
    """Compare two faces."""
    return pb.FaceVerifyResponse(
        **_same(request.img1, request.img2, request.threshold),
        img1_area=_FACE,
        img2_area=_FACE,
        img1_is_real=request.anti_spoofing,
        img2_is_real=request.anti_spoofing,
    )


def face_analyze(request: Any, _: Behaviour) -> Any:
    """Describe one face."""
    age = 20 + round(40 * words.share(words.contents(request.img)))
    face = pb.FaceAnalysis(
        region=_FACE,
        face_confidence=0.9,
        age=age,
        dominant_emotion="neutral",
        emotion={"neutral": 1.0},
        is_real=request.anti_spoofing,
    )
    return pb.FaceAnalyzeResponse(faces=[face])


def voice_verify(request: Any, _: Behaviour) -> Any:
    """Compare two voices."""
    return pb.VoiceVerifyResponse(**_same(request.audio1, request.audio2, request.threshold))


def voice_analyze(request: Any, _: Behaviour) -> Any:
    """Describe one voice."""
    age = 20 + round(40 * words.share(words.contents(request.audio)))
    segment = pb.VoiceAnalysis(end=1, age=age, dominant_emotion="neutral", emotion={"neutral": 1.0})
    return pb.VoiceAnalyzeResponse(segments=[segment])


def voice_embed(request: Any, _: Behaviour) -> Any:
    """Return the vector of a voice."""
    vector = words.vector(words.contents(request.audio))
    return pb.VoiceEmbedResponse(embedding=vector, model="fake")


def vad(request: Any, _: Behaviour) -> Any:
    """Report everything that is not silent as speech."""
    answer = pb.VADResponse()
    began: int | None = None
    for at, sample in enumerate([*request.audio, 0.0]):
        if sample and began is None:
            began = at
        elif not sample and began is not None:
            answer.segments.add(start=began / words.RATE, end=at / words.RATE)
            began = None
    return answer


def diarize(request: Any, _: Behaviour) -> Any:
    """Give each speaker a second."""
    speakers = request.num_speakers if 0 < request.num_speakers < 10 else 1
    answer = pb.DiarizeResponse(
        num_speakers=speakers, duration=speakers, language=request.language or "en"
    )
    for number in range(speakers):
        text = transcript(request.dst).text if request.include_text else ""
        answer.segments.add(
            id=number, start=number, end=number + 1, speaker=f"SPEAKER_{number:02}", text=text
        )
    return answer


TABLE: Mapping[str, Answer] = {
    "Detect": detect,
    "SoundDetection": sounds,
    "Depth": depth,
    "FaceVerify": face_verify,
    "FaceAnalyze": face_analyze,
    "VoiceVerify": voice_verify,
    "VoiceAnalyze": voice_analyze,
    "VoiceEmbed": voice_embed,
    "VAD": vad,
    "Diarize": diarize,
    "AudioTranscription": lambda request, _: transcript(request.dst, request.language),
}
