"""The first token of each turn of a conversation with the llama.cpp backend, which processes only new tokens."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

from corral.backend import backend_pb2 as pb
from tests.tools.llama_backend import Backend, backend
from tests.tools.tiny_gguf import write_tiny

from .figures import heading, ms, progress, show
from .record import RECORD

REPETITIONS, FULL_REPETITIONS = 5, 15
TURNS = 4
GOAL = 1.2
"""The maximum ratio of the last turn's time to the first token to the first turn's."""

SYSTEM = " ".join(["one two three four five six seven eight nine ten"] * 6)
QUESTION = " ".join(["one two three four five six seven eight nine ten"] * 4)
"""A system prompt and a question of two sentences; each word is about one token."""
ANSWER_TOKENS = 30
WAYS = {"reuse, the default": (), "without reuse": ("cache_prompt:false",)}


async def run(*, full: bool) -> None:
    """Measure and print."""
    repetitions = FULL_REPETITIONS if full else REPETITIONS
    heading(f"conversation: {repetitions} repetitions of {TURNS} turns, medians")
    ratios = {way: await asyncio.to_thread(_measure, way, repetitions) for way in WAYS}
    RECORD.values["last_turn_ratio"] = ratios["reuse, the default"]


def _measure(way: str, repetitions: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # About 12 million parameters, so that processing a prompt takes a measurable time.
        model = write_tiny("count", folder / "model.gguf", layers=12, embd=512)
        with backend(f"unix:{folder}/backend.sock", folder) as running:
            lines = ["parallel:1", *WAYS[way]]
            assert running.load(model, Options=lines, ContextSize=8192).success
            _conversation(running, "warm up")
            turns: list[list[float]] = []
            for repetition in range(repetitions):
                progress(f"{way}: {repetition + 1}/{repetitions}")
                turns.append(_conversation(running, f"{repetition}"))
    progress(way, end=True)
    medians = [median(times) for times in zip(*turns, strict=True)]
    for number, seconds in enumerate(medians, 1):
        show(f"{way}: first token of turn {number}", ms(seconds))
    ratio = float(medians[-1] / medians[0])
    met = ratio <= GOAL if not WAYS[way] else None
    show(f"{way}: turn {TURNS} against turn 1", f"{ratio:.2f}", f"{GOAL:g}", met=met)
    return ratio


def _conversation(running: Backend, begin: str) -> list[float]:
    """Return the time to the first token of each turn; `begin` makes it differ from the others."""
    messages: list[pb.Message] = [pb.Message(role="system", content=f"{begin} {SYSTEM}")]
    times = []
    with running.stub() as stub:
        for _ in range(TURNS):
            messages.append(pb.Message(role="user", content=QUESTION))
            request = pb.PredictOptions(
                UseTokenizerTemplate=True, Messages=messages, Tokens=ANSWER_TOKENS
            )
            began, first = time.perf_counter(), 0.0
            answer = b""
            for reply in stub.PredictStream(request):
                first = first or time.perf_counter() - began
                answer += reply.message
            times.append(first)
            messages.append(pb.Message(role="assistant", content=answer.decode(errors="replace")))
    return times
