"""`fwopt inspect`, `convert` and `schema` as a user runs them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from fwopt.atomic import written_whole
from fwopt.cli.convert import convert
from fwopt.cli.inspect import inspect
from fwopt.cli.schema import SCHEMAS, json_schema, schema, schema_text
from fwopt.errors import InputError, UnknownNameError
from fwopt.paths import data_folder

ROOT = Path(__file__).parents[2]
MOONCAKE = data_folder("workloads") / "mooncake-conversation.jsonl.gz"
app = typer.Typer()
for verb in (inspect, convert, schema):
    app.command()(verb)


def run(*arguments: object, columns: int = 80):
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.mark.parametrize("columns", [80, 120])
def test_inspect_fits_the_terminal_and_says_what_matters(columns: int) -> None:
    text = run("inspect", MOONCAKE, columns=columns).stdout
    assert max(len(line.rstrip()) for line in text.splitlines()) <= columns
    flat = " ".join(text.split())
    for words in (
        "12,031 requests in 58 min 57 s",
        "37.4 %",
        "a TTFT tail may be the tick, not the server",
        "ticks of 3 s",
    ):
        assert words in flat


def test_inspect_json_follows_its_schema() -> None:
    found = json.loads(run("inspect", MOONCAKE, "--json").stdout)
    jsonschema.validate(found, json_schema("inspection"))
    assert found["statistics"]["requests"] == 12_031


def test_inspect_reports_what_it_left_out(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    good = '{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": 2}\n'
    file.write_text(good + good.replace("5", "-5") + good)
    with pytest.raises(InputError, match=r"t\.jsonl:2: prompt_tokens: must be a whole number"):
        run("inspect", file)
    text = run("inspect", file, "--skip-bad").stdout
    assert "left out 1 bad of 3 lines" in text
    assert "2 requests" in text


@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_a_tokenizer_for_a_trace_of_counts_is_refused(verb: str, tmp_path: Path) -> None:
    target = [tmp_path / "out.jsonl"] if verb == "convert" else []
    with pytest.raises(InputError, match=r"--model folder: counts the tokens of OpenAI logs, .* of format mooncake"):
        run(verb, MOONCAKE, *target, "--model", "folder")


def test_convert_writes_once_and_says_what(tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl.zst"
    result = run("convert", MOONCAKE, out)
    assert "12,031 requests from mooncake" in result.stdout
    digest = result.stdout.split()[-1]
    assert json.loads(run("inspect", out, "--json").stdout)["statistics"]["digest"] == digest
    with pytest.raises(InputError, match="--force"):
        run("convert", MOONCAKE, out)
    run("convert", MOONCAKE, out, "--force")


def test_convert_says_what_it_cut(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    lengths = ((5, 2), (50, 2), (5, 40), (50, 40))
    file.write_text("".join(f'{{"arrival_s": 1, "prompt_tokens": {p}, "output_tokens": {o}}}\n' for p, o in lengths))
    said = run("convert", file, tmp_path / "out.jsonl", "--cut-context", 32).stderr
    assert said == "note: cut to fit 32 tokens: 2 prompts and 2 outputs of 4 requests\n"
    assert "cut" not in run("convert", file, tmp_path / "whole.jsonl").stderr


def test_convert_leaves_nothing_when_the_trace_is_bad(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"arrival_s": 1, "prompt_tokens": 5, "output_tokens": -2}\n')
    with pytest.raises(InputError):
        run("convert", bad, tmp_path / "out.jsonl")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_are_valid(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(run("schema", name).stdout))


@pytest.mark.parametrize("name", SCHEMAS)
def test_published_schema_is_the_current_one(name: str) -> None:
    published = ROOT / "docs" / "schemas" / f"{name}.schema.json"
    assert published.read_text(encoding="utf-8") == schema_text(name), "run: fwopt schema --write docs/schemas"


def test_nothing_else_is_published() -> None:
    assert {p.name for p in (ROOT / "docs" / "schemas").iterdir()} == {f"{name}.schema.json" for name in SCHEMAS}


def test_schema_lists_and_suggests() -> None:
    assert "workload-header" in run("schema").stdout
    with pytest.raises(UnknownNameError, match="workload"):
        run("schema", "worklod")


def test_force_replaces_files_only(tmp_path: Path) -> None:
    """A device or pipe named as the output would be gone for every other program."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError, match="pipe: is no regular file; name a file"):
        run("convert", MOONCAKE, pipe, "--requests", "0:2", "--force")
    with pytest.raises(InputError, match="pipe: is no regular file; name a file"), written_whole(pipe) as beside:
        beside.write_text("new")
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "disk" / "real.jsonl", tmp_path / "link.jsonl"
    target.parent.mkdir()
    target.write_text("old")
    link.symlink_to(target)
    run("convert", MOONCAKE, link, "--requests", "0:2", "--force")
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == 3
    assert [path.name for path in target.parent.iterdir()] == ["real.jsonl"]
