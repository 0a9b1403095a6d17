"""A small complete plan, and a way to swap its candidate, model, hardware and engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fwopt.spec.candidate import Batching, Candidate, Fp8, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec, HardwareSpec
from fwopt.spec.model import DenseMlp, GroupedQueryAttention, LayerGroup, ModelSpec, MoeMlp
from fwopt.spec.objective import Goal, Objective, Slo
from fwopt.spec.outcome import Distribution, Evaluation, GoalResult, Metrics, SloResult
from fwopt.spec.plan import Entry, Plan, QualityEstimate
from fwopt.spec.provenance import ProvenanceShares

MakePlan = Callable[..., Plan]


def _model(name: str, stored: str | None, moe: bool) -> ModelSpec:
    experts = MoeMlp(experts=128, experts_per_token=8, expert_intermediate_size=768)
    layer = LayerGroup(
        count=36,
        attention=GroupedQueryAttention(heads=32, kv_heads=8, head_dim=128),
        mlp=experts if moe else DenseMlp(intermediate_size=12288),
    )
    return ModelSpec(
        name=name,
        architecture="Qwen3ForCausalLM",
        hidden_size=4096,
        vocab_size=151936,
        layers=(layer,),
        max_context_tokens=40960,
        tied_embeddings=False,
        checkpoint_quantization=stored,
        config_digest="0" * 16,
        source="test",
    )


def _evaluation(candidate: Candidate, kv_blocks: int) -> Evaluation:
    slow = Distribution(mean_s=0.4, p50_s=0.3, p90_s=0.8, p95_s=1.0, p99_s=1.3, max_s=2.0)
    metrics = Metrics(
        requests=10, finished=10, rejected={}, duration_s=60.0, prompt_tokens=1000, output_tokens=500,
        cached_prompt_tokens=0, ttft=slow, tpot=slow, itl=slow, e2e=slow, queue=slow, output_tokens_per_s=8.3,
        requests_per_s=0.17, goodput_requests_per_s=0.17, preemptions=0,
    )  # fmt: skip
    return Evaluation(
        candidate_id=candidate.id,
        source="simulated",
        metrics=metrics,
        slos=(SloResult(slo=Slo.parse("ttft:p99<2s"), value_s=1.3, met=True),),
        goals=(GoalResult(goal=Goal.parse("minimize", "cost"), value=0.21),),
        feasible=True,
        slack=0.65,
        cost=None,
        provenance=ProvenanceShares(measured=0.7, interpolated=0.25, bound=0.05),
        kv_blocks_per_replica=kv_blocks,
        peak_kv_blocks=10000,
        mean_batch=20.0,
        busy_share=0.5,
    )


H200 = DeviceSpec(
    name="h200", full_name="H200-SXM-141GB", memory_bytes=141 * 10**9, bandwidth_bytes_per_s=4.8e12,
    bf16_flops=989e12, link_bytes_per_s=450e9, fabric="NVLink", source="test",
)  # fmt: skip
CPU = DeviceSpec(
    kind="cpu", name="cpu-test-2c", full_name="Test processor, 2 cores", memory_bytes=16 * 2**30,
    bandwidth_bytes_per_s=2e10, bf16_flops=1e12, link_bytes_per_s=2e10, fabric="shared memory", source="test",
)  # fmt: skip
DEPLOYED = Candidate(
    quantization=Fp8(),
    parallelism=Parallelism(tp=2, replicas=4),
    batching=Batching(max_num_seqs=256, max_num_batched_tokens=4096),
)


@pytest.fixture(scope="session", autouse=True)
def own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the user profiled and measured on this machine is no part of a test, nor does a test add to it."""
    folder = tmp_path_factory.mktemp("own-data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def cpu() -> DeviceSpec:
    """A processor as a device."""
    return CPU


@pytest.fixture
def make_plan(make_plan_once: MakePlan) -> MakePlan:
    """See `make_plan_once`."""
    return make_plan_once


@pytest.fixture(scope="session")
def make_plan_once() -> MakePlan:
    """`make_plan(candidate, stored=..., moe=..., name=..., needs_checkpoint=..., device=..., engine=..., ...)`."""

    def make(
        candidate: Candidate = DEPLOYED,
        *,
        stored: str | None = None,
        moe: bool = False,
        name: str = "Qwen/Qwen3-8B",
        needs_checkpoint: str | None = None,
        chosen: bool = True,
        model: ModelSpec | None = None,
        device: DeviceSpec = H200,
        engine: EngineSpec | None = None,
        kv_blocks: int = 40000,
    ) -> Plan:
        entry = Entry(
            candidate=candidate,
            evaluation=_evaluation(candidate, kv_blocks),
            quality=QualityEstimate(kl=0.004, top1=0.987, known="assumed", source="literature"),
            needs_checkpoint=needs_checkpoint,
        )
        return Plan(
            fwopt_version="0.1.0",
            workload="azure-conv",
            rate_scale=16,
            model=model or _model(name, stored, moe),
            hardware=HardwareSpec(device=device, count=8, source="catalogue"),
            engine=engine or EngineSpec(),
            objective=Objective(slos=(Slo.parse("ttft:p99<2s"),)),
            profile="h200",
            inputs=(),
            seed=0,
            status="complete" if chosen else "infeasible",
            chosen=entry if chosen else None,
            baseline=None,
            baseline_kind="engine defaults",
            runners_up=(),
            pareto=(),
            unmeasured=(),
            nearest_miss=None if chosen else entry,
            rejected=(),
            evaluated=1,
            notes=(),
        )

    return make
