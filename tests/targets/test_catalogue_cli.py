"""`fwopt models` and `fwopt hardware`."""

import json

import typer
from typer.testing import CliRunner

from fwopt.cli.catalogue import hardware, models

app = typer.Typer()
app.command()(models)
app.command()(hardware)
runner = CliRunner()


def test_models_lists_shapes_and_says_what_is_not_modelled():
    listed = runner.invoke(app, ["models", "--json"])
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["Qwen/Qwen3-8B"]["layers"] == 36
    assert rows["openai/gpt-oss-20b"]["weights"] == "mxfp4"
    assert "linear 16/48 x 128" in rows["Qwen/Qwen3.5-27B"]["attention"]
    assert "sparse attention" in rows["deepseek-ai/DeepSeek-V3.2"]["not_modelled"]
    assert "Qwen/Qwen3-8B" in runner.invoke(app, ["models"], env={"COLUMNS": "200"}).stdout


def test_one_model_in_full():
    shown = json.loads(runner.invoke(app, ["models", "qwen3-8b", "--json"]).stdout)
    assert (shown["name"], shown["context_tokens"]) == ("Qwen/Qwen3-8B", 40_960)
    assert "32/8 x 128" in runner.invoke(app, ["models", "qwen3-8b"]).stdout


def test_hardware_shows_price_date_and_basis():
    shown = json.loads(runner.invoke(app, ["hardware", "H200", "--json"]).stdout)
    assert (shown["name"], shown["usd_per_gpu_hour"], shown["basis"]) == ("h200", 4.5, "median on-demand")
    table = runner.invoke(app, ["hardware"], env={"COLUMNS": "250"}).stdout
    assert "2026-09-25" in table
    assert "mi325x" in table
