"""Small grids and workloads for the simulator's tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fwopt.perf.grid import StepGrid
from fwopt.workload.columns import Workload


def _shares(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.array([0.25, 0.75, 0.0, 0.0]), (*shape, 4)).copy()


@pytest.fixture(scope="session")
def make_grid() -> Callable[..., StepGrid]:
    """Step times of a made-up device; `scale` multiplies every one of them."""

    def make(scale: float = 1.0, *, captured: bool = True, host: float = 1e-3, lookahead: bool = True) -> StepGrid:
        tokens = np.array([1.0, 8, 64, 512, 4096, 16384])
        token_s = np.array([4e-3, 4.1e-3, 4.4e-3, 8e-3, 60e-3, 230e-3]) * scale
        batch, context = np.array([1.0, 16, 256, 1024]), np.array([1.0, 100, 1000, 10_000, 100_000])
        decode = (2e-4 + 3e-8 * batch[:, None] * context[None, :]) * scale
        length = np.array([0.0, 64, 1024, 8192, 131_072])
        prefill = np.array([0.0, 1e-4, 3e-3, 0.05, 5.0]) * scale
        return StepGrid(
            tokens=tokens,
            token_graph_s=token_s,
            token_eager_s=token_s + 2e-3 * scale,
            token_share=_shares(6),
            capture_sizes=np.array([1, 2, 4, 8, 16, 32, 64] if captured else [], dtype=np.int64),
            decode_batch=batch,
            decode_context=context,
            decode_s=decode,
            decode_share=_shares(4, 5),
            prefill_length=length,
            prefill_s=prefill,
            prefill_share=_shares(5),
            sample_batch=np.array([1.0, 1024]),
            sample_s=np.array([3e-4, 9e-4]) * scale,
            sample_share=_shares(2),
            prefill_chunk_floor_s=1e-5 * scale,
            step_cpu_s=host * 4 * scale,
            sequence_cpu_s=2e-6 * scale,
            serial_s=1e-4 * scale,
            request_s=1e-3 * scale,
            prompt_token_s=1e-7 * scale,
            async_scheduling=lookahead,
        )

    return make


@pytest.fixture(scope="session")
def make_workload() -> Callable[..., Workload]:
    """A workload from plain lists; `chains` are prefix ids per request, dense."""

    def make(
        arrival: Sequence[float],
        prompt: Sequence[int],
        output: Sequence[int],
        chains: Sequence[Sequence[int]] | None = None,
        block_tokens: int = 0,
    ) -> Workload:
        n = len(arrival)
        absent = np.full(n, -1)
        chains = chains or [()] * n
        return Workload(
            name="made",
            source_format="made",
            arrival_s=np.asarray(arrival, dtype=np.float64),
            prompt_tokens=np.asarray(prompt, dtype=np.int32),
            output_tokens=np.asarray(output, dtype=np.int32),
            max_tokens=np.zeros(n, dtype=np.int32),
            block_tokens=block_tokens,
            block_offsets=np.concatenate(([0], np.cumsum([len(c) for c in chains]))).astype(np.int64),
            block_ids=np.array([i for c in chains for i in c], dtype=np.int32),
            session=absent.astype(np.int32),
            parent=absent.astype(np.int32),
            model=absent.astype(np.int16),
            models=(),
            adapter=absent.astype(np.int16),
            adapters=(),
            tools=np.zeros(n, dtype=np.int16),
            digest="made",
        )

    return make


@pytest.fixture(scope="session")
def reference() -> Callable[..., list]:
    """A second, plain implementation of one replica's scheduling: a step at a time, lists and dicts, no cleverness."""
    return _serve


class _Request:
    def __init__(self, index: int, arrival: float, prompt: int, output: int, chain: Sequence[int]) -> None:
        self.index, self.arrival, self.prompt, self.output, self.chain = index, arrival, prompt, output, list(chain)
        self.generated = self.computed = self.preempted = self.hit = 0
        self.decoding = self.alone = False
        self.published = 0
        self.first = self.finish = self.scheduled = float("nan")
        self.blocks: list[int] = []  # physical block numbers


