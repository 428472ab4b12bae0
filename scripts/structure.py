"""Measure the structure of services/, and fail where a limit of it is exceeded."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "services"
MODULES = 20
"""The most modules in a folder."""
LINES = 400
"""The most lines in a module."""
METHODS = 25
"""The most public methods in a class."""
DEPTHS: Mapping[str, int] = {"loader": 11}
"""The longest chain of packages that import each other, by service."""


class CircleError(Exception):
    """Packages import each other in a circle."""


@dataclass(frozen=True, slots=True)
class Module:
    """A source file."""

    path: Path
    """Relative to the folder above `services`."""
    lines: int
    tree: ast.Module

    @property
    def is_init(self) -> bool:
        """Whether it is a package's `__init__`."""
        return self.path.name == "__init__.py"

    @property
    def name(self) -> str:
        """The dotted name."""
        parts = self.path.with_suffix("").parts
        return ".".join(parts[:-1] if self.is_init else parts)


def read(root: Path) -> list[Module]:
    """Return the modules below a folder, sorted."""
    found = []
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        found.append(Module(path.relative_to(root.parent), lines, ast.parse(text)))
    return found


def faults(modules: Iterable[Module]) -> list[str]:
    """Return what breaks a rule, each with its place."""
    modules = list(modules)
    found = []
    for folder, count in folders(modules).items():
        if count > MODULES:
            found.append(f"{folder}: {count} modules in one folder, at most {MODULES}")
    for module in modules:
        if module.lines > LINES:
            found.append(f"{module.path}: {module.lines} lines, at most {LINES}")
        for node, methods in _classes(module):
            if methods > METHODS:
                place = f"{module.path}:{node.lineno}"
                found.append(
                    f"{place}: {node.name} has {methods} public methods, at most {METHODS}"
                )
        if module.is_init and not _is_docstring_only(module.tree):
            found.append(f"{module.path}: must hold a docstring and nothing else")
    for service in services(modules):
        try:
            chain = longest_chain(modules, service)
        except CircleError as error:
            found.append(str(error))
            continue
        if len(chain) > (most := DEPTHS.get(service, len(chain))):
            found.append(
                f"{service}: imports are {len(chain)} packages deep, at most {most}:"
                f" {' -> '.join(chain)}"
            )
    return found


def services(modules: Iterable[Module]) -> list[str]:
    """Return the names of the services, sorted."""
    return sorted({m.path.parts[1] for m in modules if len(m.path.parts) > 2})


def folders(modules: Iterable[Module]) -> dict[Path, int]:
    """Return how many modules each folder holds, without its `__init__`."""
    counts: dict[Path, int] = {}
    for module in modules:
        counts[module.path.parent] = counts.get(module.path.parent, 0) + (not module.is_init)
    return counts


def longest_chain(modules: Iterable[Module], service: str) -> tuple[str, ...]:
    """Return the longest chain of imports between a service's packages and top-level modules.

    Raises CircleError if there is no longest one.
    """
    prefix = f"services.{service}."
    own = [module for module in modules if module.name.startswith(prefix)]
    arrows: dict[str, set[str]] = {}
    for module in own:
        unit = module.name.removeprefix(prefix).partition(".")[0]
        arrows.setdefault(unit, set())
    for module in own:
        unit = module.name.removeprefix(prefix).partition(".")[0]
        for name in _imports(module):
            other = name.removeprefix(prefix).partition(".")[0]
            if name.startswith(prefix) and other != unit and other in arrows:
                arrows[unit].add(other)
    return _longest(arrows)


def _longest(arrows: Mapping[str, set[str]]) -> tuple[str, ...]:
    above: list[str] = []

    @cache
    def below(unit: str) -> tuple[str, ...]:
        if unit in above:
            circle = (*above[above.index(unit) :], unit)
            raise CircleError(f"packages import each other: {' -> '.join(circle)}")
        above.append(unit)
        chains = [below(other) for other in sorted(arrows[unit])]
        above.pop()
        return (unit, *max(chains, key=len, default=()))

    return max((below(unit) for unit in sorted(arrows)), key=len, default=())


def _imports(module: Module) -> Iterator[str]:
    """Yield the dotted names that a module imports; for `from a import b` both `a` and `a.b`."""
    package = module.name if module.is_init else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                start = above[: len(above) - node.level + 1]
                base = ".".join([*start, base] if base else start)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _classes(module: Module) -> Iterator[tuple[ast.ClassDef, int]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            functions = (ast.FunctionDef, ast.AsyncFunctionDef)
            names = {item.name for item in node.body if isinstance(item, functions)}
            yield node, sum(not name.startswith("_") for name in names)


def _is_docstring_only(tree: ast.Module) -> bool:
    return len(tree.body) == 1 and ast.get_docstring(tree) is not None


def table(modules: Iterable[Module]) -> str:
    """Return the figures of each service, for people."""
    modules = list(modules)
    head = ("service", "modules", "lines", "packages", "largest folder", "longest module", "depth")
    rows = [head]
    for service in services(modules):
        own = [module for module in modules if module.path.parts[1] == service]
        counts = folders(own)
        largest = max(counts, key=lambda folder: counts[folder])
        longest = max(own, key=lambda module: module.lines)
        try:
            depth = str(len(longest_chain(modules, service)))
        except CircleError:
            depth = "circle"
        rows.append(
            (
                service,
                str(sum(counts.values())),
                f"{sum(module.lines for module in own):,}",
                str(len(counts) - 1),
                f"{counts[largest]} {_below(largest, service)}",
                f"{longest.lines} {_below(longest.path, service)}",
                depth,
            )
        )
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _below(path: Path, service: str) -> str:
    return str(path.relative_to(Path(path.parts[0]) / service))


def main() -> int:
    """Print the table, then what breaks a rule; return the exit code."""
    modules = read(ROOT)
    print(table(modules))
    found = faults(modules)
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
