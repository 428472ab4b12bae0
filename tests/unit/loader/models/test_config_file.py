"""Errors in a model's file are reported with file, line, field and fix; the rest of it is kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import ModelConfigError
from services.loader.models.config_file import is_gallery_entry, lines_of, models_in, read_file
from services.loader.models.entry import ModelEntry


def models(text: str | bytes, file: str = "f.yaml") -> list[ModelEntry]:
    return list(models_in(text.encode() if isinstance(text, str) else text, file))


def error(text: str | bytes) -> str:
    (entry,) = models(text)
    assert entry.error is not None and entry.name
    return str(entry.error)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: m\ncontext_size: many\n", "f.yaml, line 2, context_size: 'many' is not a whole number"),
        ("name: m\n\n# x\nlimits:\n  max_concurrent: -1\n", "line 5, limits.max_concurrent: -1 is too small"),
        ("name: m\nf16: [1]\n", "line 2, f16: [1] is neither true nor false"),
        ("name: m\nrms_norm_eps: x\n", "line 2, rms_norm_eps: 'x' is not a number"),
        ("name: m\ngrpc: 3\n", "line 2, grpc: 3 is not a map"),
        ("name: m\nlora_scales: 3\n", "line 2, lora_scales: 3 is not a list"),
        ("name: m\noptions:\n- a:1\n- b: 2\n", "line 4, options.1: {'b': 2} is not a text"),
        ("name: m\nthreads: 99999999999\n", "line 2, threads: 99999999999 is too large"),
        ("name: m\nparameters:\n  model: ../x\n", "line 3, parameters.model: '../x' leads out"),
        ("name: m\nmemory: 4 potatoes\n", "line 2, memory: '4 potatoes' is not a size"),
        ("name: m\nmemory:\n  disk: 4\n", "line 2, memory: 'disk' is not a device; name them ram, gpu0"),
        ("name: m\nalias: m\n", "line 2, alias: the model is an alias of itself"),
        ("name: m\nalias: n\nbackend: x\n", "line 2, alias: an alias has no backend"),
        ("name: m\nalias: n\nparameters: {model: x}\n", "line 3, parameters: an alias has no model"),
        ("name: [m]\nparameters: {model: x}\n", "line 1, name: ['m'] is not a text"),
        ("name: m\nx: &a {threads: no number}\n<<: *a\n", "line 2, threads: 'no number' is not a whole"),
        ("name: m\nx: [1, 2\ny: 3\n", "f.yaml, line 3, y: is not YAML: "),
        ("name: m\nparameters:\n  model: a: b\n", "line 3, parameters.model: is not YAML: `: ` inside a value (column 11)"),
        ("name: m\n\tf16: true\n", "indent with spaces, not tabs"),
        ("name: m\nparameters:\n  model: x\n backend: y\n", "f.yaml, line 4, parameters.backend: is not YAML"),
        ('name: m\nx: "open\n', "f.yaml, line 2, x: is not YAML: a quote that is not closed (column "),
        ("name: m\ntemplate: {{.Input}}\n", "put a text that begins with `{` into quotes"),
        (b"name: m\nx: \xff\n", "f.yaml, line 2: is not UTF-8; save the file in that encoding"),
        ("", "f.yaml, line 1: must be a map of settings, or a list of such maps"),
        ("just text", "must be a map"),
        ("a: &a [x, x]\nb: &b [*a, *a]\n" * 1 + "".join(
            f"c{n}: &c{n} [{', '.join([f'*c{n - 1}' if n else '*b'] * 9)}]\n" for n in range(9)
        ), "its aliases multiply it beyond any sense"),
        ("a: &a {b: *a}\n", "its aliases multiply it beyond any sense"),
        ("[" * 5000, "f.yaml: is not YAML: nested too deep; no configuration needs that"),
        ("name: m\nthreads: 0x_\n", "f.yaml: is not YAML: '0x_' is not a number; put it into quotes"),
    ],
)  # fmt: skip
def test_it_is_told_what_is_wrong_where(text: str | bytes, told: str) -> None:
    assert told in error(text)


def test_every_wrong_field_is_named() -> None:
    (entry,) = models("name: m\nthreads: x\nf16: maybe\n")
    assert entry.error is not None
    assert [violation.field for violation in entry.error.violations] == ["threads", "f16"]
    assert "line 2" in str(entry.error) and "line 3" in str(entry.error)


def test_one_broken_model_of_a_list_leaves_the_others() -> None:
    text = "- name: a\n- name: b\n  threads: x\n- 7\n- name: d\n"
    a, b, odd, d = models(text)
    assert (a.error, d.error) == (None, None) and (a.name, d.name) == ("a", "d")
    assert b.name == "b" and "f.yaml[1], line 3, threads: 'x' is not" in str(b.error)
    assert odd.name == "f[2]" and "f.yaml[2], line 4: must be a map" in str(odd.error)


def test_a_list_that_is_no_yaml_keeps_the_items_that_are() -> None:
    text = "# all\n- name: a\n- name: b\n  x: [1\n- name: c\n  threads: x\n- name: d\n"
    a, b, c, d = models(text)
    assert [a.name, c.name, d.name] == ["a", "c", "d"] and a.error is None and d.error is None
    assert b.name == "f[1]" and "f.yaml[1], line 4, x: is not YAML" in str(b.error)
    assert "line 6, threads" in str(c.error)
    assert lines_of(text.encode(), d.position).of(("name",)) == 7


def test_lines_are_those_of_the_model_in_its_file() -> None:
    text = "- name: a\n  parameters:\n    model: x\n- name: b\n  options:\n  - a:1\n  - b:2\n"
    assert lines_of(text.encode(), 0).of(("parameters", "model")) == 3
    lines = lines_of(text.encode(), 1)
    assert [lines.of(path) for path in (("name",), ("options", 1), ("nothing",))] == [4, 7, 4]


@pytest.mark.parametrize(
    "text",
    [
        "name: x\nconfig_file: |\n  backend: y\n",
        "- name: x\n  url: github:x\n  overrides: {backend: y}\n- name: z\n  url: u\n",
        "name: x\nfiles: [{filename: f, uri: u}]\n",
    ],
)
def test_a_gallery_s_file_is_no_model(text: str) -> None:
    assert models(text) == []


def test_a_model_with_words_of_galleries_is_one() -> None:
    assert not is_gallery_entry({"parameters": {}, "url": "x", "files": []})
    assert not is_gallery_entry({"overrides": ["a=int:1"], "description": "x"})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("limits: {max_concurrent: 3}\noptions: ['parallel:8']", 3),
        ("options: ['parallel:8', gpu]", 8),
        ("options: ['n_parallel: 2']", 2),
        ("options: ['parallel:many', parallel]", 0),
        ("name: x", 0),
    ],
)
def test_how_many_calls_at_once(text: str, calls: int) -> None:
    (entry,) = models(text)
    assert entry.config.concurrency == calls


def test_only_the_own_part_of_a_list_changes_the_revision() -> None:
    before = {m.name: m.revision for m in models("- name: a\n- name: b\n  threads: 1\n")}
    after = {m.name: m.revision for m in models("# x\n- name: b\n  threads: 2\n- name: a\n")}
    assert before["a"] == after["a"] and before["b"] != after["b"]


def test_what_is_no_file_is_told_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "link.yaml").symlink_to("nowhere")
    (tmp_path / "huge.yaml").touch()
    os.truncate(tmp_path / "huge.yaml", 10**9)
    for name, what in (
        ("pipe.yaml", "pipe.yaml: is not a file"),
        ("link.yaml", "is a link to 'nowhere', which does not exist"),
        ("huge.yaml", "is larger than"),
        ("none.yaml", "none.yaml: cannot be read: No such file"),
    ):
        with pytest.raises(ModelConfigError, match=what):
            read_file(str(tmp_path / name))


@given(
    st.binary(max_size=60)
    | st.text(alphabet="-:[]{}&*#'\"|> \n\tabm0", max_size=60).map(str.encode)
)
def test_no_text_does_more_than_be_wrong(content: bytes) -> None:
    for entry in models(content):
        assert entry.name or entry.error
        if entry.error is None:
            line = lines_of(content, entry.position).of(("name",))
            assert 1 <= line <= len(content.splitlines())
