"""Backends that are not installed: a program's path, or the address of one that runs already.

They come from a setting, and from `external_backends.json` (a map of names to either) in LocalAI's
configuration folder. LocalAI treats anything that is not a file as an address; here a mistyped path
is an error, because no real address looks like one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from services.common.addresses import parse_address
from services.common.errors import InvalidRequestError
from services.common.process.logging import get_logger
from services.common.syntax_errors import json_errors

from .backend import Backend, Source
from .known_engines import STORES, facts
from .names import base_name
from .program import ABSENT, Stamp, digest, program_error, stamp

_log = get_logger(__name__)

EXTERNAL_FILE = "external_backends.json"

_EXPECTED = "give the path of a program, or an address such as 127.0.0.1:50060 or unix:/path"


class ExternalBackends:
    """The external backends; those of the setting win over those of the file."""

    def __init__(self, named: Mapping[str, str], file: Path | None = None) -> None:
        """`file` may be created later; while it cannot be read, its last contents are kept."""
        self._named = dict(named)
        self._file = file
        self._stamp: Stamp = ABSENT
        self._in_file: dict[str, str] = {}
        self._problem = ""

    def read(self) -> list[Backend]:
        """Return the external backends, those of the setting first, each with its error if it has one."""
        self._reread()
        every = self._named | {
            name: uri for name, uri in self._in_file.items() if name not in self._named
        }
        return [external(name, uri) for name, uri in every.items()]

    def problem(self) -> str:
        """Return why the file could not be read the last time."""
        return self._problem

    def _reread(self) -> None:
        if self._file is None or (now := stamp(self._file)) == self._stamp:
            return
        self._stamp = now
        try:
            self._in_file = _name_uris(self._file) if now != ABSENT else {}
            self._problem = ""
        except (OSError, ValueError) as error:
            self._problem = f"{self._file} cannot be used: {error}"
            _log.warning("external backends cannot be read", file=str(self._file), why=str(error))


def external(name: str, uri: str) -> Backend:
    """Return the backend for a name and a URI by LocalAI's rule, except where the URI can be
    neither."""
    known = facts(name)
    try:
        path = Path(uri).expanduser()
    except RuntimeError:  # there is no such user
        path = Path(uri)
    if path.is_file():
        path = path.absolute()
        return Backend(
            name,
            run_file=path,
            source=Source.EXTERNAL,
            formats=known.formats,
            usecases=known.usecases,
            automatic=base_name(name) not in STORES,
            explanation=f"the program {uri}, from the settings",
            error=program_error(path),
            revision=digest((str(path), stamp(path))),
        )
    address, error = _address(uri, path)
    return Backend(
        name,
        address=address or uri,
        source=Source.EXTERNAL,
        formats=known.formats,
        usecases=known.usecases,
        automatic=base_name(name) not in STORES,
        explanation="" if error else "connected to, never started, from the settings",
        error=error,
        revision=digest(uri),
    )


def _address(uri: str, path: Path) -> tuple[str, str]:
    """Return the address, or the reason why it is invalid."""
    if path.is_dir():
        return "", f"{uri!r} is a folder; name the program in it"
    if "/" in uri and "://" not in uri and not uri.startswith("unix:") or uri.startswith("~"):
        return "", f"{uri!r} looks like a path, and there is no such file; {_EXPECTED}"
    try:
        return str(parse_address(uri)), ""
    except InvalidRequestError as error:
        problem = error.violations[0].description
        return "", f"{uri!r} is neither a file nor an address ({problem})"


def _name_uris(path: Path) -> dict[str, str]:
    with json_errors():
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not all(
        isinstance(uri, str) and uri and name for name, uri in content.items()
    ):
        raise ValueError('it is not a map of names to paths or addresses, {"name": "uri"}')
    return content
