"""Resource names: `collection/id`, as in AIP-122; the bare id is accepted too."""

from __future__ import annotations

from .errors import InvalidRequestError

MODELS = "models"
BACKENDS = "backends"
OPERATIONS = "operations"
GALLERIES = "galleries"


def resource_name(collection: str, identifier: str) -> str:
    """Return `collection/identifier`."""
    return f"{collection}/{identifier}"


def resource_id(collection: str, name: str, field: str = "name") -> str:
    """Return the id in `name`, which is `collection/id` or the bare id.

    Raises InvalidRequestError naming `field` when it is empty.
    """
    identifier = name.removeprefix(f"{collection}/").strip()
    if not identifier:
        raise InvalidRequestError.of(field, f"is empty; give {collection}/<id>")
    return identifier
