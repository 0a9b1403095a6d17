"""Times of fwopt's kernels: the tuner's own search at decode shapes, and at a few larger ones."""

from __future__ import annotations

import time
from typing import Any

from gpu_stages import Result, Session
from gpu_stages.machine import as_device
from gpu_stages.shapes import ADAPTERS, ATTENTION, DECODE, FEW, LARGE, MODELS, PROMPTS, SAMPLED, VOCABULARY
from gpu_stages.vendor import baselines


def run(session: Session) -> Result:
    """The tuner's own search, at decode shapes, every shape called equally often; and the vendor's kernels."""
    from fwopt.tuning.device import describe
    from fwopt.tuning.tune import floors, tune

    started = time.monotonic()
    spec, host = as_device(session.before["machine"]), describe(session.device)
    vendor = baselines(session, session.seconds * 0.3)
    wanted = demands(session.small)
    left = session.seconds * 0.85 - (time.monotonic() - started)
    found = tune(wanted, spec, host, budget_s=max(left, 1.0), seed=0, most=16, tell=lambda *_: None)
    rows = []
    by_family = {demand.family: demand for demand in wanted}
    for family in found.families:
        floor = floors(by_family[family.family], [b.point for b in family.buckets], spec)
        for bucket, floor_s in zip(family.buckets, floor, strict=True):
            rows.append(
                {"operator": family.family.operator, "format": family.family.format, "fixed": dict(family.family.fixed),
                 "point": list(bucket.point), "floor_s": float(floor_s), "default_s": bucket.default_s,
                 "best_s": bucket.best_s, "variant": bucket.variant, "measured": bucket.measured}
            )  # fmt: skip
    refused = [[f.family.label, *r] for f in found.families for r in f.rejected]
    return {"rows": rows, "baselines": vendor, "refused": refused, "complete": found.complete}


def demands(small: bool) -> list[Any]:
    import numpy as np

    from fwopt.tuning.family import Demand, Family
    from fwopt_kernels.registry import OPERATORS, load

    found: dict[Any, Any] = {}

    def add(operator: str, points: list[tuple[int, ...]], **fixed: int) -> None:
        if operator not in OPERATORS:
            return
        loaded = load(OPERATORS[operator])
        axes = tuple(d for d in loaded.dimensions if d in ("rows", "tokens", "m", "sequences", "batch")
                     or (d == "context" and len(points[0]) > 1))  # fmt: skip
        for format in loaded.formats[: 1 if small else None]:
            own = tuple((d, fixed[d]) for d in loaded.dimensions if d in fixed)
            family = Family(operator, format, own, axes)
            found[family] = Demand(family, np.asarray(points, dtype=np.int64), np.ones(len(points)))

    steps: list[tuple[int, ...]] = [(m,) for m in ((1, 4) if small else (*DECODE, *LARGE))]
    few: list[tuple[int, ...]] = [(m,) for m in ((1, 4) if small else FEW)]
    add("sampling", few if small else [(m,) for m in SAMPLED], vocabulary=1000 if small else VOCABULARY)
    for adapters, rank in ADAPTERS[: 1 if small else None]:
        n, k = (256, 256) if small else MODELS["Qwen3-8B"]["linears"]["qkv"]
        add("lora", few, adapters=adapters, rank=rank, inputs=k, outputs=n)
    for model in MODELS.values():
        add("rms_norm", few, columns=model["hidden"])
        if "inter" in model:
            add("silu_mul", few, columns=model["inter"])
        heads = {name: model[name] for name in ("heads", "kv_heads", "head_dim")}
        add("rope_cache", few, **heads, rotary_dim=model["head_dim"], block_size=16)
        add("decode_attention", [(1, 64)] if small else list(ATTENTION), **heads, block_size=16)
        add("prefill_attention", [(1, 20, 64)] if small else list(PROMPTS), **heads, block_size=16)
        for n, k in model["linears"].values():
            for operator in ("w4a16", "fp8_gemm", "int8_gemm"):
                add(operator, steps, n=256 if small else n, k=256 if small else k)
        if "experts" in model:
            sizes = {"experts": model["experts"], "hidden": model["hidden"], "intermediate": model["expert_inter"]}
            sizes = {"experts": 4, "hidden": 128, "intermediate": 64} if small else sizes
            add("fused_moe", steps, top_k=2 if small else model["top_k"], **sizes)
    return list(found.values())
