"""The engine to be measured, started from the very files that a plan of the same candidate would be deployed with."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from fwopt import __version__, deploy
from fwopt.collect.probes import Limits
from fwopt.collect.steps_profile import Subject
from fwopt.errors import InputError, NothingFitsError
from fwopt.live.servers import make_server
from fwopt.live.servers.base import Launch, Server
from fwopt.live.servers.executables import program, python_module
from fwopt.perf.memory import kv_capacity
from fwopt.search.defaults import engine_defaults
from fwopt.search.schemes import needs_checkpoint, parse_scheme
from fwopt.spec.candidate import Candidate, Parallelism
from fwopt.spec.engine import EngineName
from fwopt.spec.hardware import HardwareSpec
from fwopt.spec.objective import Objective
from fwopt.spec.outcome import Distribution, Evaluation, Metrics, Rejected
from fwopt.spec.plan import Entry, Plan
from fwopt.spec.provenance import ProvenanceShares
from fwopt.targets.models import local_folder

_VERSION_S = 120.0


def candidate_of(subject: Subject, hardware: HardwareSpec, limits: Limits) -> Candidate:
    """The engine's defaults but for what the measurement needs: limits as asked, prefix caching as in service."""
    batching = engine_defaults(hardware.device, limits.max_model_len, subject.engine.name)
    changed = {"max_num_seqs": limits.max_num_seqs, "max_num_batched_tokens": limits.max_num_batched_tokens}
    return Candidate(
        quantization=parse_scheme(subject.key.scheme),
        kv_dtype=subject.key.kv_dtype,
        parallelism=Parallelism(tp=subject.key.tp),
        batching=batching.model_copy(update=changed),
    )


def server_of(
    subject: Subject, hardware: HardwareSpec, limits: Limits, place: Path, weights: str | None
) -> tuple[Server, str]:
    """(the server, not yet started; how it is started, for the record)."""
    candidate = candidate_of(subject, hardware, limits)
    deploy.write(_plan_of(subject, hardware, candidate), place)
    folder = place / subject.engine.name
    launch = Launch(folder=folder, scratch=place / "scratch", model=weights or local_folder(subject.model.name))
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    return make_server(subject.engine.name, launch), f"started by fwopt from the exported {files}: {candidate.label}"


def installed_version(engine: EngineName) -> str:
    """Of the engine that would be started here."""
    if engine == "fwopt":
        return __version__
    if engine == "vllm":
        command = [*python_module("FWOPT_VLLM_PYTHON", "vllm.entrypoints.cli.main", "vllm"), "--version"]
    else:
        command = [*program("FWOPT_LLAMA_SERVER", "llama-server"), "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_VERSION_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{' '.join(command)}: says no version ({error}); add it to --engine") from None
    return version_in(done.stdout + done.stderr, " ".join(command))


def version_in(text: str, command: str) -> str:
    """`0.32.0` of vLLM's one line; `0.6.0-dev` of llama.cpp's `version: 0.6.0-dev (build 0, commit unknown)`."""
    found = re.search(r"^(?:version:\s*)?v?(\d[A-Za-z0-9.\-]*)", text, re.MULTILINE)
    if found is None:
        raise InputError(f"{command}: says no version, got '{text.strip()[:80]}'; add it to --engine")
    return found[1]


def _plan_of(subject: Subject, hardware: HardwareSpec, candidate: Candidate) -> Plan:
    """A plan that promises nothing: only so that the exporter writes the files it would write for a real one."""
    fit = kv_capacity(subject.model, hardware.device, candidate, subject.engine)
    if isinstance(fit, Rejected):
        amounts = f": needs {fit.need:,.0f}, has {fit.have:,.0f} {fit.unit}" if fit.need and fit.have else ""
        raise NothingFitsError(f"{subject.model.name} does not start like this: {fit.reason}{amounts}")
    nothing = Distribution(mean_s=0, p50_s=0, p90_s=0, p95_s=0, p99_s=0, max_s=0)
    metrics = Metrics(
        requests=0, finished=0, rejected={}, duration_s=0, prompt_tokens=0, output_tokens=0, cached_prompt_tokens=0,
        ttft=nothing, tpot=nothing, itl=nothing, e2e=nothing, queue=nothing, output_tokens_per_s=0, requests_per_s=0,
        goodput_requests_per_s=0, preemptions=0,
    )  # fmt: skip
    evaluation = Evaluation(
        candidate_id=candidate.id, source="simulated", metrics=metrics, slos=(), goals=(), feasible=True, slack=None,
        cost=None, provenance=ProvenanceShares(), kv_blocks_per_replica=fit.blocks, peak_kv_blocks=0, mean_batch=0,
        busy_share=0,
    )  # fmt: skip
    needs = needs_checkpoint(candidate.quantization, subject.model)
    entry = Entry(candidate=candidate, evaluation=evaluation, capacity=None, quality=None, needs_checkpoint=needs)
    return Plan(
        fwopt_version=__version__, workload="nothing: this server is measured", rate_scale=1.0, model=subject.model,
        hardware=hardware, engine=subject.engine, objective=Objective(slos=(), goals=()), profile="none", inputs=(),
        seed=0, status="complete", chosen=entry, baseline=None, baseline_kind="engine defaults", runners_up=(),
        pareto=(), unmeasured=(), nearest_miss=None, rejected=(), evaluated=0, notes=(),
    )  # fmt: skip
