"""Entries as LocalAI's index has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.gallery.index.document import DocumentError
from services.gallery.index.entry import FileSpec, parse_base_config, parse_index
from services.gallery.resolve.config_merge import merge

REAL = Path(__file__).parents[5] / "shared" / "data" / "localai"
INDEX = """
- &base
  name: first
  url: github:mudler/LocalAI/gallery/virtual.yaml@master
  tags: [llm, GGUF]
  license: apache-2.0
  size: 1.5GiB
  last_checked: 2026-01-01
  variants: [{model: second}]
  overrides: {backend: llama-cpp, known_usecases: [FLAG_CHAT], parameters: {model: a.gguf}}
  files:
    - {filename: a.gguf, uri: "huggingface://o/r/a.gguf", sha256: %s, mirrors: ["https://m/a.gguf"]}
- <<: *base
  name: second
  variants:
  overrides: &o {parameters: {model: b.gguf}}
- {name: third, overrides: *o, config_file: {backend: whisper}, parameters: {junk: 1}}
- {name: FIRST, description: the second one of this name}
- {description: no name}
- 5
- {name: bad, files: [{filename: x}]}
- {name: worse, files: [{filename: x, uri: "https://h/x", sha256: abc}]}
""" % ("AB" * 32)


def test_an_index_in_localais_format() -> None:
    entries, problems = parse_index(INDEX, "g")

    first, second, third = entries
    assert (first.name, first.full_name, first.backend) == ("first", "g@first", "llama-cpp")
    assert first.usecases == ("chat",)
    assert first.size == 3 * 1024**3 // 2
    assert first.variants == ("second",)
    assert first.files == (
        FileSpec("a.gguf", ("huggingface://o/r/a.gguf", "https://m/a.gguf"), "ab" * 32),
    )
    assert second.tags == first.tags
    assert second.variants == ()
    assert third.backend == "whisper"
    assert len(problems) == 4
    assert "no name" in problems[0]
    assert "'bad'" in problems[2]
    assert "without a uri" in problems[2]


def test_entries_that_share_an_anchor_share_no_state() -> None:
    entries, _ = parse_index(INDEX, "g")
    config = merge({}, entries[1].overrides)
    config["parameters"]["model"] = "other"

    assert entries[2].overrides == {"parameters": {"model": "b.gguf"}}
    assert entries[1].overrides["parameters"] is not entries[2].overrides["parameters"]


def test_what_is_no_index() -> None:
    for text in ("404: Not Found", "a: 1", "<html>", ""):
        with pytest.raises(DocumentError):
            parse_index(text, "g")


def test_a_base_configuration() -> None:
    base = parse_base_config(
        "name: x\ndescription: d\nconfig_file: |\n  backend: b\n  f16: true\n"
        "prompt_templates: [{name: chat, content: '{{.Input}}'}]\n"
        "files: [{filename: f, uri: https://h/f}]\n"
    )

    assert base.config == {"backend": "b", "f16": True}
    assert base.templates[0].content == "{{.Input}}"
    assert base.files == (FileSpec("f", ("https://h/f",)),)
    assert parse_base_config("name: empty").config == {}


@pytest.mark.skipif(not REAL.is_dir(), reason="LocalAI's gallery data is not there")
def test_localais_own_gallery() -> None:
    entries, problems = parse_index((REAL / "models-index.yaml").read_text(), "localai")

    assert not problems
    assert len(entries) > 200
    assert all(file.uris and file.filename for entry in entries for file in entry.files)
    configs = [parse_base_config(p.read_text()) for p in sorted((REAL / "gallery").glob("*.yaml"))]
    assert len(configs) > 50
    assert sum(bool(base.config) for base in configs) > 45
