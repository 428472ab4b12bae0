"""The endpoints' folder and settings, the header blocks, and the answers of an endpoint itself."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hpack import Decoder
from hyperframe.frame import Frame, HeadersFrame
from hypothesis import given
from hypothesis import strategies as st

from corral.backend import backend_pb2 as pb
from services.common.config.settings import ConfigError
from services.loader.config import LoaderSettings
from services.loader.endpoints import endpoint
from services.loader.endpoints.folder import (
    LONGEST_PATH,
    FolderTakenError,
    endpoint_folder,
    socket_path,
)
from services.loader.endpoints.header_block import BrokenFramesError, block_end, content, with_field
from services.loader.endpoints.http2 import (
    END_HEADERS,
    HEADERS,
    MAX_FRAME,
    bearer,
    failure,
    frame,
    literal,
)

# Names and folders


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_of_sockets_are_short_and_different(one: str, other: str) -> None:
    folder = Path("/run/user/1000/corral/models")
    path = socket_path(folder, one)
    assert path.parent == folder and len(os.fsencode(path)) <= LONGEST_PATH
    assert not path.name.startswith(".") and "%" not in path.name
    assert (path == socket_path(folder, other)) == (one == other)


def test_plain_names_stay_as_they_are() -> None:
    folder = Path("/run/corral/models")
    assert socket_path(folder, "Qwen3-0.6B:Q4_K_M").name == "Qwen3-0.6B:Q4_K_M.sock"
    assert socket_path(folder, "a/b").name.startswith("a_b-")
    assert len(os.fsencode(socket_path(folder, "x" * 200))) == LONGEST_PATH


@pytest.mark.parametrize(
    ("mode", "folders"), [(0o600, 0o700), (0o660, 0o710), (0o666, 0o711), (0o640, 0o700)]
)
def test_who_may_write_may_pass(tmp_path: Path, mode: int, folders: int) -> None:
    with endpoint_folder(tmp_path / "run", mode) as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == folders
        assert stat.S_IMODE(folder.parent.stat().st_mode) == folders
        with pytest.raises(FolderTakenError), endpoint_folder(tmp_path / "run", mode):
            pass
    with endpoint_folder(tmp_path / "run", mode):
        pass


def test_a_folder_that_is_too_long_has_a_stand_in(tmp_path: Path) -> None:
    with endpoint_folder(tmp_path / ("x" * 120), 0o600) as folder:
        path = socket_path(folder, "m" * 90)
        assert len(os.fsencode(path)) <= LONGEST_PATH


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--endpoint-mode", "888"), ("--endpoint-ports", "9"), ("--endpoint-ports", "9-3")],
)
def test_settings_that_make_no_sense_are_refused(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=flag.removeprefix("--").replace("-", ".")):
        LoaderSettings.load([flag, value])


def test_settings() -> None:
    settings = LoaderSettings.load(["--endpoint-ports", "9100-9199", "--model-endpoints", "off"])
    assert settings.ports == range(9100, 9200) and settings.model_endpoints == "off"
    assert settings.endpoint_mode == "0600"


# Answers of an endpoint itself


def test_answers_are_the_contracts_messages() -> None:
    assert pb.Reply.FromString(endpoint._WELL).message == b"OK"
    result = pb.Result.FromString(endpoint._result("x" * 100))
    assert result.success and result.message == "x" * 100
    assert pb.StatusResponse.FromString(endpoint._UNINITIALIZED).state == 0


@given(st.binary(max_size=20000), st.binary(min_size=1, max_size=20))
def test_literals_of_any_length(value: bytes, name: bytes) -> None:
    decoder = Decoder(max_header_list_size=2**20)
    assert decoder.decode(literal(name, value), raw=True) == [(name, value)]
    assert not decoder.header_table.dynamic_entries


@pytest.mark.parametrize("begun", [True, False])
def test_a_failure_is_a_grpc_status(begun: bool) -> None:
    wired = failure(7, 14, "weg: 100 % größer\n", b"\0\1\2", begun=begun)
    parsed, length = Frame.parse_frame_header(memoryview(wired[:9]))
    parsed.parse_body(memoryview(wired[9 : 9 + length]))
    assert parsed.stream_id == 7 and {"END_STREAM", "END_HEADERS"} <= set(parsed.flags)
    assert isinstance(parsed, HeadersFrame)
    fields: dict[Any, Any] = dict(Decoder().decode(parsed.data))
    assert fields["grpc-status"] == "14" and fields["grpc-status-details-bin"] == "AAEC"
    assert fields["grpc-message"] == "weg: 100 %25 gr%C3%B6%C3%9Fer%0A"
    assert (":status" in fields) != begun


# Header blocks


def test_a_block_that_is_full_gets_another_frame() -> None:
    field = bearer("t" * 43)
    full = frame(HEADERS, END_HEADERS, 3, b"x" * MAX_FRAME)
    more = with_field(full, field)
    assert block_end(more, 0) == len(more) and content(more) == b"x" * MAX_FRAME + field
    assert all(block_end(more[:cut], 0) == 0 for cut in (0, 8, 9, MAX_FRAME, len(more) - 1))


def test_blocks_that_never_end_are_refused() -> None:
    begin = frame(HEADERS, 0, 3, b"x")
    with pytest.raises(BrokenFramesError):
        block_end(begin + frame(0, 0, 3, b"data"), 0)
    with pytest.raises(BrokenFramesError):
        block_end(begin + frame(9, 0, 3, b"y" * 16000) * 70, 0)
    with pytest.raises(BrokenFramesError):
        block_end(begin + frame(9, 0, 3) * 300, 0)
