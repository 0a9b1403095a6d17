"""The words of the report are the words of docs/metrics.md."""

from __future__ import annotations

from pathlib import Path

from fwopt.report.glossary import TERMS
from fwopt.report.ladder import MEANING

TEXT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def rows(heading: str) -> dict[str, str]:
    """First column -> second of the tables under one heading."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip("`"): row[1] for row in cells[2:]}


def test_every_latency_of_the_docs_is_a_word_of_the_report() -> None:
    assert {name.lower() for name in rows("Latencies")} <= {word.lower() for word in TERMS}


def test_every_label_of_evidence_is_a_word_of_the_report() -> None:
    assert set(rows("How a number is known")) <= set(TERMS)


def test_every_rung_is_told_in_both() -> None:
    assert set(rows("Why candidates fall")) == set(MEANING) - {"live"}


def test_goals_and_capacity_are_defined_in_both() -> None:
    lowered = TEXT.lower()
    for word in ("cost", "goodput", "SLO capacity", "headroom", "Pareto front", "KL", "top-1"):
        assert word in TERMS
        assert word.replace("-", "").lower() in lowered.replace("-", "")


def test_the_glossary_defines_headroom_as_the_docs_do() -> None:
    assert "*Headroom* is that multiple minus one" in TEXT
    assert TERMS["headroom"].startswith("SLO capacity minus one")
