"""The tuner's search against an exhaustive one: every variant is timed first, then the search runs on those times.

The search sees what the device gave and pays what measuring it took, so its share of the exhaustive search's time is
exact, and a variant is not timed twice.
"""

from __future__ import annotations

import random
import time
from typing import Any

from gpu_stages import Result, Session
from gpu_stages.machine import as_device

POINTS = (1, 8, 64, 512)
EFFORT_S = 0.02
OVERHEAD_S = 0.02
"""Of any measurement: a graph captured, a warm-up."""
SHARE = 0.028
"""Of the exhaustive search's time, after which the search goes over to its finals; those take the rest of 5 %."""


def run(session: Session) -> Result:
    import numpy as np

    from fwopt.tuning.device import candidates, describe
    from fwopt.tuning.family import Demand, Family
    from fwopt.tuning.tune import floors

    sizes = {"n": 256, "k": 256} if session.small else {"n": 6144, "k": 4096}
    points = [(m,) for m in (POINTS[:2] if session.small else POINTS)]
    family = Family("w4a16", "g128", tuple(sizes.items()), ("m",))
    ends = time.monotonic() + 0.85 * session.seconds
    compiling_ends, wanted = ends - 0.5 * session.seconds, ("w4a16", "g128")
    compiled = candidates(
        [wanted], describe(session.device), time_left=lambda: time.monotonic() < compiling_ends, tell=lambda *_: None
    )[wanted]
    variants, features = compiled.variants, compiled.features
    if session.small:  # a processor has the fallback alone: it stands for three
        variants, features = variants * 3, np.arange(3.0)[:, None]
    table, kept = _timed(session, family, points, variants, ends)
    demand = Demand(family, np.asarray(points), np.ones(len(points)))
    floor = floors(demand, points, as_device(session.before["machine"]))
    return {
        "family": family.label, "points": points, "variants": len(variants), "timed": len(kept),
        **_searched(table, features[kept], np.asarray(points, dtype=float), floor),
    }  # fmt: skip


def _timed(session: Session, family: Any, points: list[tuple[int, ...]], variants: list[Any], ends: float) -> Any:
    """((2, B, V) medians and noise of variants that ran everywhere; their indices), the default first."""
    import numpy as np

    from fwopt.tuning.family import shape_of
    from fwopt_kernels.apart import Fault
    from fwopt_kernels.timing import Question, bench
    from fwopt_kernels.w4a16 import W4A16_GEMM

    child, columns, kept = bench(timeout_s=60), [], []
    rest = list(range(1, len(variants)))
    random.Random(0).shuffle(rest)
    for at in (0, *rest):
        answers = []
        for point in points:
            shape = shape_of(family, point, W4A16_GEMM.dimensions)
            question = Question("fwopt_kernels.w4a16:W4A16_GEMM", "g128", shape, variants[at], session.device, EFFORT_S)
            answers.append(child.ask(question))
        if not any(isinstance(answer, Fault) for answer in answers):
            columns.append([(answer.p50_s, max(answer.noise, 1e-3)) for answer in answers])
            kept.append(at)
        if time.monotonic() > ends and len(kept) >= 3:
            break
    child.close()
    if not kept or kept[0] != 0:
        raise RuntimeError("the default variant does not run")
    return np.asarray(columns).transpose(2, 1, 0), kept


def _searched(table: Any, features: Any, places: Any, floor: Any) -> Result:
    import numpy as np

    from fwopt.tuning.search import EFFORTS_S, FamilySearch, Measured, run

    seconds, noise = table
    spent = 0.0

    def ask(bucket: int, variant: int, effort_s: float) -> Measured:
        nonlocal spent
        spent += OVERHEAD_S + effort_s
        at = EFFORTS_S.index(effort_s)
        return Measured(float(seconds[bucket, variant]), float(noise[bucket, variant]) / (1 + at), at)

    whole_s = seconds.size * (OVERHEAD_S + EFFORTS_S[-1])
    calls = 1 / seconds.min(axis=1)  # every size takes an equal share of the time
    family = FamilySearch(features, np.log2(places), floor, calls)
    run([family], [ask], lambda: spent < SHARE * whole_s)
    winners = [family.winner(b) or 0 for b in range(len(calls))]
    best = float(calls @ seconds.min(axis=1))
    return {
        "over_best": float(sum(calls[b] * seconds[b, v] for b, v in enumerate(winners))) / best,
        "default_over_best": float(calls @ seconds[:, 0]) / best, "share": spent / whole_s,
    }  # fmt: skip
