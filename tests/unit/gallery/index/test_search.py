"""Finding entries."""

from __future__ import annotations

import pytest

from services.common.errors import EntryNotFoundError, InvalidRequestError
from services.gallery.index.entry import Entry
from services.gallery.index.search import EntryFilter, find_entry, search_entries

ENTRIES = [
    Entry("one", "llama-3.2-1b:q4", description="A small model", tags=("llm", "GGUF")),
    Entry("one", "owner__phi", description="like llama, but smaller", tags=("llm",)),
    Entry("two", "Llama-3.2-1b:q4", tags=("gpu",), overrides={"backend": "vllm"}),
    Entry("two", "llama", overrides={"known_usecases": ["FLAG_CHAT"]}),
    Entry("two", "my-llama", tags=("chat",)),
    Entry("two", "whisper", description="speech", tags=("llama-free",)),
]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("llama-3.2-1b:q4", "one@llama-3.2-1b:q4"),
        ("LLAMA-3.2-1B:Q4", "one@llama-3.2-1b:q4"),
        ("two@llama-3.2-1b:q4", "two@Llama-3.2-1b:q4"),
        ("owner/phi", "one@owner__phi"),
        ("one@owner/phi", "one@owner__phi"),
        ("galleries/two/models/whisper", "two@whisper"),
        (" whisper ", "two@whisper"),
    ],
)
def test_names_as_people_write_them(asked: str, found: str) -> None:
    assert find_entry(ENTRIES, asked).full_name == found


def test_an_unknown_name_is_answered_with_near_ones() -> None:
    with pytest.raises(EntryNotFoundError, match=r"no model found with name 'wisper'.*whisper"):
        find_entry(ENTRIES, "wisper")
    with pytest.raises(EntryNotFoundError):
        find_entry(ENTRIES, "one@whisper")
    with pytest.raises(InvalidRequestError, match="name:"):
        find_entry(ENTRIES, " ", field="name")


def test_search_ranks_name_before_tag_before_description() -> None:
    names = [entry.full_name for entry in search_entries(ENTRIES, "LLAMA")]

    assert names == [
        "two@llama",
        "one@llama-3.2-1b:q4",
        "two@Llama-3.2-1b:q4",
        "two@my-llama",
        "two@whisper",
        "one@owner__phi",
    ]


def test_all_words_must_occur() -> None:
    assert [e.name for e in search_entries(ENTRIES, "llama small")] == [
        "llama-3.2-1b:q4",
        "owner__phi",
    ]
    assert search_entries(ENTRIES, "llama nonsense") == []
    with pytest.raises(InvalidRequestError, match="query"):
        search_entries(ENTRIES, "  ")


def test_the_filter() -> None:
    def kept(**conditions: object) -> list[str]:
        wanted = EntryFilter(**conditions)  # type: ignore[arg-type]
        return [e.full_name for e in ENTRIES if wanted.keeps(e, installed=e.name == "llama")]

    assert kept(tag="gguf") == ["one@llama-3.2-1b:q4"]
    assert kept(usecase="chat") == ["two@llama"]
    assert kept(backend="VLLM") == ["two@Llama-3.2-1b:q4"]
    assert kept(installed=True) == ["two@llama"]
    assert len(kept(installed=False)) == 5
    assert kept(gallery="one", tag="llm", installed=False) == [
        "one@llama-3.2-1b:q4",
        "one@owner__phi",
    ]
