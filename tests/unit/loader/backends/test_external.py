"""External backends: a program, an address, or a mistake that is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.loader.backends.external import ExternalBackends, external
from services.loader.config import LoaderSettings


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    "uri",
    ["127.0.0.1:50060", "localhost:1", "[::1]:50051", "unix:/tmp/x.sock", "backend.example:80"],
)
def test_an_address_is_dialled(uri: str) -> None:
    backend = external("x", uri)
    assert backend.external and not backend.error and backend.address == uri


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "/opt/x/run.sh",
            "./x",
            "../x",
            "run.sh",
            "backends/foo/run.sh",
            "~/x/run.sh",
            "~no-such-user/x",
        ),
        *("somewhere", "localhost", "127.0.0.1", "http://127.0.0.1:80", "127.0.0.1:http", ":50051"),
        *("127.0.0.1:0", "127.0.0.1:99999", "unix:", "", "backends/foo:8080", "C:\\x\\run.bat"),
    ],
)
def test_a_mistake_is_an_error_and_never_an_address(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LocalAI takes anything that is no file for an address, and connects to it for 40 seconds."""
    monkeypatch.chdir(tmp_path)
    assert external("x", uri).error


def test_a_file_is_spawned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_file = program(tmp_path / "foo" / "run.sh")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for uri in (str(run_file), "foo/run.sh", "./foo/run.sh", "~/foo/run.sh"):
        backend = external("whisper", uri)
        assert backend.run_file == run_file and not backend.external and not backend.error
        assert backend.usecases == ("transcript", "vad")
    assert "folder" in external("x", "foo").error
    run_file.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x15\x00" + bytes(44))
    assert "machine 21" in external("x", str(run_file)).error


@given(st.text())
def test_any_text_is_a_program_an_address_or_an_error(uri: str) -> None:
    backend = external("x", uri)
    assert backend.error or backend.run_file or ":" in backend.address


def test_the_file_is_followed_and_the_setting_wins(tmp_path: Path) -> None:
    file = tmp_path / "external_backends.json"
    source = ExternalBackends({"a": "127.0.0.1:1"}, file)

    def addresses() -> dict[str, str]:
        return {backend.name: backend.address for backend in source.read()}

    assert addresses() == {"a": "127.0.0.1:1"}
    file.write_text(json.dumps({"a": "127.0.0.1:2", "b": "127.0.0.1:3"}))
    assert addresses() == {"a": "127.0.0.1:1", "b": "127.0.0.1:3"}
    for broken in ("{", "[]", '{"b": 5}', '{"": "x:1"}', '"' + "\ud800" + '"'):
        file.write_bytes(broken.encode(errors="surrogatepass"))
        assert addresses() == {"a": "127.0.0.1:1", "b": "127.0.0.1:3"}, "valid entries stay"
        assert str(file) in source.problem()
    file.write_text("{}")
    assert addresses() == {"a": "127.0.0.1:1"} and source.problem() == ""
    file.unlink()
    assert addresses() == {"a": "127.0.0.1:1"}


def test_the_setting_is_read_as_localai_writes_it() -> None:
    """An entry without a colon makes LocalAI panic."""
    settings = LoaderSettings(external_backend="a:127.0.0.1:5,b:/opt/b/run.sh")  # type: ignore[arg-type]
    assert settings.external_backend == {"a": "127.0.0.1:5", "b": "/opt/b/run.sh"}
    with pytest.raises(ValueError, match="'whisper' is not NAME=URI"):
        LoaderSettings(external_backend="whisper")  # type: ignore[arg-type]
