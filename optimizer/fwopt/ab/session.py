"""Both servers, alternately: a block of requests on each, then some items on each, and so on."""

from __future__ import annotations

import asyncio
import gzip
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import numpy as np

from fwopt import __version__
from fwopt.ab.latency import Block, failures, latencies
from fwopt.ab.order import Round, labels, rounds
from fwopt.ab.verdict import judge_all
from fwopt.atomic import written_whole
from fwopt.errors import InputError
from fwopt.evals.asking import ask
from fwopt.evals.items import EvalItem, EvalSet
from fwopt.evals.run import StoppedError
from fwopt.evals.statistics import paired
from fwopt.live import ClosedLoop, Endpoint, Load, Recorded, Replay, ReplayOptions, replay_sync
from fwopt.metrics.records import Records
from fwopt.report.ab import markdown
from fwopt.spec.ab import AbAnswer, AbResult, AbSet, AbSettings, Arm
from fwopt.spec.evals import Graded, Served
from fwopt.workload.columns import Workload
from fwopt.workload.select import window

Progress = Callable[[str, int, int], None]
RESULT, MARKDOWN, ANSWERS, REPLAYS = "ab.json", "ab.md", "answers.jsonl.gz", "replays"


@dataclass(frozen=True, slots=True)
class Server:
    """One of the two, with the APIs it is reached by."""

    chat: Endpoint
    """For items."""
    plain: Endpoint
    """For the workload."""
    version: str | None

    @property
    def served(self) -> Served:
        where = self.chat
        return Served(url=where.url, model=where.model, engine=where.engine, version=self.version)


@dataclass(slots=True)
class Session:
    """One comparison."""

    servers: dict[Arm, Server]
    sets: tuple[EvalSet, ...]
    workload: Workload | None
    settings: AbSettings
    folder: Path
    progress: Progress
    tokenizer: Path | None = None
    _blocks: list[Block] = field(default_factory=list)
    _answers: dict[tuple[str, str], dict[Arm, Graded]] = field(default_factory=dict)
    _problems: list[str] = field(default_factory=list)

    def run(self) -> AbResult:
        """Everything, then the verdict: looking in between would find differences that are none."""
        started, clock = datetime.now(UTC), perf_counter()
        try:
            (self.folder / REPLAYS).mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{self.folder}: cannot be made: {error.strerror}; choose another --out") from None
        plan = rounds(self.settings.blocks, self.sets, self.settings.seed)
        if self.workload is not None:
            for arm in plan[0].order:
                self._replay(0, arm, warm=True)
        for number, part in enumerate(plan):
            self._round(number, part)
        result = self._result(started, perf_counter() - clock)
        self._write_answers()
        with written_whole(self.folder / RESULT) as path:
            path.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
        with written_whole(self.folder / MARKDOWN) as path:
            path.write_text(markdown(result), encoding="utf-8")
        return result

    def _round(self, number: int, part: Round) -> None:
        self.progress("alternating between both servers", number, self.settings.blocks)
        if self.workload is not None:
            found: dict[Arm, Records] = {arm: self._replay(number, arm).records for arm in part.order}
            self._blocks.append(Block(found["a"], found["b"]))
        for name, item, order in part.items:
            for arm in order:
                self._answers.setdefault((name, item.name), {})[arm] = self._ask(item, arm)

    def _replay(self, number: int, arm: Arm, *, warm: bool = False) -> Replay:
        """The block's requests; prompts of their own for each server, in case both are one."""
        assert self.workload is not None
        label = labels(self.settings.seed)[arm]
        salt = f"ab {self.settings.seed} {number} {label}{' warm' if warm else ''}"
        options = ReplayOptions(salt=salt, tokenizer=self.tokenizer)
        found = replay_sync(self.servers[arm].plain, self._stretch(number), self._load(), options)
        if not found.end.complete:
            raise StoppedError(f"stopped in block {number + 1} of {self.settings.blocks}; nothing was judged")
        if not warm:
            found.save(self.folder / REPLAYS / f"{number:03d}-{label}.jsonl.gz")
            self._problems += [f"block {number + 1}, {label}: {p}" for p in found.problems if p.invalidates]
        return found

    def _stretch(self, number: int) -> Workload:
        """Blocks lie evenly over the trace."""
        assert self.workload is not None
        blocks, count = self.settings.blocks, len(self.workload)
        size = max(1, min(self.settings.requests, count) // blocks)
        start = int(np.linspace(0, count - size, blocks)[number])
        return window(self.workload, start, start + size)

    def _load(self) -> Load:
        if self.settings.concurrency is not None:
            return ClosedLoop(concurrency=self.settings.concurrency)
        return Recorded(rate_scale=self.settings.rate_scale)

    def _ask(self, item: EvalItem, arm: Arm) -> Graded:
        return asyncio.run(ask(item, self.servers[arm].chat, self.settings.evals))

    def _result(self, started: datetime, seconds: float) -> AbResult:
        settings, blocks = self.settings, self._blocks
        failed = failures(blocks) if blocks else None
        latency = latencies(blocks, slowdown=settings.slowdown, seed=settings.seed) if blocks else []
        judged = judge_all(latency, [self._set(found) for found in self.sets], failed, self._problems)
        return AbResult(
            fwopt_version=__version__,
            started_at=started.isoformat(timespec="seconds"),
            seconds=seconds,
            a=self.servers["a"].served,
            b=self.servers["b"].served,
            labels={label: arm for arm, label in labels(settings.seed).items()},
            settings=settings,
            workload=self.workload.name if self.workload is not None else None,
            workload_digest=self.workload.digest if self.workload is not None else None,
            latency=judged.latency,
            failures=failed,
            sets=judged.sets,
            problems=tuple(self._problems),
            verdict=judged.verdict,
            reasons=judged.reasons,
            machine=f"{platform.machine()}, {platform.system()}",
        )

    def _set(self, found: EvalSet) -> AbSet:
        both = [self._answers[found.name, item.name] for item in found.items]
        scores = ([answers[arm].score for answers in both] for arm in ("a", "b"))
        errors = [sum(answers[arm].error is not None for answers in both) for arm in ("a", "b")]
        compared = paired(*scores, margin=self.settings.margin, seed=self.settings.seed)
        return AbSet(set=found.name, digest=found.digest, paired=compared, a_errors=errors[0], b_errors=errors[1])

    def _write_answers(self) -> None:
        """By item, under labels; a server's name is left out of what it said."""
        label, lines = labels(self.settings.seed), []
        for (name, _), both in sorted(self._answers.items()):
            for arm in sorted(both, key=lambda arm: label[arm]):
                answer = both[arm].model_copy(update={"raw": None})
                line = AbAnswer(set=name, label=label[arm], answer=answer)
                lines.append(json.dumps(line.model_dump(mode="json", exclude_none=True)))
        if lines:
            with written_whole(self.folder / ANSWERS) as path:
                path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
