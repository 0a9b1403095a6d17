"""A realistic plan and its trials, and every variant a reader can meet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from fwopt.spec.candidate import W4A16, Batching, Bf16, Candidate, Fp8, Int8, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec, HardwareSpec, Price
from fwopt.spec.model import DenseMlp, GroupedQueryAttention, LayerGroup, ModelSpec
from fwopt.spec.objective import Goal, Objective, QualityLimit, Slo
from fwopt.spec.outcome import Cost, Distribution, Evaluation, GoalResult, Metrics, Rejected, SloResult, Trial
from fwopt.spec.plan import Capacity, Entry, InputPin, Plan, QualityEstimate, RejectedCount
from fwopt.spec.provenance import ProvenanceShares

REQUESTS, OUTPUT_TOKENS, DURATION_S = 19_366, 4_087_665, 221.4
PRICE = Price(
    usd_per_gpu_hour=4.5,
    basis="median on-demand",
    dates="2026-02 to 2026-09-25",
    source="RunPod 3.59; Nebius 4.50; AWS p5en 7.912",
)
MODEL = ModelSpec(
    name="Qwen/Qwen3-8B",
    architecture="Qwen3ForCausalLM",
    hidden_size=4096,
    vocab_size=151_936,
    layers=(
        LayerGroup(
            count=36,
            attention=GroupedQueryAttention(heads=32, kv_heads=8, head_dim=128),
            mlp=DenseMlp(intermediate_size=12_288),
        ),
    ),
    max_context_tokens=40_960,
    tied_embeddings=False,
    config_digest="1f0c5d2ab34e9f77",
    source="bundled catalogue",
)
H200 = DeviceSpec(
    name="h200",
    full_name="H200-SXM-141GB",
    memory_bytes=150_754_820_096,
    bandwidth_bytes_per_s=4.8e12,
    bf16_flops=989e12,
    fp8_flops=1979e12,
    link_bytes_per_s=450e9,
    fabric="NVLink4",
    tdp_w=700,
    source="vendor data sheet",
)
OBJECTIVE = Objective(
    slos=(Slo.parse("ttft:p99<2s"), Slo.parse("tpot:p95<50ms")),
    goals=(Goal.parse("minimize", "cost"),),
    max_quality_drop=QualityLimit.parse("top1>98%"),
)
QUALITY = {
    "bf16": QualityEstimate(kl=0.0, top1=1.0, known="measured", source="the reference itself"),
    "fp8": QualityEstimate(kl=0.0035, top1=0.987, known="assumed", source="literature median over 7 models"),
    "int8": QualityEstimate(kl=0.0061, top1=0.981, known="assumed", source="literature median over 5 models"),
    "w4a16": QualityEstimate(kl=0.021, top1=0.962, known="assumed", source="literature median over 9 models"),
}


@dataclass(frozen=True)
class Sample:
    """Builds entries, plans and trials; `price=None` leaves every cost out."""

    price: Price | None = PRICE
    objective: Objective = OBJECTIVE
    model: ModelSpec = MODEL
    workload: str = "azure-2023-conv"

    def candidate(self, kind="bf16", replicas=1, tp=1, kv="bf16", seqs=1024, tokens=8192) -> Candidate:
        scheme = {"bf16": Bf16, "fp8": Fp8, "int8": Int8, "w4a16": W4A16}[kind]()
        return Candidate(
            quantization=scheme,
            kv_dtype=kv,
            parallelism=Parallelism(tp=tp, replicas=replicas),
            batching=Batching(max_num_seqs=seqs, max_num_batched_tokens=tokens),
        )

    def evaluation(self, candidate: Candidate, ttft_s: float | None, tpot_s: float | None, **changes) -> Evaluation:
        found = {"ttft": ttft_s, "tpot": tpot_s}
        slos = tuple(
            SloResult(slo=s, value_s=v, met=v is not None and v < s.limit_s)
            for s in self.objective.slos
            for v in [found.get(s.metric, 9.1)]
        )
        ratios = [None if r.value_s is None else r.value_s / r.slo.limit_s for r in slos]
        gpus, cost = candidate.parallelism.gpus, None
        if self.price is not None:
            hourly = gpus * self.price.usd_per_gpu_hour
            spent = hourly * DURATION_S / 3600
            cost = Cost(
                usd_per_hour=hourly,
                usd_per_1m_output_tokens=spent / OUTPUT_TOKENS * 1e6,
                usd_per_1m_tokens=spent / (OUTPUT_TOKENS + 22_361_870) * 1e6,
            )
        goal_values = {
            "cost": cost.usd_per_1m_output_tokens if cost else None,
            "gpus": float(gpus),
            "goodput": 80.0 / (tpot_s or 1) / 40,
            **found,
        }
        assumed = 0.41 if candidate.quantization.kind in ("int8", "w4a16") else 0.0
        value = {
            "candidate_id": candidate.id,
            "source": "simulated",
            "metrics": metrics(ttft_s, tpot_s),
            "slos": slos,
            "goals": tuple(GoalResult(goal=g, value=goal_values.get(g.metric)) for g in self.objective.goals),
            "feasible": all(r.met for r in slos),
            "slack": max(ratios) if ratios and None not in ratios else None,
            "cost": cost,
            "provenance": ProvenanceShares(
                measured=0.30 * (1 - assumed),
                interpolated=0.62 * (1 - assumed),
                bound=0.08 * (1 - assumed),
                assumed=assumed,
            ),
            "kv_blocks_per_replica": 46_120,
            "peak_kv_blocks": 31_007,
            "mean_batch": 61.3,
            "busy_share": 0.83,
        }
        return Evaluation(**{**value, **changes})

    def simulated(self, c: Candidate) -> Evaluation:
        """A smooth made-up law: less load per replica, lower latencies."""
        speed = {"bf16": 1.0, "fp8": 0.68, "int8": 0.7, "w4a16": 0.42}[c.quantization.kind]
        load = speed * (0.9 if c.kv_dtype == "fp8" else 1.0) / c.parallelism.gpus
        over = max(0.0, load - 0.4) * c.batching.max_num_batched_tokens / 4096
        return self.evaluation(c, 0.15 + 0.9 * load + 4 * over, 0.008 + 0.07 * load * c.batching.max_num_seqs**0.05)

    def entry(self, candidate: Candidate, evaluation: Evaluation, scale=None, limited_by="tpot:p95<50ms") -> Entry:
        capacity = None
        if scale is not None:
            cost = evaluation.cost
            capacity = Capacity(
                rate_scale=scale,
                tolerance=0.02,
                requests_per_s=scale * evaluation.metrics.requests_per_s,
                output_tokens_per_s=scale * evaluation.metrics.output_tokens_per_s,
                usd_per_1m_output_tokens=cost.usd_per_1m_output_tokens / scale if cost else None,
                limited_by=limited_by,
            )
        return Entry(
            candidate=candidate,
            evaluation=evaluation,
            capacity=capacity,
            quality=QUALITY[candidate.quantization.kind],
            needs_checkpoint="w4a16 checkpoint" if candidate.quantization.kind == "w4a16" else None,
        )

    def trials(self) -> list[Trial]:
        """The baseline, a spread of evaluations over 1 to 8 GPUs, and what fell before simulation."""
        found: list[Trial] = []

        def add(candidate: Candidate, outcome: Evaluation | Rejected, role="search") -> None:
            found.append(Trial(number=len(found), candidate=candidate, role=role, outcome=outcome))

        base = self.candidate(replicas=4)
        add(base, self.simulated(base), "baseline")
        for kind in ("bf16", "fp8", "int8", "w4a16"):
            for replicas in (1, 2, 3, 4, 6, 8):
                for seqs, tokens, kv in ((1024, 8192, "bf16"), (256, 4096, "fp8"), (512, 16_384, "fp8")):
                    c = self.candidate(kind, replicas, kv=kv, seqs=seqs, tokens=tokens)
                    if c.id != base.id:
                        add(c, self.simulated(c))
        for replicas in (1, 2, 4):
            c = self.candidate("bf16", replicas, tp=2, seqs=2048)
            add(c, Rejected(candidate_id=c.id, rung="bound", reason="slower than a limit even at peak rates",
                            need=0.061, have=0.05, unit="s"))  # fmt: skip
            c = self.candidate("bf16", replicas, tp=1, seqs=4096)
            add(c, Rejected(candidate_id=c.id, rung="memory", reason="weights do not fit", need=171_798_691_840,
                            have=138_694_434_488, unit="bytes"))  # fmt: skip
        c = self.candidate("bf16", 5)
        add(c, Rejected(candidate_id=c.id, rung="dominated", reason="more GPUs than a candidate that meets every SLO"))
        return found

    def plan(self, **changes) -> Plan:
        chosen = self.candidate("fp8", 2, kv="fp8", seqs=256, tokens=4096)
        base = self.candidate(replicas=4)
        shapes = [(n, s, t) for n in (2, 3) for s, t in ((512, 16_384), (256, 4096))]
        others = [self.candidate("fp8", n, kv="fp8", seqs=s, tokens=t) for n, s, t in shapes]
        others = [c for c in others if c.id != chosen.id]
        risky = self.candidate("w4a16", 1, kv="fp8", seqs=256, tokens=4096)
        best = self.entry(chosen, self.simulated(chosen), 1.31)
        old = self.entry(base, self.simulated(base), 1.52, "ttft:p99<2s")
        runners = [self.entry(c, self.simulated(c), 1.2 - 0.05 * i) for i, c in enumerate(others)]
        value = {
            "fwopt_version": "0.1.0",
            "workload": self.workload,
            "rate_scale": 16.0,
            "model": self.model,
            "hardware": HardwareSpec(device=H200, count=8, price=self.price, source="catalogue"),
            "engine": EngineSpec(),
            "objective": self.objective,
            "profile": "h200_sxm/vllm-0.24.0",
            "inputs": (
                InputPin(what="workload", name=self.workload, digest="9a0b6c1d2e3f4a5b"),
                InputPin(what="model", name=self.model.name, digest=self.model.config_digest),
                InputPin(what="profile", name="h200_sxm/vllm-0.24.0", digest="c0ffee1234567890"),
                InputPin(what="hardware", name="h200:8", digest="77aa66bb55cc44dd"),
            ),
            "seed": 0,
            "command": "fwopt tune TRACE --model Qwen/Qwen3-8B --hardware h200:8 --slo 'ttft:p99<2s' --seed 0",
            "status": "complete",
            "chosen": best,
            "baseline": old,
            "baseline_kind": "engine defaults",
            "runners_up": tuple(runners),
            "pareto": (best,),
            "unmeasured": (self.entry(risky, self.simulated(risky), 1.04),),
            "nearest_miss": None,
            "rejected": (
                RejectedCount(
                    rung="bound",
                    reason="slower than a limit even at peak rates",
                    count=212,
                    example="bf16 tp2 x1 seqs2048 tok8192",
                ),
                RejectedCount(
                    rung="memory", reason="weights do not fit", count=96, example="bf16 tp1 x1 seqs4096 tok8192"
                ),
                RejectedCount(
                    rung="dominated",
                    reason="more GPUs than a candidate that meets every SLO",
                    count=340,
                    example="bf16 tp1 x5",
                ),
                RejectedCount(
                    rung="simulation", reason="misses tpot:p95<50ms", count=11, example="bf16 tp1 x1: tpot 98.0 ms"
                ),
            ),
            "evaluated": 72,
            "notes": (
                "Quality figures are literature medians, not measured on this model.",
                "The trace's clock ticks every 1 s: TTFT tails below that may be the tick, not the server.",
            ),
        }
        return Plan(**{**value, **changes})

    def infeasible(self) -> tuple[Plan, list[Trial]]:
        """Nothing meets the objective; bf16 on all eight GPUs comes closest."""
        tight = replace(self, objective=Objective(slos=(Slo.parse("ttft:p99<100ms"), Slo.parse("tpot:p95<50ms"))))
        near = tight.candidate("fp8", 8, kv="fp8", seqs=256, tokens=4096)
        miss = tight.entry(near, tight.simulated(near), 0.38, "ttft:p99<100ms")
        return tight.plan(status="infeasible", chosen=None, nearest_miss=miss, runners_up=(), pareto=(), unmeasured=(),
                          baseline=None), tight.trials()  # fmt: skip


def metrics(ttft_s: float | None, tpot_s: float | None, rejected: dict[str, int] | None = None) -> Metrics:
    refused = rejected or {}

    def around(p95_s: float | None, p99_s: float | None) -> Distribution:
        low = p95_s if p95_s is not None else 0.4
        return Distribution(mean_s=0.5 * low, p50_s=0.45 * low, p90_s=0.85 * low, p95_s=p95_s, p99_s=p99_s,
                            max_s=None if p99_s is None else 1.4 * p99_s)  # fmt: skip

    return Metrics(
        requests=REQUESTS,
        finished=REQUESTS - sum(refused.values()),
        rejected=refused,
        duration_s=DURATION_S,
        prompt_tokens=22_361_870,
        output_tokens=OUTPUT_TOKENS,
        cached_prompt_tokens=0,
        ttft=around(0.6 * ttft_s if ttft_s is not None else None, ttft_s),
        tpot=around(tpot_s, 1.2 * tpot_s if tpot_s is not None else None),
        itl=around(tpot_s, 2.1 * tpot_s if tpot_s is not None else None),
        e2e=around(7.2, 9.1),
        queue=around(0.02, 0.11),
        output_tokens_per_s=OUTPUT_TOKENS / DURATION_S,
        requests_per_s=REQUESTS / DURATION_S,
        goodput_requests_per_s=0.985 * REQUESTS / DURATION_S,
        preemptions=0,
    )


@pytest.fixture
def sample() -> Sample:
    return Sample()


@pytest.fixture
def hostile() -> Sample:
    """Names that try to break out of HTML, Markdown tables and the terminal."""
    return Sample(
        model=MODEL.model_copy(update={"name": "<script>alert(1)</script>|`x`\x1b[31m"}),
        workload="a|b\n<img src=http://evil.example/x.png onerror=alert(1)>[red]",
    )
