"""Does fwopt choose the configuration that really was best? Against a plain roofline and random choice.

    fwopt score benchmarks/data/h100-h200-serving.csv.gz --held-out 5 --rows rows.csv
    python benchmarks/choosing.py rows.csv

Groups: configurations that serve the same model and load on the same number of GPUs (GPU type, engine, precision and
parallelism may differ), repeats of a configuration merged. The figure is how far the measured tokens per second and
GPU of the choice fall short of the best measured one in its group.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from fwopt.perf.bound import StepBound
from fwopt.score.case import Case, read_case
from fwopt.score.table import read_table, records

GROUP = ["model", "isl", "osl", "load_type", "concurrency", "request_rate", "num_prompts", "n_gpus"]


def roofline(case: Case) -> float:
    """Tokens per second per GPU if every kernel ran at the device's peaks."""
    bound = StepBound.of(case.model, case.device, case.candidate)
    load = case.load
    n = min(load.concurrency or load.requests, case.candidate.batching.max_num_seqs)
    step = bound.token_s(n) + bound.decode_s(n, load.prompt_tokens + load.output_tokens / 2) + bound.sample_s(n)
    prefill = bound.token_s(load.prompt_tokens) + bound.prefill_s(load.prompt_tokens)
    return float(n * load.output_tokens / (load.output_tokens * step + n * prefill))


def main(path: Path) -> None:
    frame = read_table(path)
    frame = frame[(frame["status"] == "scored") & frame["excluded"].isna()]
    cases = [read_case(row) for row in records(frame)]
    frame = frame.assign(
        key=[c.key for c in cases],
        measured=frame["output_tok_s"].fillna(frame["output_tok_s_derived"]) / frame["n_gpus"],
        fwopt=frame["pred_output_tok_s"] / frame["n_gpus"],
        roofline=[roofline(c) / c.candidate.parallelism.gpus for c in cases],
    ).dropna(subset=["measured"])
    merged = frame.groupby([*GROUP, "key"], dropna=False)[["measured", "fwopt", "roofline"]].mean().reset_index()
    short = {"fwopt": [], "roofline": [], "random": [], "worst": []}
    for _, group in merged.groupby(GROUP, dropna=False):
        if len(group) < 2:
            continue
        best = group["measured"].max()
        for name in ("fwopt", "roofline"):
            short[name].append(1 - group.loc[group[name].idxmax(), "measured"] / best)
        short["random"].append(1 - group["measured"].mean() / best)
        short["worst"].append(1 - group["measured"].min() / best)
    print(f"{len(short['fwopt'])} groups; tokens/s per GPU of the choice, short of the best measured:")
    for name, values in short.items():
        found = pd.Series(values)
        print(f"  {name:9} mean {found.mean():6.2%}   p90 {found.quantile(0.9):6.2%}   largest {found.max():6.2%}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
