"""Does `fwopt bench` tell the truth? The figures of benchmarks/bench.md.

    python benchmarks/bench.py aa         # equal arms, recorded noise: false alarms, inconclusive
    python benchmarks/bench.py planted    # 5 % planted into the same noise: found?
    python benchmarks/bench.py drift      # the same under drift, interleaved and one after the other
    python benchmarks/bench.py requests   # requests of recorded replays: percentiles of correlated samples
    python benchmarks/bench.py here       # equal arms and 5 % planted, timed on this machine now

Every comparison goes through `fwopt.regress.session.Session` and `compare`, as `fwopt bench run` does; samples come
from the banks in benchmarks/data/bench (benchmarks/bench_bank.py recorded them), in their recorded order.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
from scipy import stats

from fwopt.regress.compare import compare
from fwopt.regress.samplers.base import Visit
from fwopt.regress.session import Session
from fwopt.spec.bench import Arm, ArmName, CommandBench, Metric, Rules, Suite
from fwopt.spec.bench_result import Key, Result
from fwopt.spec.comparison import Comparison

DATA = Path(__file__).parent / "data" / "bench"
REPEAT = {"kernel": 5, "command": 3, "here": 5}
"""Samples of one run."""
SLOWER = 0.05
RULES = Rules()
SERIES = "wall"


def bank(kind: str) -> np.ndarray:
    with gzip.open(DATA / f"{kind}.json.gz", "rt", encoding="utf-8") as file:
        return np.asarray(json.load(file)["took_us"]) / 1e6


@dataclass
class FromBank:
    """A `Sampler` that reads recorded samples one after the other; `head` is slower by `slower`, both drift alike."""

    samples: np.ndarray
    at: int
    repeat: int
    slower: float = 0.0
    drift: Callable[[int], float] = lambda run: 1.0
    exact: bool = False
    notes: tuple[str, ...] = ()
    runs: int = 0

    def key(self, arm: ArmName) -> Key:
        return Key(hardware="recorded", engine="-", model="-", workload="-", config="-")

    def visit(self, arm: ArmName) -> Visit:
        taken = np.take(self.samples, range(self.at, self.at + self.repeat), mode="wrap")
        self.at, self.runs = self.at + self.repeat, self.runs + 1
        factor = self.drift(self.runs) * (1 + self.slower if arm == "head" else 1)
        return Visit({SERIES: tuple((taken * factor).tolist())})

    def __enter__(self) -> FromBank:
        return self

    def __exit__(self, *details: object) -> None: ...


@dataclass
class FromClock:
    """A `Sampler` that times work here and now: `slower` is more of the same work."""

    repeat: int
    slower: float = 0.0
    exact: bool = False
    notes: tuple[str, ...] = ()
    work: np.ndarray = field(default_factory=lambda: np.ones((128, 128), np.float32))

    def key(self, arm: ArmName) -> Key:
        return Key(hardware="here", engine="-", model="-", workload="-", config="-")

    def visit(self, arm: ArmName) -> Visit:
        rounds, taken = round(20 * (1 + self.slower)) if arm == "head" else 20, []
        for _ in range(self.repeat):
            before = time.perf_counter()
            for _ in range(rounds):
                self.work @ self.work
            taken.append(time.perf_counter() - before)
        return Visit({SERIES: tuple(taken)})

    def __enter__(self) -> FromClock:
        return self

    def __exit__(self, *details: object) -> None: ...


def suite(arms: tuple[ArmName, ...], seed: int) -> Suite:
    bench = CommandBench(name="b", command="-", metrics=(Metric(series=SERIES, statistic="p50"),))
    return Suite(name="figures", benches=(bench,), arms={arm: Arm() for arm in arms}, rules=RULES, seed=seed)


def session(sampler: FromBank | FromClock, arms: tuple[ArmName, ...], seed: int) -> dict[ArmName, Result]:
    def probe() -> float:
        return 1e-3 * (sampler.drift(sampler.runs) if isinstance(sampler, FromBank) else 1.0)

    return Session(suite(arms, seed), {"b": sampler}, {}, probe=probe).run()


def interleaved(sampler: FromBank | FromClock, seed: int) -> Comparison:
    results = session(sampler, ("base", "head"), seed)
    return compare(results["base"], results["head"], RULES)


def one_after_the_other(sampler: FromBank, seed: int) -> Comparison:
    """Two sessions of one arm each; base is called base by hand, for a session of one arm calls it head."""
    slower, sampler.slower = sampler.slower, 0.0
    base = session(sampler, ("head",), seed)["head"]
    sampler.slower = slower
    return compare(base, session(sampler, ("head",), seed)["head"], RULES)


def upper(count: int, of: int) -> float:
    """One-sided 95 % limit (Clopper and Pearson)."""
    return float(stats.beta.ppf(0.95, count + 1, of - count)) if count < of else 1.0


def tell(what: str, found: list[Comparison], began_s: float) -> None:
    counts = Counter(c.verdict for c in found)
    blocks = [m.blocks for c in found for m in c.metrics]
    least = [m.min_effect for c in found for m in c.metrics if m.min_effect is not None]
    n = len(found)
    shown = f"{np.median(least):.1%}, {np.quantile(least, 0.9):.1%}" if least else "-"
    cells = (
        what, n, counts["pass"], counts["fail"], f"{counts['inconclusive']} ({counts['inconclusive'] / n:.1%})",
        f"{upper(counts['fail'], n):.2%}", f"{upper(n - counts['fail'], n):.2%}",
        f"{np.mean(blocks):.0f}, {max(blocks)}", shown, f"{time.monotonic() - began_s:.0f} s",
    )  # fmt: skip
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def aa(kinds: tuple[str, ...] = ("kernel", "command")) -> None:
    """One stretch of the bank after the other, so that no sample is used twice, as far as the bank reaches; at most
    550 of a kind."""
    for kind in kinds:
        began_s, samples, at, found = time.monotonic(), bank(kind), 0, []
        while len(found) < 550:
            sampler = FromBank(samples, at, REPEAT[kind])
            one = interleaved(sampler, len(found))
            if sampler.at > len(samples):
                break
            found.append(one)
            at = sampler.at
        tell(f"{kind}, equal arms, no sample twice", found, began_s)


Law = Callable[[int], float]
How = Callable[[FromBank, int], Comparison]


def anew(kind: str, trials: int, slower: float, drift: Law, seed: int, how: How) -> list[Comparison]:
    """Trials that begin anywhere in the bank."""
    samples, rng = bank(kind), np.random.default_rng(seed)
    starts = rng.integers(len(samples), size=trials)
    return [how(FromBank(samples, int(s), REPEAT[kind], slower, drift), i) for i, s in enumerate(starts)]


def planted() -> None:
    for kind, slowdowns in (("kernel", (SLOWER,)), ("command", (SLOWER, 0.0))):
        for slower in slowdowns:
            began_s = time.monotonic()
            found = anew(kind, 200, slower, lambda run: 1.0, 7, interleaved)
            tell(f"{kind}, head {slower:.0%} slower, starts drawn", found, began_s)


DRIFTS: dict[str, Callable[[int], float]] = {
    "20 % slower over 150 runs": lambda run: 1 + 0.2 * run / 150,
    "15 % slower from run 40 on": lambda run: 1.15 if run >= 40 else 1.0,
    "swings by 10 % every 60 runs": lambda run: 1 + 0.1 * math.sin(run * 2 * math.pi / 60),
}


def drift() -> None:
    for name, law in DRIFTS.items():
        for slower in (0.0, SLOWER):
            for how in (interleaved, one_after_the_other):
                began_s = time.monotonic()
                found = anew("kernel", 50, slower, law, 11, how)
                tell(f"{name}, head {slower:.0%} slower, {how.__name__.replace('_', ' ')}", found, began_s)


def here(trials: int = 100) -> None:
    for slower in (0.0, SLOWER):
        began_s = time.monotonic()
        found = [interleaved(FromClock(REPEAT["here"], slower), seed) for seed in range(trials)]
        tell(f"this machine, head {slower:.0%} slower", found, began_s)


@dataclass
class FromReplay:
    """A `Sampler` whose runs are stretches of consecutive requests of one recorded replay, drawn anew each time."""

    series: dict[str, np.ndarray]
    rng: np.random.Generator
    requests: int = 25
    slower: float = 0.0
    exact: bool = False
    notes: tuple[str, ...] = ()

    def key(self, arm: ArmName) -> Key:
        return Key(hardware="recorded", engine="-", model="-", workload="-", config="-")

    def visit(self, arm: ArmName) -> Visit:
        start = int(self.rng.integers(min(map(len, self.series.values())) - self.requests))
        factor = 1 + self.slower if arm == "head" else 1.0
        return Visit({n: tuple((v[start : start + self.requests] * factor).tolist()) for n, v in self.series.items()})

    def __enter__(self) -> FromReplay:
        return self

    def __exit__(self, *details: object) -> None: ...


def requests(trials: int = 40) -> None:
    """Four metrics at once, minimum effect stated as 10 %, at most 42 blocks."""
    from fwopt.live import Replay
    from fwopt.metrics.summary import latencies

    records = Replay.load(DATA.parent / "live" / "cpu-vllm-1000.jsonl.gz").records
    series = {name: v[np.isfinite(v)] for name in ("ttft", "tpot") if len(v := latencies(records, name))}
    rules = Rules(min_effect=0.1, max_blocks=42)
    metrics = tuple(Metric(series=n, statistic=q) for n in series for q in ("p50", "p90"))
    for slower in (0.0, 0.2):
        began_s, found = time.monotonic(), []
        for seed in range(trials):
            bench = CommandBench(name="b", command="-", metrics=metrics)
            arms: dict[ArmName, Arm] = {"base": Arm(), "head": Arm()}
            asked = Suite(name="requests", benches=(bench,), arms=arms, rules=rules, seed=seed)
            sampler = FromReplay(series, np.random.default_rng(seed), slower=slower)
            results = Session(asked, {"b": sampler}, {}, probe=lambda: 1e-3).run()
            found.append(compare(results["base"], results["head"], rules))
        tell(f"25 requests a run of a recorded replay, head {slower:.0%} slower", found, began_s)
        by_metric = Counter((m.metric, m.verdict) for c in found for m in c.metrics)
        print(f"  by metric: {dict(sorted(by_metric.items()))}", flush=True)


if __name__ == "__main__":
    print("| what | n | pass | fail | inconclusive | fails at most | not found at most | blocks mean, most | "
          "minimum effect median, p90 | took |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    for stage in sys.argv[1:]:
        {"aa": aa, "planted": planted, "drift": drift, "requests": requests, "here": here}[stage]()
