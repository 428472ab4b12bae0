"""The level of a line, by the forms that backends write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.logs.levels import Level, level_of, plain

UNSPECIFIED, DEBUG, INFO, WARNING, ERROR = Level


@pytest.mark.parametrize(
    ("level", "line"),
    [
        (ERROR, "[ERROR] it broke"),
        (WARNING, "[2026-01-02 03:04:05] [WARN] slow"),
        (WARNING, 'time="2026-01-02T03:04:05Z" level=warn msg="no GPU error"'),
        (INFO, "time=2026-01-02T03:04:05Z level=INFO source=x.go:1 msg=hello"),
        (ERROR, '{"level":"error","msg":"x"}'),
        (DEBUG, '{"ts": 1.5, "msg": "an INFO", "severity": "DEBUG"}'),
        (WARNING, '{"level":40,"time":1,"msg":"pino"}'),
        (ERROR, '{"level":60}'),
        (WARNING, "W0102 03:04:05.678901 123 fake.cc:7] careful"),
        (INFO, "I0102 03:04:05.678901 123 fake.cc:7] ERROR in a message"),
        (ERROR, "F0102 03:04:05 1 x.cc:1] fatal"),
        (ERROR, "E grpc: something"),
        (WARNING, "W: something"),
        (ERROR, "0.00.035.060 E srv load_model: failed"),
        (INFO, "0.00.035.060 I srv load_model: fine"),
        (ERROR, "ERROR:root:python's default"),
        (WARNING, "2026-01-02 03:04:05,678 WARNING module.name text"),
        (ERROR, "2026-01-02 03:04:05,678 - module.sub - ERROR - text"),
        (INFO, "INFO:     Uvicorn running on http://127.0.0.1"),
        (DEBUG, "2026-01-02 03:04:05.678 | DEBUG    | mod:fn:1 - loguru"),
        (WARNING, "(EngineCore_0 pid=12) WARNING 11-22 03:04:05 [x.py:1] vllm"),
        (ERROR, "10:00AM ERR zerolog error=x"),
        (INFO, "10:00AM INF it goes"),
        (ERROR, "2026-01-02T03:04:05Z\tERROR\tzap\t{}"),
        (ERROR, "[2026-01-02T03:04:05Z ERROR my_crate] env_logger"),
        (WARNING, "[2026-01-02 03:04:05.678] [warning] spdlog"),
        (ERROR, "error: no such file"),
        (WARNING, "main.cpp:7:3: warning: unused"),
        (ERROR, "llama_model_load: error loading model: bad magic"),
        (ERROR, "llama_model_load_from_file_impl: failed to load model"),
        (ERROR, "Traceback (most recent call last):"),
        (ERROR, '  File "/x/y.py", line 7, in main'),
        (ERROR, "ValueError: no"),
        (ERROR, "torch.cuda.OutOfMemoryError: CUDA out of memory"),
        (ERROR, "GGML_ASSERT(n > 0) failed"),
        (ERROR, "terminate called after throwing an instance of 'x'"),
        (ERROR, "Segmentation fault (core dumped)"),
        (ERROR, "panic: runtime error: index out of range"),
        (ERROR, "thread 'main' panicked at src/main.rs:1"),
        (ERROR, "\x1b[31m[ERROR]\x1b[0m red"),
        (INFO, "\x1b[2m2026-01-02T03:04:05Z\x1b[0m \x1b[32m INFO\x1b[0m tracing: x"),
        (UNSPECIFIED, ""),
        (UNSPECIFIED, "llama_model_loader: - kv   0: general.name str = x"),
        (UNSPECIFIED, "I am a sentence"),
        (UNSPECIFIED, "the server is in ERROR state"),
        (UNSPECIFIED, "loss: 0.3 error rate 0.1"),
        (UNSPECIFIED, "system_info: n_threads = 2 | AVX = 1 | INFORMED = 1"),
        (UNSPECIFIED, "EWMA 7"),
        (UNSPECIFIED, '{"msg": "no level"}'),
        (UNSPECIFIED, '{"level": 0}'),
    ],
)
def test_forms(level: Level, line: str) -> None:
    assert level_of(line) is level


@given(st.text())
def test_any_text_has_a_level_and_colours_do_not_change_it(text: str) -> None:
    level = level_of(text)
    assert isinstance(level, Level)
    assert level_of(plain(text)) is level or "\x1b" in text[1000:]
    assert plain(plain("\x1b[1;31m" + text + "\x1b[0m")) == plain(plain(text))


@given(st.sampled_from(["DEBUG", "INFO", "WARNING", "ERROR"]), st.text(alphabet="abc 19:.-"))
def test_a_bracket_at_the_beginning_decides(name: str, text: str) -> None:
    assert level_of(f"[{name}] {text}").name == name
    assert level_of(f"\x1b[1m[{name}]\x1b[0m {text}").name == name


@given(st.sampled_from(["{", "[", "a: ", "File ", "a b", '"level" : ', "\x1b", "(", " " * 9]))
def test_long_lines_take_no_longer(piece: str) -> None:
    """No form may take time that grows with the square of the line."""
    level_of(piece * 100_000)
