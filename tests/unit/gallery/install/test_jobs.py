"""Requests and results of installations as the journal keeps them."""

from __future__ import annotations

import json
from typing import Any, cast

from services.gallery.index.entry import FileSpec
from services.gallery.install.installer import Installed
from services.gallery.install.jobs import InstallJobs
from services.gallery.library.installed import InstalledModel
from services.gallery.resolve.planner import Admitted, InstallRequest

JOBS = InstallJobs(cast(Any, None), cast(Any, None))
REQUEST = InstallRequest(
    entry="g@m",
    model_id="mine",
    overrides={"threads": 4, "list": [1, None, "x"]},
    files=(FileSpec("m.gguf", ("https://a/m", "https://b/m"), "a" * 64, 5),),
    variant="small",
    force=True,
)


def test_a_request_survives_the_journal() -> None:
    admitted = Admitted(REQUEST, "d1")
    record = json.loads(json.dumps(JOBS.encode_request(admitted)))
    assert JOBS.decode_request(record) == admitted


def test_a_request_of_an_earlier_version_is_read() -> None:
    record = {
        "entry": "g@m",
        "model_id": "mine",
        "overrides": {"threads": 4, "list": [1, None, "x"]},
        "files": [
            {
                "filename": "m.gguf",
                "uris": ["https://a/m", "https://b/m"],
                "sha256": "a" * 64,
                "size": 5,
            }
        ],
        "variant": "small",
        "force": True,
    }
    assert JOBS.decode_request(record) == Admitted(REQUEST)


def test_a_result_survives_the_journal() -> None:
    result = Installed(InstalledModel("m", "m.yaml", "m.gguf", "b", ("chat",), "g@m", 7), 5)
    record = json.loads(json.dumps(JOBS.encode_result(result)))
    assert JOBS.decode_result(record) == result
