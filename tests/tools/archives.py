"""Wheels and archives for tests, built in memory, and an index that offers a wheel."""

from __future__ import annotations

import io
import tarfile
import zipfile
from typing import Any

from tests.tools.faulty_http import FaultyServer, simple_index
from tests.tools.gallery_service import sha256


def wheel(member: str, data: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
        archive.writestr("p-1.0.dist-info/METADATA", "Name: p\n")
    return made.getvalue()


def serve_wheel(server: FaultyServer, packed: bytes, *, html: bool = False) -> str:
    name = "p-1.0-py3-none-any.whl"
    server.add(f"/files/{name}", packed, etag='"w"')
    if html:
        link = f'<a href="/files/{name}#sha256={sha256(packed)}">{name}</a>'
        server.add("/simple/p/", link, headers={"Content-Type": "text/html"})
    else:
        row = {"filename": name, "url": f"/files/{name}", "hashes": {"sha256": sha256(packed)}}
        simple_index(server, "p", [row | {"size": len(packed)}])
    return f"/files/{name}"


def packed(kind: str, members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(made, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    else:
        mode: Any = f"w:{kind}"
        with tarfile.open(fileobj=made, mode=mode) as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return made.getvalue()
