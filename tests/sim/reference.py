"""A second, plain implementation of one replica: a step at a time, lists and dicts, no cleverness."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fwopt.perf.grid import StepGrid
from fwopt.sim.reserve import Reservation
from fwopt.spec.speculation import StepsTaken
from fwopt.workload.columns import Workload

Key = int | tuple[int, int]
"""A prefix id; or a request and the place of a block in it."""


class Request:
    def __init__(
        self, index: int, arrival: float, prompt: int, output: int, allowed: int, chain: Sequence[int]
    ) -> None:
        self.index, self.arrival, self.prompt, self.output, self.chain = index, arrival, prompt, output, list(chain)
        self.allowed = allowed
        self.generated = self.computed = self.preempted = self.hit = 0
        self.decoding = self.alone = self.ended = False
        self.fresh = 0  # tokens that the last step decoded
        self.published = 0
        self.enter = self.first = self.finish = self.scheduled = float("nan")
        self.blocks: list[int] = []  # physical block numbers
        self.tokens = 1  # in a decode step
        self.guesses: list[tuple[int, int]] = []  # (proposed, accepted) of the steps to come

    @property
    def known(self) -> int:
        return self.prompt + self.generated


class Pool:
    """Physical blocks: a free list in order of release, and which block holds what: a prefix id, or a place in a
    request that was preempted. Blocks that hold nothing to be found again are taken first."""

    def __init__(self, count: int) -> None:
        self.free, self.refs = list(range(count)), [0] * count
        self.holder: dict[Key, int] = {}
        self.content: dict[int, Key] = {}

    def take(self, count: int) -> list[int]:
        taken, self.free = self.free[:count], self.free[count:]
        for block in taken:
            self.refs[block] = 1
            self.forget(block)
        return taken

    def forget(self, block: int) -> None:
        key = self.content.pop(block, None)
        if key is not None and self.holder[key] == block:
            del self.holder[key]

    def label(self, block: int, key: Key) -> None:
        self.forget(block)
        if key in self.holder:
            del self.content[self.holder[key]]
            self.holder.pop(key)
        self.holder[key], self.content[block] = block, key

    def hold(self, block: int) -> None:
        if self.refs[block] == 0:
            self.free.remove(block)
        self.refs[block] += 1

    def give_back(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                self.free.insert(len(self.free) if block in self.content else 0, block)


class Front:
    """The API server: one thing after another; a step's tokens come after what was there when the step began."""

    def __init__(self, grid: StepGrid) -> None:
        self.grid, self.free, self.after, self.shown = grid, -np.inf, -np.inf, 0.0
        self.end, self.chunks = -np.inf, 0

    def receive(self, request: Request) -> None:
        cost = self.grid.front_s + request.prompt * self.grid.prompt_token_s
        if self.end <= request.arrival:
            self.free = self.after = max(self.after, request.arrival) + cost
        else:  # the step's tokens are sent after this request
            self.free = max(self.free, request.arrival) + cost
            self.after = max(self.free, self.end) + self.chunks * self.grid.chunk_s
        request.enter = self.free + self.grid.request_s

    def send(self, end: float, chunks: int) -> float:
        """When the client has the tokens of a step, merged with any that are still there."""
        self.end, self.chunks = end, chunks
        self.shown = self.after = max(self.shown, max(self.free, end) + chunks * self.grid.chunk_s)
        return self.shown


