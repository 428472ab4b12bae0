"""Write the tables of settings into the READMEs; --check fails when they are stale."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from backends.fake import program as fake
from services.common.config.settings import FieldDoc, ServiceSettings, describe
from services.gallery.config import GallerySettings
from services.loader.config import LoaderSettings
from services.metrics.config import MetricsSettings
from services.monitor.config import MonitorSettings

README = Path(__file__).resolve().parent.parent / "README.md"
FAKE_README = README.parent / "backends" / "fake" / "README.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->\n"
SERVICES: tuple[type[ServiceSettings], ...] = (
    LoaderSettings,
    GallerySettings,
    MonitorSettings,
    MetricsSettings,
)


def tables() -> str:
    """Return the tables: what all services share, then each service's own."""
    shared = {doc.name: doc for doc in describe(ServiceSettings)}
    parts = [_table("All services", "CORRAL_<SERVICE>_…", list(shared.values()), shared=True)]
    for cls in SERVICES:
        own = [doc for doc in describe(cls) if _differs(doc, shared.get(doc.name))]
        parts.append(_table(f"`corral-{cls.service}`", f"CORRAL_{cls.service.upper()}_…", own))
    return "\n".join(parts)


def _differs(doc: FieldDoc, base: FieldDoc | None) -> bool:
    return base is None or doc.default != base.default


def _table(title: str, prefix: str, docs: list[FieldDoc], *, shared: bool = False) -> str:
    lines = [
        f"<details><summary>{title} (<code>{prefix.replace('<', '&lt;')}</code>)</summary>",
        "",
        "| Flag | Variable | Default | What |",
        "|---|---|---|---|",
    ]
    for doc in docs:
        env = [f"`…_{doc.name.upper()}`" if shared else f"`{doc.env}`"]
        env += [f"`{name}`" for name in doc.localai_env]
        cells = (
            f"`{doc.flag}`",
            ", ".join(env),
            f"`{doc.default}`" if doc.default else "",
            doc.help,
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", "</details>", ""])


def main() -> int:
    """Write or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the tables are stale")
    check = parser.parse_args().check
    stale = [
        not _written(path, text, check=check)
        for path, text in ((README, tables()), (FAKE_README, fake.table()))
    ]
    return any(stale)


def _written(path: Path, content: str, *, check: bool) -> bool:
    """Put the content between a file's marks; with `check` only check that it is there."""
    text = path.read_text()
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    fresh = f"{head}{BEGIN}\n{content}\n{END}{tail}"
    if not check:
        path.write_text(fresh)
    elif fresh != text:
        print(f"the tables in {path} are stale: run `make gen`", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
