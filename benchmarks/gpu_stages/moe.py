"""Fused experts of Qwen3-30B-A3B beside the configuration that vLLM ships for them.

Both run at the token counts of the sample trace, as often as it has them, where stage `tune` found them, and at fixed
ones. vLLM's tile sizes run in fwopt's kernel, where they mean the same, and in vLLM's own where vLLM is installed.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from gpu_stages import Result, Session
from gpu_stages.machine import as_device
from gpu_stages.shapes import MODELS

SHIPPED = Path(__file__).resolve().parents[1] / "data" / "vllm-moe-h200-qwen3-30b-a3b.json"
POINTS = (1, 8, 32, 128, 512, 2048, 4096)
EFFORT_S = 0.05


def run(session: Session) -> Result:
    from fwopt.tuning.device import describe
    from fwopt.tuning.operators import vllm_python
    from fwopt.tuning.tune import tune

    started = time.monotonic()
    demand = _demand(session)
    host = describe(session.device)
    shipped = _shipped(session, demand)
    left = 0.85 * session.seconds - (time.monotonic() - started)
    found = tune([demand], as_device(session.before["machine"]), host, budget_s=max(left, 1.0), seed=0, most=24,
                 tell=lambda *_: None)  # fmt: skip
    ours = {b.point[0]: b for family in found.families for b in family.buckets}
    rows = [
        {**row, "calls": float(calls), "default_s": ours[row["tokens"]].default_s, "best_s": ours[row["tokens"]].best_s,
         "variant": ours[row["tokens"]].variant}
        for row, calls in zip(shipped, demand.calls, strict=True)
        if row["tokens"] in ours
    ]  # fmt: skip
    return {"shipped_from": json.loads(SHIPPED.read_text())["source"], "rows": rows, "complete": found.complete,
            "of_the_trace": _buckets(session) is not None, "vllm_here": vllm_python() is not None}  # fmt: skip


def _demand(session: Session) -> Any:
    import numpy as np

    from fwopt.tuning.family import Demand, Family

    m = MODELS["Qwen3-30B-A3B"]
    sizes = {"experts": m["experts"], "top_k": m["top_k"], "hidden": m["hidden"], "intermediate": m["expert_inter"]}
    if session.small:
        sizes = {"experts": 4, "top_k": 2, "hidden": 128, "intermediate": 64}
    counts = dict.fromkeys((1, 4) if session.small else POINTS, 0.0) | (_buckets(session) or {})
    points = np.asarray(sorted(counts), dtype=np.int64)[:, None]
    calls = np.asarray([max(counts[int(p)], 1e-3) for p in points[:, 0]])
    return Demand(Family("fused_moe", "bf16", tuple(sizes.items()), ("tokens",)), points, calls)


def _buckets(session: Session) -> dict[int, float] | None:
    """Tokens -> calls a step, of the trace."""
    tuned = session.before.get("tune", {}).get("Qwen/Qwen3-30B-A3B bf16", {})
    families = [f for f in tuned.get("families", ()) if f["operator"] == "fused_moe"]
    return {int(b["point"][0]): b["calls_a_step"] for f in families for b in f["buckets"]} or None


def _shipped(session: Session, demand: Any) -> list[Result]:
    """Each point with vLLM's entry for it, in fwopt's kernel and in vLLM's."""
    from fwopt.tuning.family import shape_of
    from fwopt.tuning.operators import vllm_python
    from fwopt_kernels.apart import Fault
    from fwopt_kernels.fused_moe import FUSED_MOE
    from fwopt_kernels.timing import Question, bench

    ours, theirs = "fwopt_kernels.fused_moe:FUSED_MOE", "fwopt.tuning.vllm_moe:VLLM_FUSED_MOE"
    asked_of = {"shipped_s": (ours, bench(timeout_s=60))}
    there = vllm_python()
    if there is not None and not session.small:
        asked_of["vllm_s"] = (theirs, bench(timeout_s=60, elsewhere=there))
    rows = []
    for (tokens,) in demand.points.tolist():
        variant = entry(tokens)
        row: Result = {"tokens": tokens, "entry": variant.id}
        for name, (target, child) in asked_of.items():
            shape = shape_of(demand.family, (tokens,), FUSED_MOE.dimensions)
            asked = None if session.small else variant
            answer = child.ask(Question(target, "bf16", shape, asked, session.device, EFFORT_S))
            row[name] = None if isinstance(answer, Fault) else answer.p50_s
            if isinstance(answer, Fault):
                row[name.replace("_s", "_error")] = answer.reason
        rows.append(row)
    for _, child in asked_of.values():
        child.close()
    return rows


def entry(tokens: int) -> Any:
    """vLLM's choice: the entry whose count is nearest."""
    from fwopt_kernels.contract import variant

    _, m, n, k, group, warps, stages = min(json.loads(SHIPPED.read_text())["entries"], key=lambda e: abs(e[0] - tokens))
    return variant(warps, stages, BLOCK_SIZE_M=m, BLOCK_SIZE_N=n, BLOCK_SIZE_K=k, GROUP_SIZE_M=group)
