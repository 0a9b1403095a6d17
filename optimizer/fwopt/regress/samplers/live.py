"""A trace replayed on real servers: running ones, or ones started from run folders, one arm at a time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from fwopt import deploy
from fwopt.errors import InputError
from fwopt.live import ClosedLoop, Endpoint, Load, Recorded, Replay, ReplayOptions, replay_sync
from fwopt.live.servers import make_server
from fwopt.live.servers.attached import AttachedServer
from fwopt.live.servers.base import Launch, Server, ServerError
from fwopt.metrics.records import FINISHED
from fwopt.metrics.summary import latencies
from fwopt.regress.machine import hardware
from fwopt.regress.results import rounded
from fwopt.regress.samplers.base import Visit
from fwopt.regress.samplers.steps import parts_of
from fwopt.search.run_folder import read_plan
from fwopt.search.traffic import load_traffic
from fwopt.spec.base import content_hash
from fwopt.spec.bench import Arm, ArmName, LiveBench
from fwopt.spec.bench_result import Key
from fwopt.spec.plan import Entry
from fwopt.targets.models import local_folder

_FLUSH_S = 0.5
"""An engine writes its step records down once it has nothing else to do."""


class LiveSampler:
    """Satisfies `Sampler`. Servers of run folders are started when their arm's turn comes and end before the other's:
    two may not fit, and an idle one is not free."""

    exact = False

    def __init__(self, bench: LiveBench, arms: Mapping[ArmName, Arm]) -> None:
        self.bench, self.arms = bench, arms
        for name, arm in arms.items():
            if (arm.url is None) == (arm.run is None):
                raise InputError(f"arms.{name}: a live bench needs `url` (a server that runs) or `run` (a run folder)")
        traffic = load_traffic(bench.trace, format=None, skip_bad=False, only_model=None, rate_scale=1.0)
        self.workload = traffic.workload
        self.load: Load = (
            ClosedLoop(concurrency=bench.concurrency) if bench.concurrency else Recorded(rate_scale=bench.rate_scale)
        )
        self.notes: tuple[str, ...] = (f"prefix cache {bench.cache} at the start of each run",)
        self._scratch = tempfile.TemporaryDirectory(prefix="fwopt-bench-")
        self._up: tuple[ArmName, Server, Endpoint] | None = None
        self._said: dict[ArmName, tuple[str, str]] = {}
        self._starts, self._steps_read = 0, 0

    def key(self, arm: ArmName) -> Key:
        """What the server said when it came up; `unknown` of one that never did."""
        how = self.arms[arm]
        engine, model = self._said.get(arm, ("unknown", self.bench.model or "unknown"))
        host = urlsplit(how.url).hostname or "" if how.url is not None else "localhost"
        here = host in ("localhost", "::1") or host.startswith("127.")
        return Key(
            hardware=hardware() if here else f"at {host}",
            engine=engine,
            model=model,
            workload=content_hash([self.workload.digest, self.bench.requests, self.load.model_dump(mode="json")]),
            config="-" if how.run is None else self._entry(how.run).candidate.id,
        )

    def visit(self, arm: ArmName) -> Visit:
        try:
            _, endpoint = self._serve(arm)
        except ServerError as error:
            return Visit({}, lost=self.bench.requests or len(self.workload), problem=str(error))
        caching = True
        if (run := self.arms[arm].run) is not None:
            caching = self._entry(run).candidate.batching.prefix_caching
        options = ReplayOptions(
            requests=self.bench.requests, cache=self.bench.cache, tokenizer=self.bench.tokenizer, prefix_caching=caching
        )
        replay = replay_sync(endpoint, self.workload, self.load, options)
        if not replay.end.complete:
            raise KeyboardInterrupt
        return _visit(replay, self._parts())

    def __enter__(self) -> LiveSampler:
        return self

    def __exit__(self, *details: object) -> None:
        self._stop()
        self._scratch.cleanup()

    def _entry(self, run: Path) -> Entry:
        plan = read_plan(run)
        if plan.chosen is None:
            raise InputError(f"{run} holds no deployment to serve (status {plan.status})")
        return plan.chosen

    def _serve(self, arm: ArmName) -> tuple[Server, Endpoint]:
        if self._up is not None and self._up[0] == arm:
            return self._up[1], self._up[2]
        self._stop()
        how = self.arms[arm]
        server = self._attached(how.url) if how.url is not None else self._launched(arm, how)
        endpoint = server.start()
        if how.url is not None and self.bench.engine is not None:
            endpoint = replace(endpoint, engine=self.bench.engine)
        self._up, self._steps_read = (arm, server, endpoint), 0
        self._parts()  # steps of starting up, which are no part of a run
        said = server.identity.version if server.identity is not None else None
        model = endpoint.model if how.run is None else read_plan(how.run).model.name
        self._said[arm] = f"{endpoint.engine or 'unknown'} {how.version or said or 'unknown'}", model
        return server, endpoint

    def _attached(self, url: str) -> Server:
        return AttachedServer(url, model=self.bench.model)

    def _launched(self, arm: ArmName, how: Arm) -> Server:
        assert how.run is not None
        plan, entry = read_plan(how.run), self._entry(how.run)
        self._starts += 1
        place = Path(self._scratch.name) / f"{arm}-{self._starts}"
        deploy.write(plan.model_copy(update={"chosen": entry}), place / "deploy")
        name = plan.engine.name
        records = ("--records", str(place / "steps.jsonl")) if name == "fwopt" else ()
        return make_server(
            name,
            Launch(
                folder=place / "deploy" / name, scratch=place / "server", env=how.env, arguments=records,
                model=self.bench.model or local_folder(plan.model.name), ready_timeout_s=self.bench.ready_timeout_s,
            ),
        )  # fmt: skip

    def _parts(self) -> dict[str, float]:
        """From the engine's own step records, where it keeps any."""
        if self._up is None:
            return {}
        steps = Path(self._scratch.name) / f"{self._up[0]}-{self._starts}" / "steps.jsonl"
        if not steps.is_file():
            return {}
        time.sleep(_FLUSH_S)
        found, self._steps_read = parts_of(steps, self._steps_read)
        return found

    def _stop(self) -> None:
        if self._up is not None:
            self._up[1].stop()
            self._up = None


def _visit(replay: Replay, parts: dict[str, float]) -> Visit:
    records = replay.records
    done = records.status == FINISHED
    lost = int((~done).sum())
    samples = {}
    for name in ("ttft", "tpot", "e2e"):
        values = latencies(records, name)
        samples[name] = tuple(rounded(v) for v in values[np.isfinite(values) & (values > 0)].tolist())
    if done.any():
        span_s = float(records.finish_s[done].max() - records.arrival_s.min())
        samples["throughput"] = (rounded(float(records.output_tokens[done].sum()) / span_s),)
        parts = parts or {
            "other:to the first token": rounded(float((records.first_token_s - records.arrival_s)[done].mean())),
            "other:from the first token": rounded(float((records.finish_s - records.first_token_s)[done].mean())),
        }
    problem = None
    if not replay.valid:
        problem = "; ".join(str(p) for p in replay.problems if p.invalidates)
    return Visit({name: values for name, values in samples.items() if values}, lost, parts, problem)