class _Pool:
    """Physical blocks: a free list in order of release, and which block holds which prefix id."""

    def __init__(self, count: int) -> None:
        self.free, self.refs = list(range(count)), [0] * count
        self.holder: dict[int, int] = {}
        self.content: dict[int, int] = {}

    def take(self, count: int) -> list[int]:
        taken, self.free = self.free[:count], self.free[count:]
        for block in taken:
            self.refs[block] = 1
            if block in self.content:
                self.holder.pop(self.content.pop(block))
        return taken

    def hold(self, block: int) -> None:
        if self.refs[block] == 0:
            self.free.remove(block)
        self.refs[block] += 1

    def give_back(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                self.free.append(block)


def _serve(workload: Workload, grid: StepGrid, kv_blocks: int, batching, prefix: bool) -> list[_Request]:
    size, pool, clock = batching.block_size, _Pool(kv_blocks), 0.0
    decided = 0.0
    todo = [
        _Request(i, a, int(p), int(o), workload.block_ids[workload.block_offsets[i] : workload.block_offsets[i + 1]])
        for i, (a, p, o) in enumerate(
            zip(workload.arrival_s, workload.prompt_tokens, workload.output_tokens, strict=True)
        )
    ]
    everyone, waiting, running = list(todo), [], []

    def blocks(tokens: int) -> int:
        return -(-tokens // size)

    def grow(request: _Request, tokens: int) -> bool:
        need = blocks(tokens) - len(request.blocks)
        if need > len(pool.free):
            return False
        request.blocks += pool.take(need)
        return True

    def publish(request: _Request) -> None:
        while prefix and not request.alone and (request.published + 1) * size <= request.computed:
            if request.published == len(request.chain):
                break
            key, block = request.chain[request.published], request.blocks[request.published]
            if pool.holder.get(key, block) != block:
                request.alone = True  # copies are not merged
                break
            pool.holder[key], pool.content[block] = block, key
            request.published += 1

    while todo or waiting or running:
        if not waiting and not running:
            clock = max(clock, todo[0].arrival)
            decided = clock
        if not running or not grid.async_scheduling:
            decided = clock
        while todo and todo[0].arrival <= decided:
            waiting.append(todo.pop(0))
        budget, preempted, decodes, chunks = batching.max_num_batched_tokens, False, [], []
        at = 0
        while at < len(running):
            request = running[at]
            total = request.prompt + request.generated
            count = min(total - request.computed, budget)
            while not grow(request, request.computed + count):
                victim = running.pop()
                pool.give_back(victim.blocks)
                victim.blocks, victim.computed, victim.decoding = [], 0, False
                victim.preempted += 1
                waiting.insert(0, victim)
                preempted = True
                if victim in decodes:
                    decodes.remove(victim)
                if victim is request:
                    break
            else:
                if request.decoding:
                    decodes.append(request)
                else:
                    chunks.append((request, request.computed, count))
                    request.computed += count
                    publish(request)
                    request.computed -= count
                budget -= count
                at += 1
                continue
            break
        while not preempted and waiting and budget > 0 and len(running) < batching.max_num_seqs:
            request = waiting[0]
            total = request.prompt + request.generated
            found = []
            for k, key in enumerate(request.chain):
                if not prefix or key not in pool.holder or (k + 1) * size > (total - 1) // size * size:
                    break
                found.append(pool.holder[key])
            idle = sum(pool.refs[b] == 0 for b in found)
            if blocks(total) - len(found) + idle > len(pool.free):
                break
            waiting.pop(0)
            running.append(request)
            for block in found:
                pool.hold(block)
            request.blocks, request.computed = list(found), len(found) * size
            request.published, request.alone = len(found), False
            if request.scheduled != request.scheduled:
                request.scheduled, request.hit = clock, request.computed
            count = min(total - request.computed, budget)
            grow(request, request.computed + count)
            chunks.append((request, request.computed, count))
            budget -= count
            request.computed += count
            publish(request)
            request.computed -= count
        decided = clock
        clock += _step_time(grid, decodes, chunks)
        for request, _, count in chunks:
            request.computed += count
        for request in decodes:
            request.computed += 1
        for request in list(running):
            if request.computed == request.prompt + request.generated:
                request.generated += 1
                request.decoding = True
                request.first = clock if request.first != request.first else request.first
                if request.generated == request.output:
                    request.finish = clock
                    running.remove(request)
                    pool.give_back(request.blocks)
    return everyone


def _step_time(grid: StepGrid, decodes: list, chunks: list) -> float:
    tokens = len(decodes) + sum(c for _, _, c in chunks)
    size = next((int(s) for s in grid.capture_sizes if s >= tokens), None)
    gpu = np.interp(size or tokens, grid.tokens, grid.token_graph_s if size else grid.token_eager_s)
    if decodes:
        n = len(decodes)
        mean = sum(r.computed + 1 for r in decodes) / n
        column = [np.interp(n, grid.decode_batch, grid.decode_s[:, j]) for j in range(len(grid.decode_context))]
        gpu += np.interp(mean, grid.decode_context, column)
    done = sum(r.prompt + r.generated == past + c for r, past, c in chunks)
    for _, past, count in chunks:
        cost = np.interp(past + count, grid.prefill_length, grid.prefill_s)
        gpu += max(cost - np.interp(past, grid.prefill_length, grid.prefill_s), grid.prefill_chunk_floor_s)
    if len(decodes) + done:
        gpu += np.interp(len(decodes) + done, grid.sample_batch, grid.sample_s)
    cpu = grid.step_cpu_s + (len(decodes) + len(chunks)) * grid.sequence_cpu_s
    return max(gpu, cpu) + grid.serial_s
