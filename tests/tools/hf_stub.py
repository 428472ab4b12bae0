"""A Hugging Face hub for tests: enough of one for huggingface_hub, served from a folder.

`python -m tests.tools.hf_stub ROOT` serves ROOT/<owner>/<repo>/<files> and prints its address;
point HF_ENDPOINT at it. In tests use the class.
"""

from __future__ import annotations

import hashlib
import json
import signal
import sys
from pathlib import Path

from tests.tools.faulty_http import FaultyServer, Resource, Seen, Status


class HfStub(FaultyServer):
    """Serves repositories' files with the hub's headers, and the model API."""

    def __init__(self, root: Path, *, token: str = "", gated: tuple[str, ...] = ()) -> None:
        """Serve `root`; repositories in `gated` require `token`."""
        super().__init__()
        self._root = root
        self._token = token
        self._gated = gated
        self.ranges = True
        self.rate = 0

    def find(self, request: Seen) -> Resource | Status:
        parts = request.path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            return self._api("/".join(parts[2:4]), tree="tree" in parts)
        if len(parts) >= 5 and parts[2] == "resolve":
            return self._file(request, "/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return super().find(request)

    def commit(self, repo: str) -> str:
        """Return the commit of a repository's head."""
        return hashlib.sha1(repo.encode()).hexdigest()

    def _file(self, request: Seen, repo: str, revision: str, name: str) -> Resource | Status:
        if repo in self._gated:
            given = request.headers.get("Authorization", "")
            if not given:
                return Status(401, {"X-Error-Code": "GatedRepo"})
            if given != f"Bearer {self._token}":
                return Status(403, {"X-Error-Code": "GatedRepo"})
        if not (self._root / repo).is_dir():
            return Status(404, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", self.commit(repo)):
            return Status(404, {"X-Error-Code": "RevisionNotFound"})
        path = self._root / repo / name
        if not path.is_file():
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.commit(repo)}
            return Status(404, headers)
        body = path.read_bytes()
        return Resource(
            body,
            etag=f'"{hashlib.sha256(body).hexdigest()}"',
            ranges=self.ranges,
            rate=self.rate,
            headers={"X-Repo-Commit": self.commit(repo)},
        )

    def _api(self, repo: str, *, tree: bool) -> Resource | Status:
        folder = self._root / repo
        if not folder.is_dir():
            return Status(404, {"X-Error-Code": "RepoNotFound"})
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        answer: object = {
            "id": repo,
            "modelId": repo,
            "sha": self.commit(repo),
            "private": False,
            "gated": repo in self._gated,
            "tags": [],
            "downloads": 0,
            "siblings": [{"rfilename": name} for name in files],
        }
        if tree:
            answer = [self._row(folder / name, name) for name in files]
        return Resource(json.dumps(answer).encode(), headers={"Content-Type": "application/json"})

    def _row(self, path: Path, name: str) -> dict[str, object]:
        body = path.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        large = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
        return {"type": "file", "path": name, "size": len(body), "oid": blob, "lfs": large}


def main() -> int:
    """Serve until a signal arrives."""
    with HfStub(Path(sys.argv[1])) as stub:
        print(f"ready hf_stub {stub.address}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
        for seen in stub.requests:
            print(seen.method, seen.path, seen.headers.get("Range") or "", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
