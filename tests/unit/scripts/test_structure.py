from pathlib import Path

import pytest

from scripts import structure
from scripts.structure import CircleError, Module, faults, longest_chain, read, table


def tree(folder: Path, **files: str) -> list[Module]:
    """Return the modules of a service `s` with these files; `a__b` stands for a/b.py."""
    root = folder / "services"
    for name, text in files.items():
        path = root.joinpath("s", *name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        for package in (path.parent, *path.parent.parents):
            if package == folder:
                break
            (package / "__init__.py").write_text('"""A package."""\n')
        path.write_text(text)
    return read(root)


def test_a_small_house_breaks_no_rule(tmp_path: Path) -> None:
    modules = tree(tmp_path, a="", p__b="from ..a import x\n")
    assert faults(modules) == []
    assert longest_chain(modules, "s") == ("p", "a")


def test_a_full_folder_is_reported(tmp_path: Path) -> None:
    files = {f"p__m{number}": "" for number in range(21)}
    assert faults(tree(tmp_path, **files)) == ["services/s/p: 21 modules in one folder, at most 20"]


def test_a_long_module_is_reported(tmp_path: Path) -> None:
    assert faults(tree(tmp_path, a="x = 1\n" * 400)) == []
    assert faults(tree(tmp_path, a="x = 1\n" * 401)) == ["services/s/a.py: 401 lines, at most 400"]


def test_a_class_with_many_public_methods_is_reported(tmp_path: Path) -> None:
    methods = "".join(f"    async def m{n}(self): ...\n" for n in range(25))
    methods += "    def _private(self): ...\n    def __len__(self): ...\n"
    assert faults(tree(tmp_path, a=f"class A:\n{methods}")) == []
    methods += "    @property\n    def more(self): ...\n"
    assert faults(tree(tmp_path, a=f"\nclass A:\n{methods}")) == [
        "services/s/a.py:2: A has 26 public methods, at most 25"
    ]


@pytest.mark.parametrize("text", ["", "x = 1\n", '"""A package."""\nfrom .a import b\n'])
def test_an_init_with_anything_but_a_docstring_is_reported(tmp_path: Path, text: str) -> None:
    tree(tmp_path, p__a="")
    (tmp_path / "services" / "s" / "p" / "__init__.py").write_text(text)
    assert faults(read(tmp_path / "services")) == [
        "services/s/p/__init__.py: must hold a docstring and nothing else"
    ]


def test_a_deep_chain_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = tree(
        tmp_path,
        a__x="import services.s.b.x\n",
        b__x="from services.s.b import y\ndef late():\n    from ..c import z\n",
        b__y="from . import x\n",
        c__z="import services.other\nfrom services import s\n",
    )
    assert longest_chain(modules, "s") == ("a", "b", "c")
    monkeypatch.setattr(structure, "DEPTHS", {"s": 2})
    assert faults(modules) == ["s: imports are 3 packages deep, at most 2: a -> b -> c"]


def test_a_circle_of_packages_is_reported(tmp_path: Path) -> None:
    modules = tree(tmp_path, a__x="from ..b import y\n", b__y="from ..a import x\n")
    with pytest.raises(CircleError):
        longest_chain(modules, "s")
    assert faults(modules) == ["packages import each other: a -> b -> a"]
    assert table(modules).splitlines()[1].split()[-1] == "circle"


def test_the_table_shows_the_figures_of_each_service(tmp_path: Path) -> None:
    modules = tree(tmp_path, a="x = 1\n", p__b="x = 1\n" * 9)
    head, row = table(modules).splitlines()
    assert head.split()[:3] == ["service", "modules", "lines"]
    assert row.split() == ["s", "2", "12", "1", "1", ".", "9", "p/b.py", "1"]
