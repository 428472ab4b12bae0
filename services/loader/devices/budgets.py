"""Limits on the memory that models may use of a device: `80%`, `0.8`, `12GB`, `12GiB`, bytes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from services.common.errors import InvalidRequestError
from services.common.quantities import parse_size

_PERCENT: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*%", re.ASCII)
_NUMBER: Final = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)
_HELP: Final = "write for example 80%, 0.8, 12GB or 12GiB, or leave it empty for no limit"


@dataclass(frozen=True, slots=True)
class Budget:
    """A share of a device, or a number of bytes; one of the two."""

    fraction: float | None = None
    """Above 0, at most 1."""
    size: int | None = None

    def of(self, total: int) -> int:
        """Return bytes of a device that has `total`; never more than that."""
        if self.fraction is not None:
            return min(math.floor(total * self.fraction), total)
        return total if self.size is None else min(self.size, total)


WHOLE: Final = Budget()
"""No limit except the device's own."""


def parse_budget(text: str, field: str) -> Budget:
    """Read a budget by LocalAI's rules; an empty text means no limit.

    A bare number above 0 and up to 1 is a fraction, a greater whole one is bytes. Raises
    InvalidRequestError that names the field.
    """
    text = text.strip()
    if not text:
        return WHOLE
    if percent := _PERCENT.fullmatch(text):
        return _share(float(percent[1]) / 100, text, field)
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number <= 1:
            return _share(number, text, field)
        if "." in text:
            raise InvalidRequestError.of(
                field, f"{text!r} is neither a share (at most 1) nor whole bytes; {_HELP}"
            )
    try:
        size = parse_size(text)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError.of(field, f"{text!r} is not a budget; {_HELP}") from error
    if size == 0:
        raise InvalidRequestError.of(field, f"{text!r} leaves nothing for models; {_HELP}")
    return Budget(size=size)


def _share(fraction: float, text: str, field: str) -> Budget:
    if fraction > 1:
        raise InvalidRequestError.of(field, f"{text!r} is more than the whole device; {_HELP}")
    if fraction <= 0:
        raise InvalidRequestError.of(field, f"{text!r} leaves nothing for models; {_HELP}")
    return Budget(fraction=fraction)
