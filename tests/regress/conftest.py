"""Results made of numbers, so that every statistic is known beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fwopt.spec.bench import Metric, Rules
from fwopt.spec.bench_result import BenchResult, Key, Probe, Result, Run

KEY = Key(hardware="cpu-2c", engine="vllm 0.24.0", model="m", workload="w", config="c")
P50 = Metric(series="wall", statistic="p50")
ORDERS = (("base", "head", "head", "base"), ("head", "base", "base", "head"))

Make = Callable[..., tuple[Result, Result]]


def result(
    benches: Sequence[BenchResult],
    arm: str = "head",
    *,
    session: str = "s",
    made_at: str = "2026-11-24T10:00:00+00:00",
    commit: str | None = None,
    probes: Sequence[float] = (1e-3,),
    rules: Rules | None = None,
    suite_digest: str = "d",
    machine: dict[str, str] | None = None,
) -> Result:
    return Result(
        fwopt_version="0",
        suite="nightly",
        suite_digest=suite_digest,
        session=session,
        arm=arm,
        made_at=made_at,
        commit=commit,
        machine=machine or {},
        probes=tuple(Probe(at_s=float(i), seconds=s) for i, s in enumerate(probes)),
        benches=tuple(benches),
        rules=rules or Rules(min_effect=0.03),
    )


def bench(runs: Sequence[Run], *, name: str = "b", metrics: Sequence[Metric] = (P50,), **more: object) -> BenchResult:
    return BenchResult(
        name=name, kind="command", key=more.pop("key", KEY), metrics=tuple(metrics), exact=more.pop("exact", False),
        runs=tuple(runs), **more,
    )  # fmt: skip


def run(block: int, position: int, samples: Sequence[float], series: str = "wall", **more: object) -> Run:
    return Run(block=block, position=position, started_s=float(position), samples={series: tuple(samples)}, **more)


@pytest.fixture
def interleaved() -> Make:
    """`interleaved(blocks=40, slower=0.05, noise=0.02, ...)`: base and head of one session."""

    def make(
        *,
        blocks: int = 40,
        slower: float = 0.0,
        noise: float = 0.02,
        samples: int = 5,
        seed: int = 0,
        level: Callable[[int], float] = lambda position: 1.0,
        aa_blocks: int = 0,
        metrics: Sequence[Metric] = (P50,),
        rules: Rules | None = None,
        draw: Callable[[np.random.Generator, int], np.ndarray] | None = None,
        **more: object,
    ) -> tuple[Result, Result]:
        rng = np.random.default_rng(seed)
        position = 0

        def take(block: int, factor: float) -> Run:
            nonlocal position
            drawn = draw(rng, samples) if draw else np.exp(rng.normal(0, noise, samples))
            taken = run(block, position, (drawn * level(position) * factor).tolist())
            position += 1
            return taken

        aa = [take(block, 1.0) for block in range(aa_blocks) for _ in range(4)]
        runs: dict[str, list[Run]] = {"base": [], "head": []}
        for block in range(blocks):
            for arm in ORDERS[int(rng.integers(2))]:
                runs[arm].append(take(block, 1 + slower if arm == "head" else 1.0))
        made = {"rules": rules, **more}
        return (
            result([bench(runs["base"], metrics=metrics, aa_runs=tuple(aa))], "base", **made),
            result([bench(runs["head"], metrics=metrics)], "head", **made),
        )

    return make
