"""Counts phrases that make the project's English hard to read, where users and where developers meet them.

`python -m scripts.plain_english` prints a table of counts and fails if users would meet any of the
phrases or developers more than the limit; `--show PATTERN` lists the places of one of them (or of all:
`--show all`), `--only PATH` looks at the files below one path.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Phrase by phrase: a name, what finds it, and what to write instead.
PHRASES = {
    "who": (
        r"\b[Ww]ho(?:m|ever|mever)?\b",
        "the caller, the client, the process",
    ),
    "somebody": (r"\b(?:some|no|every|any)body\b|\bsomeone\b", "name the role: another process"),
    "is to be": (
        r"\b(?:is|are|was|were) to (?:be|go|have|stay|stop|end|come|run)\b",
        "will, should, must",
    ),
    "take note": (r"\b[Tt]ak(?:e|es|ing) note\b|\bnotes? that\b", "called when; mark as"),
    "hear": (
        r"\b(?:hears?|heard|told|tells?|says?|said)\b",
        "is called with, reports, returns, names; the message",
    ),
    "otherwise than": (
        r"\b(?:stands?|waits?|looks?|written) otherwise\b|\botherwise now\b",
        "changed",
    ),
    "stands": (r"\bstands?\b(?! for\b)", "is"),
    "so many": (r"\bso (?:many|much|long|often)\b(?! as)(?! that)", "name the number"),
    "as many as may": (r"\bas (?:many|much|long|far) as (?:may|can) be\b|\bas many as may\b", "the maximum"),
    "else": (r"(?:^|[.;:] )Else\b|[;,] else (?!if\b)", "Otherwise"),
    "beside": (r"\b[Bb]eside\b", "alongside, next to, in addition to"),
    "anew": (
        r"\banew\b|\bfor ever\b|\bbut for\b|\bcom(?:e|es|ing) into being\b",
        "again, forever, except for, is created",
    ),
    "mend": (r"\bmend(?:s|ed|ing)?\b", "fix"),
    "let go": (r"\blet(?:s|ting)? go\b", "release"),
    "of which": (r"\bof which\b|\bof whom\b|\bin which the\b", "whose, with, where"),
    "what there is": (r"\b[Ww]hat there is\b|\bwhat a load would be\b", "a noun"),
    "is none of": (r"\b(?:is|are) none of\b|\bof no use\b|\bis as none\b", "is treated as empty"),
    "begin with": (r"\"\"\"(?:Take (?:the|what|its|a|an)\b|Begin with\b)", "drop, or say what the arguments are"),
    "look": (
        r"\b(?:a|one|each|every|the next|another) look\b|\blook(?:s|ed|ing)? (?:again|anew)\b",
        "check, poll, scan",
    ),
    "metaphor": (
        r"\bgoodbye\b|\bout of the house\b|\bhopeless\b|\bwish(?:es)?\b|\bheading\b",
        "GOAWAY, blocked, request, metadata",
    ),
}  # fmt: skip

CODE = ("services", "backends", "sdk", "scripts", "benchmarks", "tests")
GENERATED = re.compile(r"_pb2(?:_grpc)?\.pyi?$|^protos/third_party/|^docs/performance\.json$")
# Where a string is data for a test, or a phrase is what is looked for.
EXEMPT = ("scripts/plain_english.py", "tests/contract/backend-contract.json")
HELP = re.compile(r"(?:^|/)(?:config|settings|live_settings)\.py$|^services/cli/commands/")
LIMIT = 125
"""The most that comments and docstrings may have: a tenth of what they had when this was written."""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of prose: where it begins, and whether users meet it."""

    file: str
    line: int
    text: str
    users: bool


def tracked() -> list[str]:
    """Return the files of the checkout that are written by hand."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [
        name
        for name in listed.stdout.splitlines()
        if not GENERATED.search(name) and name not in EXEMPT and (ROOT / name).is_file()
    ]


def texts(name: str) -> Iterator[Text]:
    """Yield the prose of one file; nothing for a file that has none."""
    if name.endswith((".md", ".proto")):
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
            yield Text(name, number, line, users=True)
    elif name.endswith(".py") and name.startswith(CODE):
        yield from python_texts(name, (ROOT / name).read_text())


def python_texts(name: str, source: str) -> Iterator[Text]:
    """Yield a Python file's comments, docstrings and other strings."""
    own = name.startswith(("services", "backends", "sdk"))
    docs = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs.add(node.value.lineno)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            yield Text(name, line, token.string, users=False)
        elif token.type == tokenize.STRING:
            shown = line not in docs or bool(HELP.search(name))
            # What is in the braces of an f-string is code, not prose.
            prose = (
                re.sub(r"\{[^{}]*\}", "", token.string) if "f" in _prefix(token) else token.string
            )
            yield Text(name, line, " ".join(prose.split()), users=own and shown)
        elif tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            yield Text(name, line, token.string, users=own)


def _prefix(token: tokenize.TokenInfo) -> str:
    """Return the letters before a string's first quote."""
    return re.split("[\"']", token.string, maxsplit=1)[0].lower()


def main() -> int:
    """Print the counts; return 1 if there are more than may be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--show", metavar="PHRASE", help="list the places of one phrase, or `all`")
    parser.add_argument("--only", metavar="PATH", default="", help="the files below this path")
    options = parser.parse_args()
    found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for name in tracked():
        if not name.startswith(options.only):
            continue
        for text in texts(name):
            for phrase, (pattern, instead) in PHRASES.items():
                for match in re.finditer(pattern, text.text):
                    found[text.users][phrase] += 1
                    if options.show in (phrase, "all"):
                        start = max(0, match.start() - 40)
                        excerpt = text.text[start : match.end() + 40].strip()
                        mark = "users" if text.users else "code"
                        print(f"{name}:{text.line}: [{mark}] {excerpt}  ({phrase}: {instead})")
    if options.show:
        return 0
    print(f"{'phrase':16}{'users':>8}{'code':>8}")
    for phrase in PHRASES:
        print(f"{phrase:16}{found[True][phrase]:8}{found[False][phrase]:8}")
    users, code = found[True].total(), found[False].total()
    print(f"{'in all':16}{users:8}{code:8}   (at most 0 and {LIMIT})")
    return int(not options.only and (users > 0 or code > LIMIT))


if __name__ == "__main__":
    sys.exit(main())
