from pathlib import Path

from structlog.testing import capture_logs

from services.metrics.state import HTTP_ADDRESS, LAST_SCRAPE, StateFolder


def test_the_address_is_written_and_removed(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "metrics")
    state.announce("127.0.0.1:9464")
    file = tmp_path / "metrics" / HTTP_ADDRESS
    assert file.read_text() == "127.0.0.1:9464\n"
    state.withdraw()
    state.withdraw()
    assert not file.exists()


def test_the_last_scrape_is_kept(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    state.keep(lambda: b"old")
    state.keep(lambda: b"new")
    assert (tmp_path / LAST_SCRAPE).read_bytes() == b"new"


def test_a_folder_that_cannot_be_written_to_is_logged(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with capture_logs() as logs:
        StateFolder(tmp_path / "file").announce("x")
    assert [line["log_level"] for line in logs] == ["warning"]