class Replica:
    def __init__(
        self, grid: StepGrid, kv_blocks: int, batching, *, prefix: bool, prefill_first: bool, rule: Reservation | None,
        guesses: StepsTaken | None = None, ahead: int = 0,
    ) -> None:  # fmt: skip
        self.guesses, self.ahead = guesses, ahead
        self.grid, self.pool, self.batching, self.prefix = grid, Pool(kv_blocks), batching, prefix
        self.prefill_first, self.rule, self.front = prefill_first, rule, Front(grid)
        self.size, self.clock, self.decided = batching.block_size, 0.0, 0.0
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.full = False
        self.late = grid.async_scheduling and not prefill_first and not rule
        """Who has ended stays among the running until the next step has been put together."""
        self.reset_share()

    def reset_share(self) -> None:
        if self.rule:
            self.base, self.decays = self.rule.first, 0

    def serve(self, everyone: list[Request]) -> None:
        todo, coming = list(everyone), []
        while todo or coming or self.waiting or self.busy():
            if not self.waiting and not self.busy():
                if not coming:
                    coming.append(todo.pop(0))
                    self.front.receive(coming[0])
                self.clock = max(self.clock, coming[0].enter)
                self.reset_share()
            while todo and todo[0].arrival <= self.clock:
                coming.append(todo.pop(0))
                self.front.receive(coming[-1])
            if not self.running or not self.grid.async_scheduling:
                self.decided = self.clock
            while coming and coming[0].enter <= self.decided:
                self.waiting.append(coming.pop(0))
            self.step()

    def busy(self) -> bool:
        return any(not r.ended for r in self.running)

    def step(self) -> None:
        self.chunks: list[tuple[Request, int, int]] = []
        self.decodes: list[Request] = []
        self.budget, self.promised = self.batching.max_num_batched_tokens, 0
        if not self.prefill_first:
            gave_up = self.schedule_guesses() if self.guesses else self.schedule_decodes()
            gave_up = self.continue_prompt() or gave_up
            if not gave_up:
                self.admit()
        else:
            if not self.continue_prompt():
                self.admit()
            if not self.chunks:
                self.schedule_decodes()
        for request in [r for r in self.running if r.ended]:
            self.running.remove(request)
            self.give_back(request, request.computed)
        if self.decodes or self.chunks:
            self.run()

    def schedule_decodes(self) -> bool:
        gave_up = False
        decoding = [r for r in self.running if r.decoding]
        while sum(self.missing(r, r.computed + 1) for r in decoding) > len(self.pool.free):
            if self.rule:
                self.retract(decoding)
            else:
                self.preempt(self.running[-1])
            gave_up = True
            decoding = [r for r in self.running if r.decoding]
        if gave_up and self.rule:
            share = (sum(r.generated + self.rule.retract_steps for r in decoding)) / (
                sum(r.allowed for r in decoding) + 1
            )
            self.base, self.decays, self.full = min(1.0, share), -1, False
        for request in decoding:
            self.grow(request, request.computed + 1)
        self.decodes, self.budget = decoding, self.budget - len(decoding)
        if self.rule:
            self.decays += 1
        return gave_up

    def schedule_guesses(self) -> bool:
        gave_up = False
        for request in [r for r in self.running if r.decoding]:
            if not request.decoding or self.budget == 0:
                continue
            request.tokens = min(1 + self.next_guess(request)[0], self.budget)
            ahead = self.ahead
            while self.missing(request, request.computed + request.tokens + ahead) > len(self.pool.free):
                if self.running == [request]:
                    request.tokens, ahead = 1, 0
                    break
                victim, gave_up = self.running[-1], True
                self.preempt(victim)
                if victim is request:
                    return True
            self.grow(request, request.computed + request.tokens + ahead)
            self.decodes.append(request)
            self.budget -= request.tokens
        return gave_up

    def next_guess(self, request: Request) -> tuple[int, int]:
        if not request.guesses:
            steps = list(zip(self.guesses.proposed, self.guesses.accepted, strict=True))
            which = (request.index * 7919 + request.generated * 104729 + 1) * 48271 % (2**31 - 1)
            which %= len(self.guesses.lengths)
            start = sum(self.guesses.lengths[:which])
            request.guesses = steps[start : start + self.guesses.lengths[which]]
        return request.guesses[0]

    def retract(self, decoding: list[Request]) -> None:
        order = sorted(decoding, key=lambda r: (r.generated, -r.prompt), reverse=True)
        self.give_up(order[-1])
        self.waiting.append(self.last_victim)

    def preempt(self, victim: Request) -> None:
        self.give_up(victim)
        if not victim.ended:
            self.waiting.insert(0, victim)

    def give_up(self, victim: Request) -> None:
        self.running.remove(victim)
        self.give_back(victim, victim.computed - victim.fresh * self.late)
        victim.blocks, victim.computed, victim.decoding = [], 0, False
        victim.preempted += 1
        self.last_victim = victim

    def give_back(self, request: Request, tokens: int) -> None:
        """Full blocks of the first `tokens` without a prefix id can be found again by their own request alone."""
        for k in range(tokens // self.size if self.prefix else 0):
            if request.blocks[k] not in self.pool.content:
                self.pool.label(request.blocks[k], (request.index, k))
        self.pool.give_back(request.blocks)

    def continue_prompt(self) -> bool:
        for request in self.running:
            if not request.decoding and not request.ended and self.budget > 0:
                count = min(request.known - request.computed, self.budget)
                if self.missing(request, request.computed + count) > len(self.pool.free):
                    self.preempt(request)
                    return True
                self.grow(request, request.computed + count)
                self.add_chunk(request, count)
        return False

    def add_chunk(self, request: Request, count: int) -> None:
        self.chunks.append((request, request.computed, count))
        self.budget -= count
        request.computed += count
        self.publish(request)
        if self.rule and request.computed == request.known:
            self.promised += self.may_produce(request)
        request.computed -= count

    def admit(self) -> None:
        if any(r.computed + c < r.known for r, _, c in self.chunks) or (self.rule and self.full):
            return
        while self.waiting and self.budget > 0 and len(self.running) < self.batching.max_num_seqs:
            request = self.waiting[0]
            found, known = self.find_prefix(request)
            idle = sum(self.pool.refs[b] == 0 for b in found)
            if self.blocks(request.known) - len(found) + idle > len(self.pool.free) or not self.reserved_fits(
                request, len(found) * self.size, idle
            ):
                self.full = True
                break
            self.waiting.pop(0)
            self.running.append(request)
            for block in found:
                self.pool.hold(block)
            request.blocks, request.computed = list(found), len(found) * self.size
            request.published, request.alone = known, False
            if request.scheduled != request.scheduled:
                request.scheduled, request.hit = self.clock, request.computed
            count = min(request.known - request.computed, self.budget)
            self.grow(request, request.computed + count)
            self.add_chunk(request, count)

    def may_produce(self, request: Request) -> int:
        assert self.rule
        return min(max(request.allowed - request.generated, 0), self.rule.most_tokens)

    def reserved_fits(self, request: Request, hit: int, idle: int) -> bool:
        if not self.rule or not self.running:
            return True
        decay = (self.rule.first - self.rule.least) / self.rule.decay_steps
        share = self.base if self.decays <= 0 else max(self.base - self.decays * decay, self.rule.least)
        kept = share * sum(self.may_produce(r) for r in self.running if r.decoding) + self.promised
        prompt = self.blocks(request.known - hit) * self.size
        return prompt + self.may_produce(request) < (len(self.pool.free) - idle) * self.size - kept

    def find_prefix(self, request: Request) -> tuple[list[int], int]:
        """Blocks found, and how many of them by prefix ids."""
        found: list[int] = []
        most = (request.known - 1) // self.size if self.prefix else 0
        for key in request.chain[:most]:
            if key not in self.pool.holder:
                break
            found.append(self.pool.holder[key])
        known = len(found)
        while not self.rule and len(found) < most and (request.index, len(found)) in self.pool.holder:
            found.append(self.pool.holder[request.index, len(found)])
        return found, known

    def run(self) -> None:
        self.decided = self.clock
        decoding = [r for r in self.running if r.decoding]
        self.clock += step_time(self.grid, self.decodes, self.chunks, decoding if self.guesses else self.decodes)
        if self.guesses:
            self.clock += self.grid.lookup_token_s * sum(r.known for r in decoding)
        alone = self.prefill_first and self.chunks and not any(r.decoding for r in self.running)
        for request in self.running:
            request.fresh = 0
        for request, _, count in self.chunks:
            request.computed += count
        for request in self.decodes:
            kept = 1
            if self.guesses:
                kept = min(min(request.guesses.pop(0)[1], request.tokens - 1) + 1, request.output - request.generated)
                request.generated += kept - 1
            request.computed += kept
            request.fresh = kept
        served = [r for r in self.running if r in self.decodes or any(r is c for c, _, _ in self.chunks)]
        ready = [r for r in served if r.computed == r.known]
        shown = self.front.send(self.clock, len(ready)) if ready else float("nan")
        if alone:
            self.full = False
        for request in ready:
            request.generated += 1
            request.decoding = True
            if self.guesses and request.generated < request.output:
                self.next_guess(request)
            request.first = shown if request.first != request.first else request.first
            if request.generated == request.output:
                request.finish, self.full = shown, False
                request.ended, request.decoding = True, False
                if not self.late:
                    self.running.remove(request)
                    self.give_back(request, request.computed)

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.size)

    def missing(self, request: Request, tokens: int) -> int:
        return self.blocks(tokens) - len(request.blocks)

    def grow(self, request: Request, tokens: int) -> None:
        request.blocks += self.pool.take(max(self.missing(request, tokens), 0))

    def publish(self, request: Request) -> None:
        while self.prefix and not request.alone and (request.published + 1) * self.size <= request.computed:
            if request.published == len(request.chain):
                break
            key, block = request.chain[request.published], request.blocks[request.published]
            if self.pool.holder.get(key, block) != block:
                request.alone = True  # copies are not merged
                break
            self.pool.label(block, key)
            request.published += 1


