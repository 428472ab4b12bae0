"""Refusing a call with a status."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from .behaviour import Behaviour, BehaviourError

Answer = Callable[[Any, Behaviour], Any]
"""Called with a request and the behaviour; returns the response, or raises Refused."""


class Refused(Exception):
    """Ends a call with a status."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        """`code` and `text` become the status."""
        super().__init__(text)
        self.code = code
        self.text = text


def status_code(name: str) -> grpc.StatusCode:
    """Return the code of this name. Raises BehaviourError."""
    try:
        return grpc.StatusCode[name.upper()]
    except KeyError:
        raise BehaviourError(f"there is no status {name!r}") from None
