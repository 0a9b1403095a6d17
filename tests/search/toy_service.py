"""A made-up serving system with an exact capacity, as an evaluator; and a search over it as a process.

Each replica serves `speed` requests/s. Latency grows with load, as in a queue; adding replicas or lowering the rate
always helps, so brute force and shortcuts must agree.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from fwopt import __version__
from fwopt.search.log import TrialLog
from fwopt.search.plan_builder import PlanBuilder
from fwopt.search.run import search
from fwopt.search.run_folder import RunFolder, RunInputs
from fwopt.search.scoring import EngineFacts, evaluate_metrics
from fwopt.search.space import SearchSpace
from fwopt.search.stopping import Stopper
from fwopt.spec.candidate import Bf16, Candidate, Fp8, Int8, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec, HardwareSpec, Price
from fwopt.spec.model import DenseMlp, GroupedQueryAttention, LayerGroup, ModelSpec
from fwopt.spec.objective import Goal, Objective, Slo
from fwopt.spec.outcome import Distribution, Evaluation, Metrics, Rejected
from fwopt.spec.provenance import ProvenanceShares

WINDOW_S = 100.0
REQUESTS = 1000

DEVICE = DeviceSpec(
    name="toy", full_name="TOY-80GB", memory_bytes=80 * 2**30, bandwidth_bytes_per_s=3e12, bf16_flops=1e15,
    fp8_flops=2e15, int8_ops=2e15, link_bytes_per_s=4e11, fabric="toy", source="test",
)  # fmt: skip
HARDWARE = HardwareSpec(
    device=DEVICE, count=8, price=Price(usd_per_gpu_hour=2, basis="test", dates="now", source="test"), source="test"
)
MODEL = ModelSpec(
    name="toy/model", architecture="LlamaForCausalLM", hidden_size=1024, vocab_size=32000, max_context_tokens=4096,
    layers=(LayerGroup(count=4, attention=GroupedQueryAttention(heads=8, kv_heads=8, head_dim=128),
                       mlp=DenseMlp(intermediate_size=4096)),),
    tied_embeddings=False, config_digest="0" * 16, source="test",
)  # fmt: skip
OBJECTIVE = Objective(slos=(Slo.parse("ttft:p99<2s"),), goals=(Goal.parse("minimize", "cost"),))
SMALL = SearchSpace(
    quantizations=(Bf16(), Fp8()), kv_dtypes=("bf16",), layouts=(Parallelism(tp=1), Parallelism(tp=2)), gpus=8,
    max_num_seqs=(64, 256), max_num_batched_tokens=(2048, 8192), gpu_memory_utilization=(0.92,),
    prefix_caching=(True,), router=("least_requests",),
)  # fmt: skip
LARGE = SMALL.model_copy(
    update={
        "quantizations": (Bf16(), Fp8(), Int8()),
        "kv_dtypes": ("bf16", "fp8"),
        "max_num_seqs": (32, 64, 128, 256, 512, 1024),
        "router": ("least_requests", "round_robin", "cache_aware"),
        "prefix_caching": (True, False),
    }
)


def speed(candidate: Candidate) -> float:
    """Requests/s of one replica."""
    b, p = candidate.batching, candidate.parallelism
    base = {"bf16": 2.0, "fp8": 3.3, "int8": 4.0}[candidate.quantization.kind]
    width = p.tp**0.8 * (1.1 if candidate.kv_dtype == "fp8" else 1.0)
    fit = 1 - 0.1 * abs(b.max_num_seqs - 200) / 1000 - 0.05 * (b.max_num_batched_tokens == 2048)
    return base * width * fit * (1.0 if candidate.router == "least_requests" else 0.93)


class Toy:
    """The evaluator. `rate` is the offered requests/s; `delay_s` makes each evaluation take that long."""

    def __init__(self, rate: float = 12.0, objective: Objective = OBJECTIVE, delay_s: float = 0.0) -> None:
        self.rate, self.objective, self.delay_s = rate, objective, delay_s
        self.calls: list[tuple[str, float]] = []
        self._lock = threading.Lock()

    def check(self, candidate: Candidate) -> Rejected | None:
        if candidate.quantization.kind == "bf16" and candidate.parallelism.tp == 1 and candidate.kv_dtype == "fp8":
            return Rejected(candidate_id=candidate.id, rung="memory", reason="toy", need=2, have=1, unit="bytes")
        return None

    def latency_s(self, candidate: Candidate, rate_scale: float) -> float:
        load = self.rate * rate_scale / (candidate.parallelism.replicas * speed(candidate))
        return min(0.2 / (1 - load), 20.0) if load < 1 else 20 * load

    def evaluate(self, candidate: Candidate, rate_scale: float = 1.0) -> Evaluation | Rejected:
        with self._lock:
            self.calls.append((candidate.id, rate_scale))
        if self.delay_s:
            time.sleep(self.delay_s * (1 + int(candidate.id[0], 16) / 16))
        value = self.latency_s(candidate, rate_scale)
        every = Distribution(mean_s=value, p50_s=value, p90_s=value, p95_s=value, p99_s=value, max_s=value)
        window = WINDOW_S / rate_scale
        duration = window + value
        metrics = Metrics(
            requests=REQUESTS, finished=REQUESTS, rejected={}, duration_s=duration, prompt_tokens=10 * REQUESTS,
            output_tokens=10 * REQUESTS, cached_prompt_tokens=0, ttft=every, tpot=every, itl=every, e2e=every,
            queue=every, output_tokens_per_s=10 * REQUESTS / duration, requests_per_s=REQUESTS / duration,
            goodput_requests_per_s=REQUESTS / duration, preemptions=0,
        )  # fmt: skip
        assumed = 0.9 if candidate.quantization.kind == "int8" else 0.0
        facts = EngineFacts(ProvenanceShares(measured=1 - assumed, assumed=assumed), 100, 10, 5.0, 0.5)
        return evaluate_metrics(
            candidate, metrics, lambda metric, which: value, facts,
            objective=self.objective, hardware=HARDWARE, window_s=window,
        )  # fmt: skip


def inputs(space: SearchSpace = SMALL, **changes: object) -> RunInputs:
    base = RunInputs(
        fwopt_version=__version__, trace="toy.jsonl", trace_format=None, skip_bad=False, only_model=None,
        rate_scale=1.0, model=MODEL, hardware=HARDWARE, engine=EngineSpec(), objective=OBJECTIVE, space=space,
        baseline=None, seed=7, trials=60, allow_unmeasured=False, profiles=None, pins=(),
    )  # fmt: skip
    return base.model_copy(update=changes)


def tune(run: RunInputs, toy: Toy, log: TrialLog, *, workers: int = 1, baseline: Candidate | None = None,
         stopper: Stopper | None = None):  # fmt: skip
    """Search and build the plan."""
    found = search(run, toy, (toy,), baseline or Candidate(), log, window_s=WINDOW_S, workers=workers, stopper=stopper)
    return PlanBuilder(run, "toy", "toy/profile", found).build()


if __name__ == "__main__":
    where, delay = Path(sys.argv[1]), float(sys.argv[2])
    run = inputs(LARGE)
    folder = RunFolder(where) if (where / "inputs.json").exists() else RunFolder.create(where, run)
    stopper = Stopper()
    with stopper.on_interrupt():
        print("ready", flush=True)
        folder.write_plan(tune(run, Toy(delay_s=delay), folder.log(), workers=2, stopper=stopper))
