"""What becomes of samples: medians, ratios, verdicts, tables, and the file between."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks import goals, report
from benchmarks.clocks import cpu_seconds, memory, tree
from benchmarks.generator import Sample
from benchmarks.paths import BARE, DIRECT, GATEWAY
from benchmarks.plot import plot
from benchmarks.record import Line, Record, Row, facts, read

DOCUMENT = Path(__file__).parents[3] / "docs" / "performance.md"


def sample(rate: float = 1000, cpu: float = 10, p50: float = 100) -> Sample:
    return Sample(rate, p50, p50 * 2, cpu, 5, 5, 100, 500, 0, "")


def row(path: str, *samples: Sample, measurement: str = goals.UNARY) -> Row:
    return Row(measurement, "1 KiB, 32 at a time", "call", "C++", path, list(samples))


def record(*rows: Row) -> Record:
    return Record(traffic=list(rows), facts=facts(1.0))


def test_median() -> None:
    assert row(BARE, sample(1), sample(5), sample(2)).median("rate") == 2


def test_ratios_are_of_neighbours() -> None:
    base = row(BARE, sample(cpu=10), sample(cpu=100), sample(cpu=1000))
    other = row(GATEWAY, sample(cpu=11), sample(cpu=120), sample(cpu=1100))
    assert other.ratio("cpu", base) == pytest.approx(1.1)
    assert other.added("cpu", base) == pytest.approx(20)


@pytest.mark.parametrize(("cpu", "met"), [(12, True), (12.1, False)])
def test_goal(cpu: float, met: bool) -> None:
    verdict = next(goals.verdicts(record(row(BARE, sample()), row(GATEWAY, sample(cpu=cpu)))))
    assert verdict.measured == pytest.approx(cpu / 10)
    assert verdict.met is met


def test_added_delay_is_in_milliseconds() -> None:
    rows = (
        row(path, sample(p50=p50), measurement=goals.PACED)
        for path, p50 in ((DIRECT, 100), (GATEWAY, 400))
    )
    found = {verdict.text: verdict for verdict in goals.verdicts(record(*rows))}
    verdict = next(v for text, v in found.items() if "delay" in text)
    assert verdict.measured == pytest.approx(0.3)
    assert verdict.met


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert all(verdict.met is None for verdict in goals.verdicts(Record()))
    assert "not measured" in report.goals(Record())


def test_goals_beside_peers_only_with_peers() -> None:
    without = len(list(goals.verdicts(Record())))
    beside = Record(traffic=[Row(goals.BESIDE, "", "call", goals.OURS, "ray", [sample()])])
    assert len(list(goals.verdicts(beside))) == without + len(goals.PEER_GOALS)


def test_file(tmp_path: Path) -> None:
    given = record(row(DIRECT, sample()), row(GATEWAY, sample(500)))
    given.lines.append(Line("cold", "cold: 200 clients", "one client", "3 ms", "5 ms", True))
    given.values["idle_services_pss_mb"] = 100.0
    given.failed("endpoint", "no such thing")
    given.write(tmp_path / "a.json")
    found = read(tmp_path / "a.json")
    assert (found.traffic, found.lines, found.values) == (given.traffic, given.lines, given.values)
    assert found.failures == [{"where": "endpoint", "why": "no such thing"}]
    text = " ".join(report.markdown(found).split())
    for part in ("500 (0.50)", "| one client | 3 ms | 5 ms | met |", "no such thing"):
        assert part in text


def test_other_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="no result"):
        read(tmp_path / "a.json")


def test_document(tmp_path: Path) -> None:
    copy = tmp_path / "performance.md"
    copy.write_text(DOCUMENT.read_text())
    record(row(BARE, sample()), row(GATEWAY, sample(cpu=15))).write(tmp_path / "a.json")
    report.write(tmp_path / "a.json", copy)
    once = copy.read_text()
    assert "NOT MET" in once
    report.write(tmp_path / "a.json", copy)
    assert copy.read_text() == once
    assert copy.with_suffix(".svg").exists()


def test_document_shows_the_run_beside_it() -> None:
    file = DOCUMENT.with_suffix(".json")
    shown = DOCUMENT.read_text().split(report.BEGIN)[1].split(report.END)[0]
    assert shown.strip() == (report.markdown(read(file)).strip() if file.exists() else "")


def test_tables_are_aligned() -> None:
    lines = report.table(["", "figure"], [["a", "1"], ["long", "1,000,000"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_failed_path_says_so() -> None:
    rows = [row(DIRECT, sample()), row(GATEWAY, sample()), row(DIRECT, sample(), measurement="b")]
    assert "failed" in report.tables(rows)


def test_plot_is_svg() -> None:
    picture = plot(record(row(DIRECT, sample()), row(GATEWAY, sample(500, cpu=600))))
    root = ET.fromstring(picture)
    assert root.tag.endswith("svg")
    assert "gateway" in picture
    ET.fromstring(plot(Record()))


def test_clocks() -> None:
    own = os.getpid()
    before = cpu_seconds([own])
    sum(range(200_000))
    assert cpu_seconds([own]) > before > 0
    assert cpu_seconds([own, 2**22 - 1]) >= before
    assert memory([own]) > 1 << 20
    assert own in tree(own)
    assert tree(own, own) == []