def serve(
    workload: Workload,
    grid: StepGrid,
    kv_blocks: int,
    batching,
    prefix: bool,
    *,
    prefill_first: bool = False,
    rule: Reservation | None = None,
    max_context: int = 1 << 20,
    guesses: StepsTaken | None = None,
    ahead: int = 0,
) -> list[Request]:
    chains = (
        workload.block_ids[workload.block_offsets[i] : workload.block_offsets[i + 1]] for i in range(len(workload))
    )
    columns = (workload.arrival_s, workload.prompt_tokens, workload.output_tokens, workload.max_tokens)
    everyone = [
        Request(i, a, int(p), int(o), int(m) or max_context - int(p), chain)
        for i, (a, p, o, m, chain) in enumerate(zip(*columns, chains, strict=True))
    ]
    Replica(
        grid, kv_blocks, batching, prefix=prefix, prefill_first=prefill_first, rule=rule, guesses=guesses, ahead=ahead
    ).serve(everyone)
    return everyone


def step_time(grid: StepGrid, decodes: list, chunks: list, attending: list) -> float:
    checked = sum(r.tokens for r in decodes)
    tokens = checked + sum(c for _, _, c in chunks)
    size = next((int(s) for s in grid.capture_sizes if s >= tokens), None)
    gpu = np.interp(size or tokens, grid.tokens, grid.token_graph_s if size else grid.token_eager_s)
    if decodes:
        n = len(decodes)
        mean = sum(r.computed + 1 for r in attending) / len(attending)
        column = [np.interp(n, grid.decode_batch, grid.decode_s[:, j]) for j in range(len(grid.decode_context))]
        gpu += np.interp(mean, grid.decode_context, column)
        if grid.beside_s is not None:
            prompts = sum(c for _, _, c in chunks)
            gpu += np.interp(prompts, [0.0, *grid.tokens], [0.0, *grid.beside_s]) * n * mean
    host = bool(chunks) * (grid.prefill_step_s + bool(decodes) * grid.beside_step_s)
    done = sum(r.prompt + r.generated == past + c for r, past, c in chunks)
    for _, past, count in chunks:
        cost = np.interp(past + count, grid.prefill_length, grid.prefill_s)
        gpu += max(cost - np.interp(past, grid.prefill_length, grid.prefill_s), grid.prefill_chunk_floor_s)
    if checked + done:
        gpu += np.interp(checked + done, grid.sample_batch, grid.sample_s)
    if grid.drafter_s is not None and len(decodes) + done:
        gpu += np.interp(len(decodes) + done, grid.sample_batch, grid.drafter_s)
    cpu = grid.step_cpu_s + (len(decodes) + len(chunks)) * grid.sequence_cpu_s
    return max(gpu, cpu) + grid.serial_s + host
