"""Laying configurations over another: mergo's rules, and nothing shared."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.gallery.resolve.config_merge import merge, model_config

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False)
)
VALUES = st.recursive(
    SCALARS | st.lists(SCALARS, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, max_size=4),
    max_leaves=12,
)
MAPS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


def test_maps_are_merged_and_everything_else_is_replaced() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": True, "c": "text", "d": 1}
    over = {"a": {"y": [3]}, "b": False, "c": "", "d": 0, "e": None}

    assert merge(base, over) == {
        "a": {"x": 1, "y": [3]}, "b": False, "c": "", "d": 0, "e": None
    }  # fmt: skip


def test_a_map_replaces_a_scalar_and_the_other_way_round() -> None:
    assert merge({"a": 1, "b": {"x": 1}}, {"a": {"x": 1}, "b": 2}) == {"a": {"x": 1}, "b": 2}


def test_precedence_of_a_models_configuration() -> None:
    config = model_config(
        {"name": "base", "p": {"t": 1, "u": 1, "v": 1}},
        "mine",
        {"p": {"u": 2, "v": 2}},
        {"p": {"v": 3}},
    )

    assert config == {"name": "mine", "p": {"t": 1, "u": 2, "v": 3}}
    assert model_config({}, "mine", {"name": "theirs"})["name"] == "theirs"


@given(MAPS, MAPS)
def test_neither_side_is_changed_or_shared(base: dict[str, Any], over: dict[str, Any]) -> None:
    before = copy.deepcopy((base, over))

    result = merge(base, over)

    assert (base, over) == before
    _spoil(result)
    assert (base, over) == before


@given(MAPS, MAPS)
def test_what_is_laid_over_wins_and_the_rest_stays(
    base: dict[str, Any], over: dict[str, Any]
) -> None:
    result = merge(base, over)

    assert merge(result, over) == result
    assert merge(base, {}) == base
    assert merge({}, over) == over
    _assert_laid(base, over, result)


def _assert_laid(base: Any, over: Any, result: Any) -> None:
    assert set(result) == {*base, *over}
    for key, value in result.items():
        if key not in over:
            assert value == base[key]
        elif isinstance(over[key], dict) and isinstance(base.get(key), dict):
            _assert_laid(base[key], over[key], value)
        else:
            assert value == over[key]


def _spoil(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _spoil(item)
        value["spoilt"] = True
    elif isinstance(value, list):
        value.append("spoilt")
