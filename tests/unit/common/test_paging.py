import pytest

from services.common.errors import InvalidRequestError
from services.common.paging import DEFAULT_PAGE_SIZE, MAXIMUM_PAGE_SIZE, Page, paginate


def page(items: list[str], size: int = 2, token: str = "", scope: object = "") -> Page[str]:
    return paginate(items, size=size, token=token, key=str, scope=scope)


def test_pages_follow_each_other() -> None:
    first = page(["a", "b", "c"])
    assert (first.items, first.total) == (["a", "b"], 3)
    last = page(["a", "b", "c"], token=first.next_token)
    assert (last.items, last.next_token) == (["c"], "")


def test_changes_of_the_list_neither_repeat_nor_hide_items() -> None:
    token = page(["a", "b", "c"]).next_token
    assert page(["aa", "b", "bb", "c"], size=9, token=token).items == ["bb", "c"]
    assert page(["c", "d"], size=9, token=token).items == ["c", "d"]


def test_the_size_has_a_default_and_a_maximum() -> None:
    many = [f"{number:05}" for number in range(MAXIMUM_PAGE_SIZE + 1)]
    assert len(page(many, size=0).items) == DEFAULT_PAGE_SIZE
    assert len(page(many, size=10**6).items) == MAXIMUM_PAGE_SIZE


def test_wrong_sizes_and_tokens_are_refused() -> None:
    token = page(["a", "b", "c"], scope="x").next_token
    for size, bad, field in (
        (-1, "", "page_size"),
        (2, "é!", "page_token"),
        (2, token, "page_token"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            page(["a", "b", "c"], size=size, token=bad, scope="y")
        assert caught.value.violations[0].field == field
