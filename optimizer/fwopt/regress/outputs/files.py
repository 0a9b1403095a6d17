"""Everything that one comparison is written as."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fwopt.regress.outputs.exports import bencher_metric_format, github_action_benchmark
from fwopt.regress.outputs.junit import junit
from fwopt.regress.outputs.markdown import markdown
from fwopt.regress.results import write_text
from fwopt.spec.comparison import Comparison

FILES: dict[str, Callable[[Comparison], str]] = {
    "comparison.json": lambda c: c.model_dump_json(indent=1) + "\n",
    "junit.xml": junit,
    "summary.md": markdown,
    "github-action-benchmark.json": github_action_benchmark,
    "bencher.json": bencher_metric_format,
}
"""File name -> its text."""


def write(comparison: Comparison, folder: Path) -> list[Path]:
    for name, render in FILES.items():
        write_text(folder / name, render(comparison))
    return [folder / name for name in FILES]
