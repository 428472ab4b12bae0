"""What is wrong with a text that should be YAML, TOML or JSON, in our own words.

The libraries' words change with their versions, and most are about their parsers. Each known problem has words
and a remedy here; any other keeps its line and column.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import yaml

_NOT_PRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # YAML 1.2, 5.1
)
_TOML_PLACE = re.compile(r"\(at line (\d+), column (\d+)\)$")

_ANY: Final = ("it cannot be parsed", "fix the {format} there")
_TOO_DEEP: Final = ("nested too deep", "no configuration needs that")
_NOT_UTF8: Final = ("not UTF-8", "save the file in that encoding")
_CONTROL: Final = ("a control character", "remove it, or write it as an escape in double quotes")

_INDENT: Final = "indent the settings of one map alike"
_BRACKET: Final = "close the bracket, or put the text into quotes"
_SPECIAL: Final = "put a text with special characters into quotes"
_ESCAPE: Final = "use single quotes where a backslash is only a backslash"

# The first pair whose words are in the library's wins. libyaml and PyYAML's own parser differ in many.
_YAML: Final = (
    ("nesting depth", *_TOO_DEEP),
    ("tab character", "a tab in the indentation", "indent with spaces, not tabs"),
    (
        "cannot start any token",
        "a character that cannot begin a value",
        f"{_SPECIAL}, and indent with spaces, not tabs",
    ),
    ("special characters", *_CONTROL),
    ("control characters", *_CONTROL),
    (
        "mapping values are not allowed",
        "`: ` inside a value",
        "put a text with `: ` in it into quotes",
    ),
    ("mapping keys are not allowed", "`? ` inside a value", _SPECIAL),
    (
        "sequence entries are not allowed",
        "`- ` where no list item can begin",
        "write the first item on a line of its own",
    ),
    (
        "could not find expected ':'",
        "a line without `name:`",
        "write `name: value`, and indent what belongs to a block text",
    ),
    ("unexpected end of stream", "a quote that is not closed", "close the quote or the bracket"),
    (
        "unexpected document indicator",
        "`---` or `...` within a quoted text",
        "close the quote, or indent the line",
    ),
    ("unknown escape", "an unknown escape after a backslash", _ESCAPE),
    ("hexdecimal", "an escape without its hexadecimal digits", _ESCAPE),
    ("hexadecimal", "an escape without its hexadecimal digits", _ESCAPE),
    ("invalid Unicode", "an escape for a character that does not exist", _ESCAPE),
    ("undefined alias", "an alias without its anchor", "put a text that begins with `*` into quotes"),
    ("alphabetic or numeric", "`&` or `*` without a name", _SPECIAL),
    ("unhashable key", "a map or a list as a name", "put a text that begins with `{` into quotes"),
    ("did not find expected key", "no setting where one was expected", _INDENT),
    ("expected <block end>", "no setting where one was expected", _INDENT),
    ("expected '-' indicator", "no list item where one was expected", "indent the items of one list alike"),
    ("expected node content", "a missing value", "close the bracket"),
    ("the node content", "a missing value", "close the bracket"),
    ("expected ',' or", "a missing `,` or closing bracket", _BRACKET),
    ("comment or line break", "more text after a block indicator", "begin the text on the next line"),
    ("indentation indicator", "a block text indented by 0", "indent it by at least 1"),
    ("directive", "a wrong line that begins with `%`", "put a text that begins with `%` into quotes"),
    ("tag handle", "an unknown prefix of a tag", "put a text that begins with `!` into quotes"),
    ("a constructor for the tag", "an unknown tag", "put a text that begins with `!` into quotes"),
    ("document start", "a second document without `---`", "write all settings as one map"),
    ("for merging", "`<<` of something that is not a map", "name a map, or a list of maps"),
    ("recursive", "a value that contains itself", "write the value out in place of its alias"),
)  # fmt: skip


class TextSyntaxError(ValueError):
    """A text is not in its format. The message is made of the parts below, all in our own words."""

    def __init__(
        self, kind: str, problem: str, remedy: str, line: int | None, column: int | None
    ) -> None:
        """`line` and `column` count from 1, and are None where the place is not known."""
        place = f" (line {line}, column {column})" if line is not None else ""
        super().__init__(f"is not {kind}: {problem}{place}; {remedy}")
        self.problem = problem
        self.remedy = remedy
        self.line = line
        self.column = column


@contextmanager
def yaml_errors(content: str | bytes) -> Iterator[None]:
    """Raise TextSyntaxError where reading `content` as YAML fails within; UnicodeError passes."""
    try:
        yield
    except RecursionError as error:
        raise _error("YAML", _TOO_DEEP) from error
    except yaml.reader.ReaderError as error:
        text = content if isinstance(content, str) else content.decode()
        bad = _NOT_PRINTABLE.search(text)
        place = _place(text, bad.start()) if bad else (None, None)
        raise _error("YAML", _CONTROL if bad else _ANY, *place) from error
    except yaml.MarkedYAMLError as error:
        words = error.problem or ""
        known = next((ours for theirs, *ours in _YAML if theirs in words), _ANY)
        problem, remedy = known
        mark = error.problem_mark or error.context_mark
        if mark is None or problem == _TOO_DEEP[0]:
            raise _error("YAML", (problem, remedy)) from error
        text = content if isinstance(content, str) else content.decode("utf-8", "replace")
        # libyaml counts the end of the text as a line of its own.
        line = min(mark.line + 1, max(len(text.splitlines()), 1))
        raise _error("YAML", (problem, remedy), line, mark.column + 1) from error
    except yaml.YAMLError as error:
        raise _error("YAML", _ANY) from error


@contextmanager
def toml_errors() -> Iterator[None]:
    """Raise TextSyntaxError where reading TOML fails within."""
    try:
        yield
    except RecursionError as error:
        raise _error("TOML", _TOO_DEEP) from error
    except ValueError as error:
        found = _TOML_PLACE.search(str(error))
        place = (int(found[1]), int(found[2])) if found else (None, None)
        raise _error("TOML", _ANY, *place) from error


@contextmanager
def json_errors() -> Iterator[None]:
    """Raise TextSyntaxError where reading JSON fails within."""
    try:
        yield
    except RecursionError as error:
        raise _error("JSON", _TOO_DEEP) from error
    except UnicodeDecodeError as error:
        raise _error("JSON", _NOT_UTF8) from error
    except json.JSONDecodeError as error:
        raise _error("JSON", _ANY, error.lineno, error.colno) from error


def _error(
    kind: str, words: tuple[str, str], line: int | None = None, column: int | None = None
) -> TextSyntaxError:
    problem, remedy = words
    return TextSyntaxError(kind, problem, remedy.replace("{format}", kind), line, column)


def _place(text: str, offset: int) -> tuple[int, int]:
    start = text.rfind("\n", 0, offset) + 1
    return text.count("\n", 0, offset) + 1, offset - start + 1
