"""Finds entries by name, by filter and by words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.common.errors import EntryNotFoundError, InvalidRequestError, Resource

from .entry import Entry


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Conditions on entries, combined by AND; an empty one always matches."""

    tag: str = ""
    usecase: str = ""
    backend: str = ""
    installed: bool | None = None
    gallery: str = ""

    def keeps(self, entry: Entry, *, installed: bool) -> bool:
        """Return whether an entry matches."""
        return (
            (not self.tag or self.tag.lower() in (tag.lower() for tag in entry.tags))
            and (not self.usecase or self.usecase.lower() in entry.usecases)
            and (not self.backend or self.backend.lower() == entry.backend.lower())
            and (self.installed is None or self.installed == installed)
            and (not self.gallery or self.gallery == entry.gallery)
        )


def find_entry(entries: Iterable[Entry], asked: str, *, field: str = "entry") -> Entry:
    """Return the entry that `model`, `gallery@model` or `galleries/{gallery}/models/{model}` names.

    As in LocalAI: case does not matter, `/` means `__`, and without a gallery the first match counts.
    """
    text = asked.strip()
    if not text:
        raise InvalidRequestError.of(field, "is empty; give {model} or {gallery}@{model}")
    parts = text.split("/")
    if len(parts) >= 4 and parts[0] == "galleries" and parts[2] == "models":
        text = f"{parts[1]}@{'/'.join(parts[3:])}"
    wanted = text.replace("/", "__").lower()
    known = list(entries)
    for entry in known:
        if wanted == (entry.full_name if "@" in wanted else entry.name).lower():
            return entry
    raise EntryNotFoundError(
        f"no model found with name {asked!r}{_nearest(wanted, known)}",
        resource=Resource("model entry", asked),
    )


def search_entries(entries: Iterable[Entry], query: str) -> list[Entry]:
    """Return the entries with all words, the best match first."""
    words = query.lower().split()
    if not words:
        raise InvalidRequestError.of("query", "is empty; give at least one word")
    ranked = []
    for position, entry in enumerate(entries):
        ranks = [_rank(entry, word) for word in words]
        if any(rank is None for rank in ranks):
            continue
        # The whole query first: "llama 3" matches llama-3 better than two separate words.
        whole = _rank(entry, "-".join(words))
        best = whole if whole is not None else _NOWHERE
        ranked.append(((best, sum(r for r in ranks if r is not None), position), entry))
    ranked.sort(key=lambda item: item[0])
    return [entry for _, entry in ranked]


_NOWHERE = 6


def _rank(entry: Entry, word: str) -> int | None:
    """Return the rank of a match, 0 for the exact name; None if the word does not occur."""
    name = entry.name.lower()
    if name == word:
        return 0
    if name.startswith(word):
        return 1
    if word in name:
        return 2
    if any(word in tag.lower() for tag in entry.tags):
        return 3
    if word in entry.description.lower():
        return 4
    return 5 if word in entry.gallery.lower() else None


def _nearest(wanted: str, entries: Sequence[Entry]) -> str:
    name = wanted.rpartition("@")[2]
    names = {entry.name.lower(): entry.name for entry in entries}
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    near += [known for known in names if name in known and known not in near][: 3 - len(near)]
    return f"; similar names: {', '.join(names[known] for known in near)}" if near else ""
