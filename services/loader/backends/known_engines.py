"""Use cases and file formats of known engines: LocalAI's metadata has no field for them.

The use cases are those that LocalAI lists for each engine, or that its gallery declares for their
models; the formats come from the engines' own documentation. An engine that is not listed has no
known formats or use cases, and is not restricted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.loader.models.file_format import (
    CTRANSLATE2,
    DIFFUSERS,
    GGML,
    GGUF,
    ONNX,
    PYTORCH,
    SAFETENSORS,
)

from .names import engine_names

LLM = ("chat", "completion", "edit")
"""The use cases that LocalAI means by `llm`."""

STORES = frozenset({"local-store", "valkey-store"})
"""They hold vectors and no model, so they are never tried for a model that names no backend."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One engine."""

    usecases: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()


_HUB = (SAFETENSORS, PYTORCH)
_LLAMA = (*LLM, "embeddings", "rerank", "tokenize", "vision", "score")
_FACES = ("face_recognition", "detection", "embeddings")

_KNOWN: Mapping[str, Facts] = {
    # Language
    "llama-cpp": Facts((*_LLAMA, "tts"), (GGUF,)),
    "llama-cpp-fallback": Facts(_LLAMA, (GGUF,)),
    "llama-cpp-grpc": Facts(_LLAMA, (GGUF,)),
    "ik-llama-cpp": Facts(_LLAMA, (GGUF,)),
    "turboquant": Facts(_LLAMA, (GGUF,)),
    "bonsai": Facts(_LLAMA, (GGUF,)),
    "ds4": Facts(("chat", "completion"), (GGUF,)),
    "llama-ggml": Facts((*LLM, "embeddings"), (GGML,)),
    "vllm": Facts(("chat", "completion", "embeddings", "vision"), (*_HUB, GGUF)),
    "vllm-cpp": Facts(
        ("chat", "completion", "vision", "video", "token_classify", "score"), (SAFETENSORS, GGUF)
    ),
    "vllm-omni": Facts(("chat", "completion", "image", "video", "tts", "vision"), _HUB),
    "sglang": Facts(("chat", "completion", "tokenize", "vision"), (*_HUB, GGUF)),
    "transformers": Facts(("chat", "completion", "embeddings", "tts", "sound_generation"), _HUB),
    "exllama2": Facts(("chat", "completion"), (SAFETENSORS,)),
    "mlx": Facts(("chat", "completion"), (SAFETENSORS,)),
    "mlx-distributed": Facts(("chat", "completion"), (SAFETENSORS,)),
    "mlx-vlm": Facts(("chat", "completion", "vision"), (SAFETENSORS,)),
    "mlx-audio": Facts(("chat", "completion", "tts"), (SAFETENSORS,)),
    "huggingface": Facts(("chat", "completion")),
    "rerankers": Facts(("rerank",), (*_HUB, ONNX)),
    "privacy-filter": Facts(("token_classify",), (GGUF,)),
    "pattern": Facts(("token_classify",)),
    # Images, video, space
    "diffusers": Facts(("image", "upscale", "video", "sound_generation"), (DIFFUSERS, *_HUB)),
    "stablediffusion": Facts(("image",)),
    "stablediffusion-ggml": Facts(("image", "upscale", "video"), (GGUF, SAFETENSORS, PYTORCH)),
    "tinydream": Facts(("image",)),
    "longcat-video": Facts(("video",), (SAFETENSORS, DIFFUSERS)),
    "mlx-video": Facts(("video",), (SAFETENSORS,)),
    "trellis2cpp": Facts(("3d",), (GGUF,)),
    "kimodocpp": Facts(("3d_animation",), (GGUF,)),
    "depth-anything": Facts(("depth",), (GGUF,)),
    "rfdetr": Facts(("detection",), (PYTORCH,)),
    "rfdetr-cpp": Facts(("detection",), (GGUF,)),
    "sam3-cpp": Facts(("detection",), (GGUF,)),
    "locate-anything-cpp": Facts(("detection",), (GGUF,)),
    "insightface": Facts(_FACES, (ONNX,)),
    "face-detect": Facts(_FACES, (GGUF,)),
    # Speech and sound
    "whisper": Facts(("transcript", "vad"), (GGML,)),
    "faster-whisper": Facts(("transcript",), (CTRANSLATE2,)),
    "whisperx": Facts(("transcript",), (CTRANSLATE2,)),
    "moonshine": Facts(("transcript",), (ONNX,)),
    "moss-transcribe-cpp": Facts(("transcript", "diarization"), (GGUF,)),
    "nemo": Facts(("transcript",)),
    "nemo-speech-cpp": Facts(("transcript", "diarization", "tts", "completion", "chat"), (GGUF,)),
    "parakeet-cpp": Facts(
        ("transcript", "diarization", "sound_classification", "speaker_recognition"), (GGUF,)
    ),
    "qwen-asr": Facts(("transcript",), _HUB),
    "voxtral": Facts(("transcript",), (SAFETENSORS, GGUF)),
    "vibevoice": Facts(("transcript", "tts"), _HUB),
    "vibevoice-cpp": Facts(("transcript", "tts", "diarization"), (GGUF,)),
    "crispasr": Facts(("transcript", "tts", "vad"), (GGUF,)),
    "sherpa-onnx": Facts(("transcript", "tts", "vad"), (ONNX,)),
    "audio-cpp": Facts(
        ("tts", "transcript", "vad", "diarization", "sound_generation", "audio_transform"), (GGUF,)
    ),
    "liquid-audio": Facts(
        ("chat", "completion", "transcript", "tts", "realtime_audio", "vad"), (SAFETENSORS,)
    ),
    "piper": Facts(("tts",), (ONNX,)),
    "kokoro": Facts(("tts",), (PYTORCH,)),
    "kokoros": Facts(("tts",), (ONNX,)),
    "kitten-tts": Facts(("tts",), (ONNX,)),
    "supertonic": Facts(("tts",), (ONNX,)),
    "bark": Facts(("tts",), _HUB),
    "bark-cpp": Facts(("tts",), (GGML,)),
    "coqui": Facts(("tts",), _HUB),
    "chatterbox": Facts(("tts",), _HUB),
    "fish-speech": Facts(("tts",), _HUB),
    "neutts": Facts(("tts",), (*_HUB, GGUF)),
    "outetts": Facts(("tts",), (*_HUB, GGUF)),
    "parler-tts": Facts(("tts",), _HUB),
    "pocket-tts": Facts(("tts",), (SAFETENSORS,)),
    "qwen-tts": Facts(("tts",), _HUB),
    "faster-qwen3-tts": Facts(("tts",), _HUB),
    "voxcpm": Facts(("tts",), _HUB),
    "qwen3-tts-cpp": Facts(("tts",), (GGUF,)),
    "magpie-tts-cpp": Facts(("tts",), (GGUF,)),
    "moss-tts-cpp": Facts(("tts",), (GGUF,)),
    "omnivoice-cpp": Facts(("tts",), (GGUF,)),
    "ace-step": Facts(("tts", "sound_generation"), _HUB),
    "acestep-cpp": Facts(("sound_generation",), (GGUF,)),
    "transformers-musicgen": Facts(("tts", "sound_generation"), _HUB),
    "localvqe": Facts(("audio_transform",), (GGUF,)),
    "ced": Facts(("sound_classification",), (GGUF,)),
    "silero-vad": Facts(("vad",), (ONNX,)),
    "speaker-recognition": Facts(("speaker_recognition",), (ONNX, PYTORCH)),
    "voice-detect": Facts(("speaker_recognition",), (GGUF,)),
    "opus": Facts(("audio_codec",)),
    # Vectors
    "local-store": Facts(("stores",)),
    "valkey-store": Facts(("stores",)),
}


def facts(name: str) -> Facts:
    """Return the known facts about a backend's engine; empty if it is unknown."""
    for engine in engine_names(name):
        if engine in _KNOWN:
            return _KNOWN[engine]
    return Facts()
