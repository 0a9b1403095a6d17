"""Reports are written whole, and rendered again from the run folder alone."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from fwopt.cli.explain import explain
from fwopt.cli.report import report
from fwopt.errors import RunFolderError
from fwopt.report import write


@pytest.fixture
def run(sample, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.json").write_text(sample.plan().model_dump_json(indent=2))
    lines = [t.model_dump_json() + "\n" for t in sample.trials()]
    (folder / "trials.jsonl").write_text("".join(lines) + '{"number": 99, "cand')
    return folder


@pytest.fixture
def cli():
    app = typer.Typer()
    app.command("report")(report)
    app.command("explain")(explain)
    return lambda *words: CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=True)


def test_both_files_and_nothing_else(sample, tmp_path):
    paths = write(sample.plan(), sample.trials(), tmp_path / "new")
    assert [p.name for p in paths] == ["report.html", "report.md"]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["report.html", "report.md"]
    assert paths[0].read_text().startswith("<!doctype html>")


def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(sample, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write(sample.plan(), [], tmp_path / "file")
    blocked = tmp_path / "blocked"
    (blocked / "report.md").mkdir(parents=True)
    (blocked / "report.md" / "keep").write_text("x")
    with pytest.raises(RunFolderError, match="cannot be written"):
        write(sample.plan(), [], blocked)
    assert not [p for p in blocked.iterdir() if p.name.startswith(".")]


def test_report_renders_from_the_folder_and_changes_no_evidence(run, cli):
    before = (run / "trials.jsonl").read_bytes(), (run / "plan.json").read_bytes()
    result = cli("report", run)
    assert result.exit_code == 0, result.exception
    assert "Deploy fp8" in result.output
    assert (run / "report.html").is_file()
    assert ((run / "trials.jsonl").read_bytes(), (run / "plan.json").read_bytes()) == before


def test_report_elsewhere(run, cli, tmp_path):
    assert cli("report", run / "plan.json", "--out", tmp_path / "there").exit_code == 0
    assert (tmp_path / "there" / "report.md").is_file()
    assert not (run / "report.md").exists()


def test_explain_from_the_folder(run, cli):
    assert "best found" in cli("explain", run).output
    assert "It is the baseline" in cli("explain", run, "baseline").output


@pytest.mark.parametrize("broken", ["missing folder", "missing trials", "bad trial", "bad plan"])
def test_what_is_no_run_is_one_line(run, cli, broken):
    if broken == "missing trials":
        (run / "trials.jsonl").unlink()
    elif broken == "bad trial":
        (run / "trials.jsonl").write_text('{"number": "x"}\n')
    elif broken == "bad plan":
        (run / "plan.json").write_text("{")
    result = cli("report", run / "nowhere" if broken == "missing folder" else run)
    assert isinstance(result.exception, RunFolderError)
    assert "\n" not in str(result.exception)
    assert not (run / "report.html").exists()
