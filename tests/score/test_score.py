"""Scoring: one row in, one row out; what is scored, what is not, and what the errors mean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from fwopt.errors import InputError
from fwopt.perf.calibration import Calibration, Interval, load_calibration
from fwopt.score import refit
from fwopt.score.case import Case, Unscored, read_case
from fwopt.score.fit import Fit, Observation
from fwopt.score.load import make_workload
from fwopt.score.predict import CostModels, Prediction, predict
from fwopt.score.refit import fold_of, intervals, refit_all
from fwopt.score.rules import excluded_by
from fwopt.score.run import observe, score
from fwopt.score.summary import summarize
from fwopt.score.table import read_table, records

SHIPPED = Path(__file__).parents[2] / "benchmarks/data/h100-h200-serving.csv.gz"
ROW = {
    "source": "somewhere", "model_class": "dense-8B", "model": "Qwen/Qwen3-8B", "precision": "bf16",
    "gpu": "H200-SXM-141GB", "n_gpus": 1, "engine": "vllm", "engine_version": "0.24.0",
    "mode": "agg", "tp": 1, "isl": 1000, "osl": 100, "dataset": "random",
    "load_type": "closed_loop_concurrency", "concurrency": 8, "num_prompts": 40,
    "ttft_mean_ms": 60.0, "tpot_mean_ms": 7.0,
    "output_tok_s": 900.0, "stat_note": "",
}  # fmt: skip


def table(*changes: dict) -> pd.DataFrame:
    return pd.DataFrame([{**ROW, **change} for change in changes])


def test_one_row_in_one_row_out_in_order():
    odd = [{"tp": 1}, {"engine": "trtllm"}, {"model": "no/such"}, {"gpu": "H9"}, {"concurrency": None}, {"pp": 2},
           {"n_gpus": 16}, {"isl": None}, {"precision": "int3"}, {"mode": "disagg"}, {"load_type": "?"}]  # fmt: skip
    scored = score(table(*odd))
    assert scored["status"].tolist() == ["scored"] + ["unscored"] * (len(odd) - 1)
    assert scored["isl"].tolist()[0] == 1000
    assert (scored["reason"][1:] != "").all()
    assert scored["reason"].nunique() == len(odd)
    first = scored.iloc[0]
    assert 0 < first["pred_ttft_mean_ms"] < 1000
    assert first["error_ttft"] == pytest.approx(first["pred_ttft_mean_ms"] / 60.0 - 1)
    assert first["error_throughput"] == pytest.approx(first["pred_output_tok_s"] / 900.0 - 1)


def test_a_figure_of_unstated_kind_is_compared_with_the_mean():
    row = {"ttft_mean_ms": None, "ttft_p50_ms": 60.0}
    unstated = table({**row, "stat_note": "one TTFT per row without saying mean/median"})
    for frame, median in ((table(row), True), (unstated, False)):
        case = read_case(records(frame)[0])
        assert isinstance(case, Case)
        assert observe(records(frame)[0], case).ttft_is_median is median


def test_more_load_is_slower_and_repeats_exactly():
    light, heavy, again = (score(table({"concurrency": n, "num_prompts": 60})).iloc[0] for n in (2, 16, 16))
    assert light["pred_tpot_mean_ms"] < heavy["pred_tpot_mean_ms"]
    assert heavy["pred_ttft_mean_ms"] == again["pred_ttft_mean_ms"]


def test_loads_have_the_stated_lengths():
    frame = table({"dataset": "range_ratio 0.8"}, {"dataset": "ShareGPT", "isl": 220, "num_prompts": 4000})
    uniform, sharegpt = (read_case(row) for row in records(frame))
    assert isinstance(uniform, Case)
    assert isinstance(sharegpt, Case)
    lengths = make_workload(uniform.load, "x").prompt_tokens
    assert lengths.min() >= 800
    assert lengths.max() <= 1000
    assert make_workload(sharegpt.load, "x").prompt_tokens.mean() == pytest.approx(220, rel=0.02)


def test_exclusions_are_reported_not_dropped():
    frame = table({}, {"quality_flags": "guidellm_runner_latency_percentiles_unreliable", "ttft_mean_ms": 1.0})
    summary = summarize(score(frame))
    assert summary["scored"] == 2
    assert summary["all_rows"]["all"]["rows"] == 2
    assert summary["without_excluded"]["all"]["rows"] == 1
    assert summary["excluded"]["unreliable-runner"]["rows"] == 1


def test_factors_scale_what_they_name():
    """Twice the GEMM time is over 1.5 times the decode step of a dense model with short contexts."""
    case = read_case(records(table({"isl": 50, "concurrency": 1}))[0])
    assert isinstance(case, Case)
    plain, doubled = (
        predict(case, CostModels(Calibration(engine="vllm", factors=factors)))
        for factors in ({}, {"gemm/bf16/small": 2.0})
    )
    assert isinstance(plain, Prediction)
    assert isinstance(doubled, Prediction)
    assert 1.5 < doubled.tpot_mean_s / plain.tpot_mean_s < 2.0
    other = predict(case, CostModels(Calibration(engine="vllm", factors={"gemm/fp8/small": 2.0, "moe/bf16/small": 3})))
    assert other == plain


def test_the_fit_finds_a_planted_slowdown():
    planted = Calibration(engine="vllm", factors={"gemm/bf16/small": 1.25})
    rows = []
    for row in records(table(*({"isl": i, "concurrency": c} for i in (100, 400) for c in (1, 4, 16)))):
        case = read_case(row)
        assert isinstance(case, Case)
        found = predict(case, CostModels(planted))
        assert isinstance(found, Prediction)
        rows.append(Observation(case, found.ttft_mean_s, False, found.tpot_mean_s, found.output_tokens_per_s))
    fit = Fit("vllm", rows)
    before = [e["tpot"] for e in fit.errors(0 * fit.spread, rows)]
    theta = fit.run(rows)
    after = [e["tpot"] for e in fit.errors(theta, rows)]
    assert max(abs(e) for e in after) < 0.35 * max(abs(e) for e in before)
    assert fit.calibration(theta).factors["gemm/bf16/small"] > 1.08


def test_held_out_intervals_come_from_the_other_parts(monkeypatch):
    """One wild row: its own error must not widen the interval that it is judged by."""
    monkeypatch.setattr(refit, "MIN_ROWS", 2)
    rows = [{"isl": i, "concurrency": c, "num_prompts": 2 * c} for i in (100, 300, 500) for c in (1, 2)]
    frame = score(table(*rows))
    measured = table(*rows).assign(tpot_mean_ms=frame["pred_tpot_mean_ms"] * [1, 1.01, 0.99, 1.02, 0.98, 3.0])
    judged = refit.cross_validate(measured, 3)
    assert (judged["status"] == "scored").all()
    assert not judged["inside_tpot"].iloc[-1]
    wild = judged.iloc[-1]
    assert wild["pred_tpot_mean_ms_hi"] < 2 * wild["pred_tpot_mean_ms"]


def test_intervals_hold_what_they_say():
    errors = [(False, {"tpot": e / 100}) for e in range(-50, 50)]
    found = {i.group: i for i in intervals(errors)}["dense"]
    inside = [found.low <= 1 / (2.718281828 ** e["tpot"]) <= found.high for _, e in errors]
    assert 0.79 <= sum(inside) / len(inside) <= 0.83
    assert not intervals(errors[:5])
    calibration = Calibration(
        engine="vllm", intervals=(Interval(metric="tpot", group="all", low=0.9, high=1.1, rows=30),)
    )
    assert calibration.interval("tpot", moe=True).high == 1.1
    assert calibration.interval("ttft", moe=True) is None


def test_repeats_of_a_configuration_are_never_split():
    keys = [case.key for row in records(read_table(SHIPPED)) if isinstance(case := read_case(row), Case)]
    assert len(set(keys)) < len(keys)  # there are repeats
    assert all(fold_of(key, 5) == fold_of(key, 5) for key in keys)
    assert len({fold_of(key, 5) for key in keys}) == 5


def test_shipped_table_is_resolvable():
    rows = records(read_table(SHIPPED))
    own = [row for row in rows if row["engine"] in ("vllm", "sglang") and row["n_gpus"] <= 8]
    cases = [read_case(row) for row in own]
    missing = {case.reason for case in cases if isinstance(case, Unscored)}
    assert sum(isinstance(case, Case) for case in cases) >= 440
    assert not any("Error" in reason for reason in missing)
    assert any(excluded_by(row) for row in own)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not a readable CSV"), ("a,b\n1,2\n", "columns missing: model, gpu"), (",".join(ROW) + "\n", "no rows")],
)
def test_bad_tables_are_one_line(tmp_path, content, message):
    path = tmp_path / "m.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_table(path)


def test_the_command_writes_rows_and_json(tmp_path):
    path, out = tmp_path / "m.csv", tmp_path / "rows.csv"
    table({}, {"engine": "trtllm"}).to_csv(path, index=False)
    command = [sys.executable, "-m", "fwopt", "score", str(path), "--json", "--rows", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["scored"] == 1
    rows = pd.read_csv(out)
    assert list(rows.columns[: len(ROW)]) == list(ROW)
    assert rows["status"].tolist() == ["scored", "unscored"]
    assert {"pred_ttft_mean_ms_lo", "pred_tpot_mean_ms_hi", "provenance", "reason"} <= set(rows.columns)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_shipped_calibrations_are_residuals_not_repairs(engine):
    shipped = load_calibration(engine)
    assert shipped.version != "none"
    assert all(0.6 <= factor <= 2.5 for factor in shipped.factors.values())
    assert {i.metric for i in shipped.intervals} >= {"ttft", "tpot"}
    assert all(i.low < 1 < i.high and i.rows >= 20 for i in shipped.intervals)


def test_a_refit_into_a_place_that_is_no_folder_is_one_line(tmp_path):
    """It was a traceback once."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        refit_all(table({}), tmp_path / "taken", "m.csv")
