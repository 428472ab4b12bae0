"""The filter of ListOperations: `field = value`, joined by AND (a small part of AIP-160)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from services.common.errors import InvalidRequestError
from services.gallery.operations.operation import Operation

_TERM: Final = re.compile(r'\s*(\w+)\s*(!=|=)\s*("[^"]*"|[^\s"]+)\s*')
_FIELDS: Final[dict[str, Callable[[Operation], str]]] = {
    "done": lambda operation: "true" if operation.done else "false",
    "kind": lambda operation: operation.kind.name,
    "target": lambda operation: operation.target.lower(),
    "phase": lambda operation: operation.phase.value,
}
_FORM: Final = f"write terms such as done = false, with one of {', '.join(_FIELDS)}, joined by AND"


def parse_filter(text: str) -> Callable[[Operation], bool]:
    """Return the condition of a filter; an empty filter always matches."""
    if not text.strip():
        return lambda operation: True
    terms = []
    for part in re.split(r"\s+AND\s+", text):
        match = _TERM.fullmatch(part)
        if match is None or match[1] not in _FIELDS:
            raise InvalidRequestError.of("filter", f"{part.strip()!r} is not a valid term; {_FORM}")
        # `KIND_INSTALL_MODEL` as in the proto, or `install_model`.
        value = match[3].strip('"').lower().removeprefix(f"{match[1]}_")
        terms.append((_FIELDS[match[1]], value, match[2] == "="))
    return lambda operation: all((get(operation) == value) is equal for get, value, equal in terms)
