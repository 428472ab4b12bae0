"""A model's log: the lines kept, those that a reader gets, and how missed lines are reported."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.line_splitter import LineSplitter
from services.loader.logs.log_book import (
    MAXIMUM_LINE,
    Level,
    LogBook,
    LogNews,
    LogQuery,
    Stream,
)

OUT, ERR = Stream.STDOUT, Stream.STDERR
BATCHES = st.lists(
    st.tuples(st.sampled_from(list(Stream)), st.lists(st.text("aéx", max_size=9), max_size=600)),
    max_size=12,
)


async def collect(book: LogBook, query: LogQuery) -> list[LogNews]:
    return [news async for news in book.read(query)]


# Lines


@pytest.mark.parametrize("size", [MAXIMUM_LINE - 1, MAXIMUM_LINE, MAXIMUM_LINE + 1, 100_000])
def test_an_endless_line_is_cut(size: int) -> None:
    for chunk in (100, 4096, 1_000_000):
        splitter = LineSplitter(MAXIMUM_LINE)
        book = LogBook(1000)
        data = b"x" * size + b"\n"
        for at in range(0, len(data), chunk):
            book.extend(ERR, splitter.feed(data[at : at + chunk]), 1)
            assert len(splitter._rest) <= MAXIMUM_LINE
        pieces = book.tail(1000, generation=1, stream=ERR)
        assert "".join(pieces) == "x" * size
        assert len(pieces) == -(-size // MAXIMUM_LINE)


# What is kept


@given(BATCHES, st.integers(1, 700), st.integers(500, 20_000))
def test_the_newest_lines_are_kept_within_both_limits(
    batches: list[tuple[Stream, list[str]]], most: int, size: int
) -> None:
    book = LogBook(most, size)
    written: list[tuple[int, Stream, str]] = []
    for number, (stream, texts) in enumerate(batches):
        book.extend(stream, texts, number)
        written += [(number, stream, text) for text in texts]
        kept = [news.line for news in asyncio.run(collect(book, LogQuery())) if news.line]
        assert [(line.generation, line.stream, line.text) for line in kept] == written[
            len(written) - len(kept) :
        ]
        assert [line.sequence for line in kept] == list(
            range(len(written) - len(kept) + 1, len(written) + 1)
        )
        used = sum(sys.getsizeof(line.text) for line in kept)
        assert len(kept) <= most and used <= size
        # No line is dropped unnecessarily; the columns take 16 bytes a line.
        if len(kept) < min(most, len(written)):
            _, _, text = written[-len(kept) - 1]
            assert used + 16 * len(kept) + sys.getsizeof(text) + 16 > size


def test_an_empty_log_costs_nothing() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        books = [LogBook(1000, 4 * 1024**2) for _ in range(1000)]
        each = (tracemalloc.get_traced_memory()[0] - before) / len(books)
    finally:
        tracemalloc.stop()
    assert each < 200


def test_the_last_words_of_an_instance() -> None:
    book = LogBook(1000)
    book.extend(ERR, [f"e{n}" for n in range(300)], 1)
    book.append(OUT, "o", 1)
    book.extend(ERR, ["last  ", "  "], 1)
    book.append(ERR, "other", 2)
    assert book.tail(2, generation=1, stream=ERR) == ["e299", "last"]
    assert book.tail(9, generation=1, stream=OUT) == ["o"]


# What a reader gets


@given(BATCHES, st.integers(0, 3000), st.integers(0, 50), st.integers(1, 1500))
def test_history(batches: list[tuple[Stream, list[str]]], after: int, tail: int, most: int) -> None:
    book = LogBook(most)
    for stream, texts in batches:
        book.extend(stream, texts, 1)
    everything = [news.line for news in asyncio.run(collect(book, LogQuery())) if news.line]
    total = everything[-1].sequence if everything else 0
    query = LogQuery(after=after, tail=tail, streams=frozenset({ERR, OUT}))
    news = asyncio.run(collect(book, query))
    known = after if after <= total else 0
    wanted = [
        line for line in everything if line.sequence > known and line.stream is not Stream.LOADER
    ]
    lines = [item.line for item in news if item.line]
    assert lines == (wanted[-tail:] if tail else wanted)
    oldest = everything[0].sequence if everything else 1
    lost = max(oldest - 1 - known, 0) if known else 0
    assert sum(item.missed for item in news) == lost
    assert all(item.missed == 0 for item in news[1:])


@given(BATCHES, st.integers(1, 500), st.data())
def test_following_has_neither_gap_nor_repetition(
    batches: list[tuple[Stream, list[str]]], most: int, data: st.DataObject
) -> None:
    """However slow the reader is, each line is received or reported as missed, exactly once."""

    async def scenario() -> None:
        book = LogBook(most)
        total = 0
        seen = 0
        async with aclosing(book.read(LogQuery(follow=True))) as reader:
            for stream, texts in batches:
                book.extend(stream, texts, 1)
                total += len(texts)
                if seen == 0 and total and data.draw(st.booleans()):
                    continue
                for _ in range(data.draw(st.integers(0, 5))):
                    if seen == total:
                        break
                    news = await anext(reader)
                    missed = news.missed
                    if seen == 0 and news.line:
                        seen = news.line.sequence - missed - 1
                    assert news.line is not None
                    assert news.line.sequence == seen + missed + 1
                    seen = news.line.sequence
            while seen < total:
                news = await anext(reader)
                if seen == 0 and news.line:
                    seen = news.line.sequence - news.missed - 1
                seen += news.missed + (news.line is not None)
            assert seen == total
            waiting = asyncio.ensure_future(anext(reader))
            await asyncio.sleep(0)
            book.append(ERR, "one more", 2)
            news = await waiting
            assert news.line and news.line.sequence == total + 1 and news.missed == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("pushed_out", [3, 5, 50])
async def test_history_that_is_overtaken_ends_where_it_was(pushed_out: int) -> None:
    book = LogBook(10)
    book.extend(OUT, ["x"] * 10, 1)
    async with aclosing(book.read(LogQuery())) as reader:
        first = await anext(reader)
        # The reader holds the lines of one block; those of the next may be dropped meanwhile.
        book.extend(ERR, ["y"] * pushed_out, 1)
        rest = [news async for news in reader]
    assert first.line and first.line.sequence == 1
    last = rest[-1].line.sequence if rest[-1].line else 0
    assert all(news.line is None or news.line.text == "x" for news in rest)
    assert last + sum(news.missed for news in rest) == 10


async def test_lines_that_are_not_wanted_do_not_hide_what_was_missed() -> None:
    book = LogBook(10)
    book.extend(OUT, ["x"] * 5, 1)
    query = LogQuery(after=3, follow=True, streams=frozenset({ERR}))
    async with aclosing(book.read(query)) as reader:
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        book.extend(OUT, ["y"] * 40, 1)
        assert await waiting == LogNews(None, 30)
        waiting = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        book.append(ERR, "z", 1)
        news = await waiting
        assert news.line and news.line.text == "z" and news.missed == 0


async def test_levels() -> None:
    book = LogBook(10)
    book.extend(ERR, ["[ERROR] a", "no word of it", "[INFO] b"], 1)
    book.append(Stream.LOADER, "starting", 1, Level.INFO)
    book.append(Stream.LOADER, "gave up", 1, Level.ERROR)
    news = await collect(book, LogQuery(minimum=Level.INFO))
    assert [item.line.text for item in news if item.line] == [
        "[ERROR] a",
        "[INFO] b",
        "starting",
        "gave up",
    ]
    news = await collect(book, LogQuery(minimum=Level.ERROR, tail=1))
    assert [item.line.sequence for item in news if item.line] == [5]
