"""Effects that can be left out: each changes what it names, in the direction that it must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from fwopt.errors import UnknownNameError
from fwopt.perf.effects import EFFECTS, parse_effects
from fwopt.score.run import score

ROW = {
    "source": "somewhere", "model_class": "m", "model": "meta-llama/Llama-3.1-70B", "precision": "fp8",
    "gpu": "H100-SXM-80GB", "n_gpus": 2, "engine": "vllm", "engine_version": "0.24.0", "mode": "agg", "tp": 2,
    "isl": 6000, "osl": 300, "dataset": "random", "load_type": "closed_loop_concurrency", "concurrency": 40,
    "num_prompts": 120, "max_num_batched_tokens": 2048, "stat_note": "",
}  # fmt: skip
SGLANG = {"model": "Qwen/Qwen3-32B", "precision": "bf16", "engine": "sglang", "isl": 2000, "osl": 500, "tp": 1,
          "server_cmd_or_flags": "--mem-fraction-static 0.8"}  # fmt: skip
LATENT = {"model": "deepseek-ai/DeepSeek-R1", "gpu": "H200-SXM-141GB", "tp": 8, "n_gpus": 8}
WINDOWS = {"model": "openai/gpt-oss-120b", "precision": "mxfp4", "gpu": "H200-SXM-141GB"}


def predicted(name: str | None, change: dict) -> pd.Series:
    return score(pd.DataFrame([{**ROW, **change}]), off=frozenset([name] if name else ())).iloc[0]


@pytest.mark.parametrize(
    ("name", "change", "column", "sign"),
    [
        ("async", {"concurrency": 8}, "pred_ttft_mean_ms", -1),
        ("host", {"concurrency": 1}, "pred_tpot_mean_ms", -1),
        ("api", {"concurrency": 1}, "pred_ttft_mean_ms", -1),
        ("front", {"load_type": "burst_all_at_once", "isl": 50}, "pred_ttft_mean_ms", -1),
        ("streaming", {"isl": 50, "concurrency": 1}, "pred_ttft_mean_ms", -1),
        ("graphs", {"concurrency": 3}, "pred_tpot_mean_ms", -1),
        ("prefill-first", SGLANG | {"tp": 2}, "pred_ttft_mean_ms", -1),
        ("reservation", SGLANG | {"isl": 500, "osl": 1500}, "pred_ttft_mean_ms", -1),
        ("chunking", {"concurrency": 8}, "pred_ttft_mean_ms", 1),
        ("context", {}, "pred_ttft_mean_ms", -1),
        ("kv-limit", {"concurrency": 100}, "pred_ttft_mean_ms", -1),
        ("kv-memory", {"concurrency": 100}, "pred_ttft_mean_ms", -1),
        ("recompute", {"concurrency": 100, "osl": 2000}, "pred_output_tok_s", 1),
        ("mla", LATENT | {"concurrency": 2}, "pred_tpot_mean_ms", 1),
        ("windows", WINDOWS, "pred_tpot_mean_ms", 1),
        ("all-reduce", {}, "pred_tpot_mean_ms", -1),
        ("eager-all-reduce", {}, "pred_ttft_mean_ms", -1),
        ("routing", LATENT | {"model": "Qwen/Qwen3-235B-A22B-FP8", "tp": 4}, "pred_ttft_mean_ms", -1),
    ],
)
def test_leaving_an_effect_out_moves_what_it_names(name, change, column, sign):
    full, without = predicted(None, change), predicted(name, change)
    assert full["status"] == without["status"] == "scored"
    assert (without[column] - full[column]) * sign > 0


def test_blocks_matter_where_sequences_are_short():
    """Blocks of 16 tokens for requests of 17 to 31: up to half of the cache is padding."""
    flags = "--max-model-len 64 --gpu-memory-utilization 0.56"
    short = {"isl": 17, "osl": 14, "concurrency": 200, "num_prompts": 600, "max_num_batched_tokens": 8192,
             "max_num_seqs": 4000, "server_cmd_or_flags": flags}  # fmt: skip
    full, without = predicted(None, short), predicted("blocks", short)
    assert without["pred_ttft_mean_ms"] < full["pred_ttft_mean_ms"]


def test_eviction_matters_where_prefixes_outgrow_the_cache(tmp_path):
    """Sessions come back after more other text than the cache holds: without eviction all of it is still there."""
    lines = []
    for again in range(2):
        for session in range(160):
            blocks = [session * 16 + k for k in range(16)]
            lines.append({"timestamp": (again * 160 + session) * 700, "input_length": 8192, "output_length": 5,
                          "hash_ids": blocks})  # fmt: skip
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(json.dumps(line) for line in lines))
    cached = []
    for without in ([], ["--without", "eviction"]):
        command = [sys.executable, "-m", "fwopt", "simulate", str(trace), "--model", "Qwen/Qwen3-8B", "--hardware",
                   "h100:1", "--records", str(tmp_path / "out.jsonl"), *without]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        records = [json.loads(line) for line in Path(tmp_path / "out.jsonl").read_text().splitlines()]
        cached.append(sum(record["cached_tokens"] for record in records))
    assert cached[0] < 0.5 * cached[1]
    assert cached[1] > 0.95 * 160 * 8192


def test_every_effect_is_tested_and_unknown_ones_are_named():
    with pytest.raises(UnknownNameError, match="kv-limt"):
        parse_effects("async,kv-limt")
    assert parse_effects(" async, host") == {"async", "host"}
    assert len(EFFECTS) == 21
