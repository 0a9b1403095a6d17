"""The search itself: baseline, anchors, exploration, capacity of the finalists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from fwopt.search import ranking
from fwopt.search.asked import excess, meets, never_fits, one_replica, with_replicas
from fwopt.search.edges import Edges
from fwopt.search.gate import QualityGate
from fwopt.search.ladder import Ask, Ladder, Role, Stopped, StopReason
from fwopt.search.ledger import Ledger
from fwopt.search.sampler import Sampler
from fwopt.search.schemes import scheme_name
from fwopt.search.space import SearchSpace, layout_name
from fwopt.search.steps import fewest, lockstep
from fwopt.spec.candidate import Batching, Candidate, KvDtype, Parallelism, Quantization
from fwopt.spec.objective import Objective
from fwopt.spec.outcome import Trial
from fwopt.spec.plan import Capacity

BATCH = 8
"""Candidates asked of the sampler at a time: part of the result, so it does not depend on the workers."""
FINALISTS = 6
"""Tied candidates whose capacity decides."""
NEAREST = 8
"""Candidates beyond the roofline that are simulated when nothing fits."""
STALE_BATCHES = 5
"""Exploration ends after this many batches in a row that brought nothing new."""

Phase = Literal["baseline", "anchors", "enumeration", "exploration", "quality", "capacity"]


@dataclass(slots=True)
class Found:
    """Everything a plan is built from."""

    trials: list[Trial]
    baseline: Trial | None
    capacities: dict[str, Capacity]
    """By candidate id."""
    stopped: StopReason | None
    enumerated: bool
    """Every candidate of the space was considered."""


@dataclass(slots=True)
class Tuner:
    """One run. Deterministic given space, objective, seed, budget and evaluator: asked again with the trials of an
    interrupted run at hand, it takes the same way, recalls what is known and goes on from there."""

    ladder: Ladder
    space: SearchSpace
    objective: Objective
    baseline: Candidate | None
    """The engine's defaults or the user's current configuration, replicas yet to be counted if defaults."""
    fixed_baseline: bool
    """The baseline is somebody's configuration: evaluated as it is."""
    seed: int
    budget: int
    """Simulations before the capacity phase."""
    window_s: float
    """First to last arrival; 0 for a burst, which has no capacity."""
    gate: QualityGate
    allow_unmeasured: bool = False
    on_phase: Callable[[Phase], None] = lambda phase: None
    _found: Found = field(init=False)

    def run(self) -> Found:
        self._found = Found([], None, {}, None, enumerated=False)
        try:
            self._settled()
        except Stopped as signal:
            self._found.stopped = signal.reason
            self._found.baseline = self._found.baseline or self._baseline_so_far()
        if self._found.stopped != "interrupted":
            try:
                self._capacity_phase()
            except Stopped as signal:
                self._found.stopped = self._found.stopped or signal.reason
        self._found.trials = list(self.ladder.log.trials)
        return self._found

    def _settled(self) -> None:
        """Search until the choice rests on schemes that were measured and passed. Whatever a measurement changes, the
        search is walked again: a run that is resumed then takes the same way."""
        self._search()
        while self.gate.ledger is not None and self._measure_quality(self.gate.ledger):
            self.ladder.restart()
            self._search()

    def _measure_quality(self, ledger: Ledger) -> bool:
        """Until nothing more is wanted; whether it changed anything before."""
        while wanted := ledger.wanted([t for t in self.ladder.log.trials if self.may_be_chosen(t)]):
            self.on_phase("quality")
            ledger.measure(wanted)
            if ledger.apply(self.ladder.log):
                return True
        return False

    def _search(self) -> None:
        self.on_phase("baseline")
        if self.baseline is not None:
            self._baseline_phase(self.baseline)
        if self.space.size <= self.budget:
            self.on_phase("enumeration")
            self._enumerate()
        else:
            self.on_phase("anchors")
            self._anchors()
            self.on_phase("exploration")
            self._explore()
            self._with_fewer_replicas()
        if not any(t.outcome.kind == "evaluation" and t.outcome.feasible for t in self.ladder.seen):
            self._nearest()

    def _enumerate(self) -> None:
        """Every candidate. Where replicas follow from one another, the counts are bisected first, setting by setting;
        what that implies is then only recorded."""
        everything = list(self.space.enumerate())
        if self.objective.slos and self._counts_gpus():
            settings = {with_replicas(c, 1).id: with_replicas(c, 1) for c in everything}
            self._fewest_replicas([(c, self.space.replica_counts(c.parallelism)) for c in settings.values()], "search")
        self._run([Ask(c) for c in everything], batch=BATCH * 4)
        self._found.enumerated = True

    def _counts_gpus(self) -> bool:
        return any(goal.metric in ("cost", "gpus") for goal in self.objective.goals)

    def _nearest(self) -> None:
        """Nothing fits: simulate those that the roofline rejected by least, so that the answer has numbers."""
        fell = [(beyond, t) for t in self.ladder.seen if (beyond := excess(t.outcome)) is not None]
        ranked = sorted(fell, key=lambda pair: (pair[0], pair[1].candidate.parallelism.gpus, pair[1].number))
        self._run([Ask(t.candidate, "nearest") for _, t in ranked[:NEAREST]])

    def _run(self, asks: Sequence[Ask], batch: int = BATCH) -> list[Trial]:
        trials = []
        for start in range(0, len(asks), batch):
            trials += self.ladder.run(asks[start : start + batch])
        return trials

    def _baseline_phase(self, baseline: Candidate) -> None:
        counts = self.space.replica_counts(baseline.parallelism.model_copy(update={"replicas": 1}))
        if self.fixed_baseline or not counts:
            self._found.baseline = self._run([Ask(baseline, "baseline")])[0]
            return
        found = self._fewest_replicas([(baseline, counts)], "baseline")[0]
        chosen = with_replicas(baseline, found or counts[-1])
        self._found.baseline = self._run([Ask(chosen, "baseline")])[0]

    def _baseline_so_far(self) -> Trial | None:
        """When stopped while counting replicas: the fewest known to suffice, otherwise the most tried."""
        tried = [t for t in self.ladder.seen if t.role == "baseline"]
        enough = [t for t in tried if meets(t.outcome)]
        fewest_first = sorted(enough or tried, key=lambda t: t.candidate.parallelism.replicas, reverse=not enough)
        return fewest_first[0] if fewest_first else None

    def _fewest_replicas(self, starts: Sequence[tuple[Candidate, Sequence[int]]], role: Role) -> list[int | None]:
        """Bisect the replica count of each candidate; all bisections side by side."""

        def answer(batch: list[tuple[int, int]]) -> list[bool]:
            asks = [Ask(self._canonical(with_replicas(starts[i][0], replicas)), role) for i, replicas in batch]
            return [meets(trial.outcome) for trial in self._run(asks, batch=len(asks))]

        return lockstep([fewest(counts) for _, counts in starts], answer)

    def _canonical(self, candidate: Candidate) -> Candidate:
        return candidate if self.fixed_baseline else self.space.canonical(candidate)

    def _anchors(self) -> None:
        """For every precision and layout, at the engine's own batching: how many replicas it takes. Then, for those
        that came out best, the same with the other KV precisions, with the smallest prefill chunks, and with requests
        sent after their prefixes."""
        default = self.space.default_batching()
        small = default.model_copy(update={"max_num_batched_tokens": min(self.space.max_num_batched_tokens)})
        small = small.model_copy(update={"max_num_seqs": min(default.max_num_seqs, small.max_num_batched_tokens)})
        kv, kernels = self.space.kv_dtypes[0], self.space.kernels[0]
        self._anchor([self._start(q, layout, kv, default, kernels) for q, layout in self.space.structures()])
        best = ranking.finalists([t for t in self.ladder.seen if self.may_be_chosen(t)], 3)
        if not best:
            evaluated = [t for t in self.ladder.seen if t.outcome.kind == "evaluation"]
            best = [t for t in (ranking.nearest_miss(evaluated),) if t]
        around = product(best, self.space.kv_dtypes, (default, small), self.space.kernels)
        near = [
            self._start(t.candidate.quantization, one_replica(t.candidate.parallelism), kv, limits, kernels)
            for t, kv, limits, kernels in around
        ]
        routers = [r for r in self.space.router if r in (self.space.router[0], "cache_aware")]
        varied = product(near, self.space.speculation, routers)
        self._anchor([c.model_copy(update={"speculation": d, "router": r}) for c, d, r in varied])

    def _start(
        self, quantization: Quantization, layout: Parallelism, kv: KvDtype, batching: Batching, kernels: str | None
    ) -> Candidate:
        return Candidate(
            quantization=quantization,
            kv_dtype=kv,
            parallelism=layout,
            batching=self.space.in_blocks(batching, kv),
            router=self.space.router[0],
            kernels=kernels,
        )

    def _anchor(self, starts: Sequence[Candidate]) -> None:
        counted = [(c, self.space.replica_counts(c.parallelism)) for c in starts]
        counted = [(c, counts) for c, counts in counted if counts]
        if self._counts_gpus():
            self._fewest_replicas(counted, "search")
        else:
            self._run([Ask(self.space.canonical(with_replicas(c, counts[-1]))) for c, counts in counted])

    def _explore(self) -> None:
        """Batches from the sampler until the budget is spent or nothing new comes."""
        sampler = Sampler(self._promising(self.ladder.seen), self.objective, self.seed)
        sampler.learn(self.ladder.seen)
        stale = 0
        while self.ladder.simulations < self.budget and stale < STALE_BATCHES:
            before = self.ladder.simulations
            trials = self._run([Ask(c) for c in sampler.ask(BATCH)])
            sampler.tell([t.outcome for t in trials])
            stale = 0 if self.ladder.simulations > before else stale + 1

    def _with_fewer_replicas(self) -> None:
        """Whole GPUs decide the cost, so the last question is whether the best structure does with a replica less at
        any of its batching limits: all of them are tried, until none suffices."""
        while self._counts_gpus() and self.objective.slos:
            best = ranking.finalists([t for t in self.ladder.seen if self.may_be_chosen(t)], 1)
            if not best:
                return
            candidate = best[0].candidate
            fewer = [r for r in self.space.replica_counts(candidate.parallelism) if r < candidate.parallelism.replicas]
            if not fewer:
                return
            smaller = self.space.canonical(with_replicas(candidate, fewer[-1]))
            memory, prefix = max(self.space.gpu_memory_utilization), candidate.batching.prefix_caching
            limits = product(self.space.max_num_seqs, self.space.max_num_batched_tokens)
            batchings = [self.space.batching(seqs, tokens, memory, prefix, smaller.kv_dtype) for seqs, tokens in limits]
            trials = self._run([Ask(smaller.model_copy(update={"batching": batching})) for batching in batchings])
            if not any(self.may_be_chosen(trial) for trial in trials):
                return

    def _promising(self, trials: Sequence[Trial]) -> SearchSpace:
        """The space without what cannot be chosen whatever the batching: precisions that rest on assumed operator
        times or that no rung let through, and layouts whose weights do not fit."""
        hopeless = {q.content_hash() for q in self.space.quantizations if self._hopeless(q, trials)}
        left = tuple(q for q in self.space.quantizations if q.content_hash() not in hopeless)
        too_big = {
            (scheme_name(t.candidate.quantization), layout_name(t.candidate.parallelism))
            for t in trials
            if never_fits(t, max(self.space.gpu_memory_utilization))
        }
        update = {"quantizations": left, "impossible": (*self.space.impossible, *sorted(too_big))}
        narrowed = self.space.model_copy(update=update)
        narrowed = narrowed if narrowed.structures() else self.space
        usable = tuple(q for q in narrowed.quantizations if narrowed.usable_layouts(q))
        return narrowed.model_copy(update={"quantizations": usable})

    def _hopeless(self, quantization: Quantization, trials: Sequence[Trial]) -> bool:
        mine = [t.outcome for t in trials if t.candidate.quantization == quantization]
        evaluated = [outcome for outcome in mine if outcome.kind == "evaluation"]
        sound = [e for e in evaluated if self.allow_unmeasured or not ranking.rests_on_assumptions(e)]
        return bool(mine) and not sound

    def may_be_chosen(self, trial: Trial) -> bool:
        outcome = trial.outcome
        return (
            trial.rate_scale == 1.0
            and outcome.kind == "evaluation"
            and outcome.feasible
            and (self.allow_unmeasured or not ranking.rests_on_assumptions(outcome))
            and self.gate.passes(trial.candidate, settled=self._found.stopped is not None)
        )

    def _capacity_phase(self) -> None:
        """Where the finalists, the baseline and (if nothing holds) the nearest miss meet their limits."""
        if not self.objective.slos or self.window_s <= 0:
            return
        self.on_phase("capacity")
        eligible = [t for t in self.ladder.log.trials if self.may_be_chosen(t)]
        if len(self.objective.goals) > 1:
            picked = [t for t in (ranking.knee(ranking.pareto_front(eligible)),) if t]
        else:
            picked = ranking.finalists(eligible, FINALISTS)
        if not picked:
            evaluated = [t for t in self.ladder.log.trials if t.rate_scale == 1.0 and t.outcome.kind == "evaluation"]
            picked = [t for t in (ranking.nearest_miss(evaluated),) if t]
        finalists = [t.candidate for t in picked]
        if self._found.baseline is not None and self._found.baseline.outcome.kind == "evaluation":
            picked.append(self._found.baseline)
        edges = Edges(self._run, BATCH, self.window_s, self._found.capacities)
        edges.measure(list({t.candidate.id: t.candidate for t in picked}.values()))
        if eligible and len(self.objective.goals) == 1:
            edges.challenge(finalists, ranking.distinct(ranking.tied(eligible)))
