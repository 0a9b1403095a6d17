"""What each step computes: vLLM V1's rules, as `fwopt.sim.scheduler` simulates them (docs/vllm-scheduling.md).

Running sequences come first, in order of admission; where blocks run out, the one admitted last is preempted
(its blocks are released, it returns to the head of the queue and is computed anew) and nobody is admitted in that
step. Otherwise waiting sequences are admitted in order while token budget, sequence limit and free blocks last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field

from fwopt.engine.blocks import BlockPool, block_hash
from fwopt.engine.sequence import FinishReason, Sequence
from fwopt.spec.candidate import Batching
from fwopt.spec.step import StepShape


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` tokens of a sequence, after `start` tokens that are in the cache."""

    sequence: Sequence
    start: int
    length: int

    @property
    def samples(self) -> bool:
        return self.start + self.length == len(self.sequence.tokens)


@dataclass(slots=True)
class Scheduled:
    """One step's work. Decodes are chunks of one token of sequences whose prompt is computed."""

    decodes: list[Chunk] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    preempted: int = 0

    @property
    def shape(self) -> StepShape:
        return StepShape(
            decodes=len(self.decodes),
            context_tokens=sum(d.start + 1 for d in self.decodes),
            chunks=tuple((c.start, c.length) for c in self.chunks),
            completed=sum(c.samples for c in self.chunks),
        )

    @property
    def sampling(self) -> list[Sequence]:
        """Sequences that get a token, in the order in which it is sampled."""
        return [c.sequence for c in (*self.decodes, *self.chunks) if c.samples]


class Scheduler:
    """Waiting and running sequences and the blocks between them."""

    def __init__(self, batching: Batching, kv_blocks: int, max_model_len: int) -> None:
        self.batching, self.max_model_len = batching, max_model_len
        self.pool = BlockPool(kv_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drop a sequence between two steps."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.pool.release(sequence.blocks)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def schedule(self) -> Scheduled:
        """Decide what the next step computes and take the blocks for it."""
        step = Scheduled()
        budget = self._serve_running(step, self.batching.max_num_batched_tokens)
        if not step.preempted:
            self._admit_waiting(step, budget)
        return step

    def complete(self, step: Scheduled, sampled: Tokens[int]) -> list[tuple[Sequence, FinishReason | None]]:
        """The step has run: `sampled` are the tokens of `step.sampling`. Returns these sequences, ended or not."""
        for chunk in (*step.decodes, *step.chunks):
            chunk.sequence.computed += chunk.length
        results: list[tuple[Sequence, FinishReason | None]] = []
        ended = False
        for sequence, token in zip(step.sampling, sampled, strict=True):
            sequence.tokens.append(token)
            sequence.decoding = True
            reason = sequence.finish_reason(self.max_model_len)
            if reason is not None:
                self.pool.release(sequence.blocks)
                sequence.blocks = []
                ended = True
            results.append((sequence, reason))
        if ended:
            gone = {id(s) for s, reason in results if reason is not None}
            self.running = [s for s in self.running if id(s) not in gone]
        return results

    def _serve_running(self, step: Scheduled, budget: int) -> int:
        at = 0
        while at < len(self.running) and budget > 0:
            sequence = self.running[at]
            length = min(len(sequence.tokens) - sequence.computed, budget)
            while not self._grow(sequence, sequence.computed + length):
                victim = self._preempt_last()
                step.preempted += 1
                if victim is sequence:
                    return budget
            kind = step.decodes if sequence.decoding else step.chunks
            kind.append(Chunk(sequence, sequence.computed, length))
            budget -= length
            at += 1
        return budget

    def _admit_waiting(self, step: Scheduled, budget: int) -> None:
        """Admit from the head of the queue; the first that has to wait ends it (nobody overtakes)."""
        while self.waiting and budget > 0 and len(self.running) < self.batching.max_num_seqs:
            sequence = self.waiting[0]
            total = len(sequence.tokens)
            found = self._find_prefix(sequence)
            start = len(found) * self.batching.block_size
            if not self.batching.chunked_prefill and total - start > budget:
                break
            if self._blocks(total) - len(found) + self.pool.idle(found) > self.pool.free:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            self.pool.hold(found)
            sequence.blocks, sequence.published, sequence.computed = found, len(found), start
            if sequence.cached_tokens is None:
                sequence.cached_tokens = start
            length = min(total - start, budget)
            self._grow(sequence, start + length)
            step.chunks.append(Chunk(sequence, start, length))
            budget -= length

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.batching.block_size)

    def _grow(self, sequence: Sequence, tokens: int) -> bool:
        """Blocks for the first `tokens` tokens, full ones published at once; False when there are too few."""
        need = self._blocks(tokens) - len(sequence.blocks)
        if need > self.pool.free:
            return False
        if need > 0:
            sequence.blocks += self.pool.take(need)
        if self.batching.prefix_caching:
            for index in range(sequence.published, tokens // self.batching.block_size):
                self.pool.publish(sequence.blocks[index], self._hash(sequence, index))
                sequence.published = index + 1
        return True

    def _find_prefix(self, sequence: Sequence) -> list[int]:
        """Longest run of cached full blocks; at least one token is left to compute."""
        found: list[int] = []
        if not self.batching.prefix_caching:
            return found
        for index in range((len(sequence.tokens) - 1) // self.batching.block_size):
            block = self.pool.find(self._hash(sequence, index))
            if block is None:
                break
            found.append(block)
        return found

    def _hash(self, sequence: Sequence, index: int) -> bytes:
        hashes, size = sequence.hashes, self.batching.block_size
        while len(hashes) <= index:
            at = len(hashes) * size
            hashes.append(block_hash(hashes[-1] if hashes else None, sequence.tokens[at : at + size]))
        return hashes[index]

    def _preempt_last(self) -> Sequence:
        victim = self.running.pop()
        self.pool.release(victim.blocks)
        victim.blocks, victim.computed, victim.published, victim.decoding = [], 0, 0, False
        victim.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(victim)
        return victim
