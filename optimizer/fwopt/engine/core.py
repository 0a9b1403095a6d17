"""The engine: sequences in, tokens out, step by step, every step timed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from fwopt.engine.batch import make_plan
from fwopt.engine.messages import Counters, Token
from fwopt.engine.records import RecordWriter, StepRecord
from fwopt.engine.runner import Runner
from fwopt.engine.sampling import Sampler
from fwopt.engine.scheduler import Scheduled, Scheduler
from fwopt.engine.sequence import FinishReason, Sampling, Sequence
from fwopt.engine.settings import Settings, check
from fwopt.engine.team import Team
from fwopt.spec.step import StepShape


@dataclass(slots=True)
class _Times:
    """Moments of one step, by `time.perf_counter`."""

    start: float
    scheduled: float = 0.0
    prepared: float = 0.0
    computed: float = 0.0
    sampled: float = 0.0


class Engine:
    """Rank 0: schedules, samples and keeps the records; all ranks compute."""

    def __init__(self, settings: Settings) -> None:
        check(settings)
        self.settings = settings
        self._team = Team(settings)
        self.kv_blocks = self._team.kv_blocks
        self._scheduler = Scheduler(settings.candidate.batching, self.kv_blocks, settings.max_model_len)
        self._sampler = _sampler(self._team.runner)
        self._sequences: dict[int, Sequence] = {}
        self._started = time.perf_counter()
        self._writer = RecordWriter(settings.records, self._header()) if settings.records else None
        self.counters = Counters(kv_blocks=self.kv_blocks)

    def _header(self) -> dict[str, object]:
        s = self.settings
        device = self._team.runner.device
        return {
            "started_unix_s": time.time(),
            "model": str(s.model),
            "architecture": s.architecture.name,
            "candidate": s.candidate.model_dump(mode="json"),
            "max_model_len": s.max_model_len,
            "load_format": s.load_format,
            "dtype": s.dtype,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "operators": s.operators,
            "kernel_choices": len(s.choices),
            "threads": s.threads if device.type == "cpu" else None,
            "kv_blocks": self.kv_blocks,
            "capture_sizes": list(self._team.runner.capture_sizes),
            "torch": torch.__version__,
        }

    @property
    def summary(self) -> str:
        runner, size = self._team.runner, self.settings.candidate.batching.block_size
        tokens = self.kv_blocks * size
        return (
            f"{self.settings.architecture.name}, {self.settings.candidate.label}, {runner.device.type} "
            f"{self.settings.dtype}; KV cache {self.kv_blocks * runner.block_bytes / 2**30:.2f} GiB a rank: "
            f"{self.kv_blocks} blocks of {size} tokens, {tokens / self.settings.max_model_len:.1f} requests of "
            f"{self.settings.max_model_len} tokens"
        )

    @property
    def busy(self) -> bool:
        return self._scheduler.busy

    def add(self, id: int, prompt: list[int], sampling: Sampling) -> None:
        sequence = Sequence.new(id, prompt, sampling)
        self._sequences[id] = sequence
        self._scheduler.add(sequence)

    def abort(self, id: int) -> None:
        """Harmless when the request has ended already."""
        sequence = self._sequences.get(id)
        if sequence is not None:
            self._scheduler.abort(sequence)
            self._forget(sequence)

    def reset_prefix_cache(self) -> None:
        self._scheduler.pool.forget_all()

    def idle(self) -> None:
        """Nothing to do: records reach the disk."""
        if self._writer is not None:
            self._writer.flush()

    def step(self) -> list[Token]:
        """Compute one step; returns the tokens it yielded."""
        times = _Times(time.perf_counter())
        step = self._scheduler.schedule()
        times.scheduled = time.perf_counter()
        shape = step.shape  # before the tokens are appended
        if shape.tokens == 0:
            return []  # preempted down to nothing: the next step admits
        plan = make_plan(step, self.settings.candidate.batching.block_size, self._team.runner.group_blocks)
        times.prepared = time.perf_counter()
        logits = self._team.run(plan)
        times.computed = time.perf_counter()
        sampled = self._sampler(logits, step.sampling) if len(plan.sampled) else []
        times.sampled = time.perf_counter()
        used = self._scheduler.pool.used
        results = self._scheduler.complete(step, sampled)
        tokens = [self._token(sequence, reason) for sequence, reason in results]
        self._count(step, tokens, times)
        if self._writer is not None:
            self._writer.add(self._record(step, shape, times, used))
        return tokens

    def _token(self, sequence: Sequence, reason: FinishReason | None) -> Token:
        if reason is not None:
            self._forget(sequence)
        return Token(sequence.id, sequence.tokens[-1], reason, sequence.cached_tokens or 0)

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[sequence.id]
        self._sampler.forget(sequence)

    def _count(self, step: Scheduled, tokens: list[Token], times: _Times) -> None:
        c = self.counters
        c.running, c.waiting = len(self._scheduler.running), len(self._scheduler.waiting)
        c.kv_blocks_used = self._scheduler.pool.used
        c.preemptions = self._scheduler.preemptions
        c.steps += 1
        c.output_tokens += len(tokens)
        c.finished += sum(t.reason is not None for t in tokens)
        for chunk in step.chunks:
            first = chunk.sequence.preemptions == 0 and chunk.start == (chunk.sequence.cached_tokens or 0)
            if first:
                c.prompt_tokens += chunk.sequence.prompt_tokens
                c.cached_tokens += chunk.start
        c.step_seconds += times.sampled - times.start

    def _record(self, step: Scheduled, shape: StepShape, t: _Times, used: int) -> StepRecord:
        return StepRecord(
            start_s=t.start - self._started,
            schedule_s=t.scheduled - t.start,
            prepare_s=t.prepared - t.scheduled,
            forward_s=t.computed - t.prepared,
            sample_s=t.sampled - t.computed,
            output_s=time.perf_counter() - t.sampled,
            device_s=self._team.runner.device_s(),
            shape=shape,
            captured=self._team.runner.captured,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            blocks_used=used,
            preemptions=step.preempted,
        )

    def snapshot(self) -> Counters:
        return replace(self.counters)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._team.close()


def _sampler(runner: Runner) -> Sampler:
    if runner.kernels is None:
        return Sampler(runner.device)
    from fwopt.engine.kernel_sampling import KernelSampler  # needs Triton

    return KernelSampler(runner.device, runner.kernels)
