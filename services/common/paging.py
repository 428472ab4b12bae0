"""Pages of a sorted list, with opaque tokens that stay valid when the list changes.

A token names the last item sent, not a position, so items added or removed between two pages neither
repeat nor hide others (AIP-158). It includes a digest of the request's other fields: a token from one
filter is refused with another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from .errors import InvalidRequestError

DEFAULT_PAGE_SIZE = 100
MAXIMUM_PAGE_SIZE = 1000

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page: its items, the token of the next page (empty on the last), and the size of the list."""

    items: Sequence[T]
    next_token: str
    total: int


def paginate(
    items: Sequence[T], *, size: int, token: str, key: Callable[[T], str], scope: object = ""
) -> Page[T]:
    """Return the page of `items` that follows `token`; `items` MUST be sorted by `key`.

    `scope` holds the request's other fields, compared by its repr. Raises InvalidRequestError for a
    negative size, or a token that is malformed or has another scope.
    """
    if size < 0:
        raise InvalidRequestError.of("page_size", "is negative; give 0 for the default")
    limit = min(size or DEFAULT_PAGE_SIZE, MAXIMUM_PAGE_SIZE)
    digest = hashlib.sha256(repr(scope).encode()).hexdigest()[:16]
    rest = list(items)
    if token:
        after = _last_key(token, digest)
        rest = [item for item in rest if key(item) > after]
    page = rest[:limit]
    more = len(rest) > limit
    return Page(page, _token(digest, key(page[-1])) if more else "", len(items))


def _token(digest: str, last: str) -> str:
    return base64.urlsafe_b64encode(f"{digest}{last}".encode()).decode()


def _last_key(token: str, digest: str) -> str:
    try:
        text = base64.urlsafe_b64decode(token.encode()).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise InvalidRequestError.of("page_token", "is not a token of this service") from None
    if text[:16] != digest:
        raise InvalidRequestError.of(
            "page_token", "belongs to a request with other fields; begin again without a token"
        )
    return text[16:]
