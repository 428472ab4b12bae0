"""Positions in a model's YAML: the parts of a file, and the line of each field.

Used only for errors and for GetModel; reading a file for its values does not need it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import yaml

from services.common.go_yaml import first_node

_ITEM = re.compile(rb"^- ?", re.MULTILINE)
_KEY = re.compile(r"^( *(?:- +)*)([\w.-]+):(?:\s|$)")
_MERGE = "<<"


@dataclass(frozen=True)
class Part:
    """A stretch of a file that is YAML by itself."""

    content: bytes
    first_line: int = 1
    """The line of the file in which it begins."""

    @cached_property
    def root(self) -> yaml.Node | None:
        """Its nodes. Raises ValueError."""
        return first_node(self.content)


def items(content: bytes) -> list[Part]:
    """Return the items of a list that is written as a block, each by itself; empty if it is not one.

    An item ends where the next begins, in the first column, so what is broken within one leaves the
    others readable.
    """
    starts = [match.start() for match in _ITEM.finditer(content)]
    if not starts or any(_is_content(line) for line in content[: starts[0]].splitlines()):
        return []
    ends = [*starts[1:], len(content)]
    return [
        Part(content[start:end], content.count(b"\n", 0, start) + 1)
        for start, end in zip(starts, ends, strict=True)
    ]


def _is_content(line: bytes) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith((b"#", b"---", b"%"))


class Lines:
    """The lines of one model's fields."""

    def __init__(self, part: Part, position: int | None = None) -> None:
        """`position` selects an item if `part` holds a list. Raises ValueError."""
        self._first = part.first_line
        node = part.root
        if isinstance(node, yaml.SequenceNode) and position is not None:
            node = node.value[position] if position < len(node.value) else None
        self._node = node

    def of(self, path: Sequence[str | int]) -> int:
        """Return the line of the field, or of the nearest existing field around it."""
        node, mark = self._node, self._node
        for part in path:
            found = _child(node, part)
            if found is None:
                break
            mark, node = found
        return self._first + mark.start_mark.line if mark is not None else self._first


def _child(node: yaml.Node | None, part: str | int) -> tuple[yaml.Node, yaml.Node] | None:
    """Return what marks the place of a key or an item, and its value."""
    if isinstance(node, yaml.SequenceNode):
        if isinstance(part, int) and part < len(node.value):
            return node.value[part], node.value[part]
        return None
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in reversed(node.value):
        if key.value == str(part):
            return key, value
    for merged in _merged(node):
        if found := _child(merged, part):
            return found
    return None


def _merged(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    for key, value in node.value:
        if key.value == _MERGE:
            yield from value.value if isinstance(value, yaml.SequenceNode) else (value,)


def key_above(text: str, line: int) -> str:
    """Return the path of the key at or above the given line (from 1), as far as it can be
    determined.

    For a text that is not valid YAML: it goes by the indentation alone.
    """
    path: list[str] = []
    limit: int | None = None
    for content in reversed(text.splitlines()[:line]):
        match = _KEY.match(content)
        if match is None:
            continue
        indent = len(match[1])
        if limit is None or indent < limit:
            path.insert(0, match[2])
            limit = indent
        if limit == 0:
            break
    return ".".join(path)
