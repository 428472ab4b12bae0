"""Files on Hugging Face, in all forms of URIs that users and galleries write."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from services.common.errors import (
    AccessDeniedError,
    CorralError,
    DownloadError,
    SourceNotFoundError,
    UnsupportedSourceError,
)
from services.gallery.errors import UnreachableError
from services.gallery.threads import run_detached

from .registry import Remote, scheme

_HOSTS: Final = ("huggingface.co", "www.huggingface.co", "hf.co")
_SCHEMES: Final = ("huggingface", "hf")
# The hub's etag of a large file is its SHA-256; that of a small one is a git blob's, 40 digits long.
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A file in a repository, at a revision."""

    repo: str
    path: str
    revision: str

    def __str__(self) -> str:
        """Return the one canonical form."""
        return f"huggingface://{self.repo}/{self.path}@{self.revision}"


class HuggingFaceSource:
    """Files of model repositories, accessed with the token if one is set."""

    form = "huggingface://owner/repo/path[@revision]"

    def __init__(self, *, endpoint: str, token: SecretStr | None, timeout: float) -> None:
        """Ask the hub at `endpoint`, or a mirror of it."""
        self._endpoint = endpoint
        self._token = token
        self._timeout = timeout
        self._hosts = {*_HOSTS, urlsplit(endpoint).netloc}

    def claims(self, uri: str) -> bool:
        """Take huggingface://, hf://, hf.co/, and the addresses of files on the hub's own pages."""
        if scheme(uri) in ("http", "https"):
            parts = urlsplit(uri)
            return parts.netloc in self._hosts and _page(parts.path) is not None
        return scheme(uri) in _SCHEMES or uri.lower().startswith("hf.co/")

    async def locate(self, uri: str) -> Remote:
        """Ask the hub for size, digest and commit; the address is pinned to that commit."""
        reference = parse_reference(uri)
        return await run_detached(lambda: self._ask(reference), name="hub")

    def _ask(self, reference: Reference) -> Remote:
        # Imported only now: it takes 150 ms, and many an install never needs it.
        import huggingface_hub as hub

        token = self._token.get_secret_value() if self._token else None
        try:
            url = hub.hf_hub_url(
                reference.repo, reference.path, revision=reference.revision, endpoint=self._endpoint
            )
            # The endpoint is given with each call: the library reads its variables at import only.
            found = hub.get_hf_file_metadata(
                url, token=token or False, timeout=self._timeout, endpoint=self._endpoint
            )
            if found.commit_hash:
                url = hub.hf_hub_url(
                    reference.repo,
                    reference.path,
                    revision=found.commit_hash,
                    endpoint=self._endpoint,
                )
        except Exception as error:
            raise self._meaning(error, reference) from error
        etag = (found.etag or "").lower()
        return Remote(
            url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            size=found.size or 0,
            sha256=etag if _SHA256.fullmatch(etag) else "",
        )

    def _meaning(self, error: Exception, reference: Reference) -> CorralError:
        from huggingface_hub import errors as hub

        if isinstance(error, hub.HFValidationError):
            return UnsupportedSourceError(f"{reference}: {error}")
        response: Any = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if status in (401, 403) or isinstance(error, hub.GatedRepoError):
            fix = "accept its licence on the hub" if self._token else "set HF_TOKEN"
            return AccessDeniedError(
                f"{reference}: the hub refuses access (HTTP {status}): the repository is gated,"
                f" private, or does not exist; {fix}"
                + (" with the token's account" if self._token else ", and accept its licence there")
            )
        if status in (404, 410):
            what = "file"
            if isinstance(error, hub.RepositoryNotFoundError):
                what = "repository"
            elif isinstance(error, hub.RevisionNotFoundError):
                what = "revision"
            return SourceNotFoundError(f"{reference}: the hub knows no such {what}")
        if status is not None:
            return DownloadError(f"{reference}: the hub answers HTTP {status}")
        text = " ".join(str(error).split())[:200] or type(error).__name__
        return UnreachableError(f"{reference}: {self._endpoint} cannot be reached: {text}")


def parse_reference(uri: str) -> Reference:
    """Return the file that a URI names, in any known form; raises only UnsupportedSourceError.

    `huggingface://owner/repo/path[@revision]`, `…/owner/repo@revision/path`, `hf://…`, `hf.co/…`, and
    `https://huggingface.co/owner/repo/{blob,resolve,raw}/revision/path`.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        if (found := _page(parts.path)) is None:
            raise _malformed(uri)
        return found
    rest = uri[len("hf.co/") :] if uri.lower().startswith("hf.co/") else uri.partition(":")[2]
    rest = rest.lstrip("/")
    # A page's path behind one of the short schemes is what people paste.
    if (found := _page("/" + rest)) is not None:
        return found
    segments = rest.split("/")
    if len(segments) < 3 or not all(segments):
        raise _malformed(uri)
    owner, repo, *path = segments
    repo, _, revision = repo.partition("@")
    if not revision:
        path[-1], _, revision = path[-1].rpartition("@") if "@" in path[-1] else (path[-1], "", "")
    if not repo or not path[-1] or ".." in path:
        raise _malformed(uri)
    return Reference(f"{owner}/{repo}", "/".join(path), revision or "main")


def _page(path: str) -> Reference | None:
    """Read the path of a file's page: /owner/repo/{blob,resolve,raw}/revision/path."""
    segments = path.strip("/").split("/")
    if len(segments) < 5 or segments[2] not in ("blob", "resolve", "raw") or ".." in segments:
        return None
    owner, repo, _, revision, *rest = segments
    return Reference(f"{owner}/{repo}", "/".join(map(unquote, rest)), unquote(revision))


def _malformed(uri: str) -> UnsupportedSourceError:
    return UnsupportedSourceError(f"{uri!r} is not of the form {HuggingFaceSource.form}")
