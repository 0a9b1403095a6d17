"""Step times of a running engine, measured through its own API.

Client, HTTP front end and engine share the machine, here as in service: what they take from one another is in the
times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass

from fwopt.collect.journal import Journal
from fwopt.collect.probes import (
    BESIDE_TOKENS,
    DECODE_TOKENS,
    SETTLE_STEPS,
    Limits,
    Probe,
    Sample,
    chunk_tokens,
    decode_samples,
    mixed_samples,
    spread_of,
)
from fwopt.collect.stream import Asker, Mark, Prompter, Stream
from fwopt.live.endpoint import Endpoint

WARM_UP = ((1, 8), (64, 4), (512, 4))
"""(prompt, output) tokens of requests whose times are thrown away."""
NOISY = 0.25
"""A probe whose (p80 - p20) / p50 exceeds this is repeated."""
MORE_REPEATS = 2
REPEATS = {"prefill": 3, "decode": 1, "mixed": 2}
"""Of one question in one turn; one decode probe holds several windows."""


@dataclass(slots=True)
class Asking:
    """Puts probes to one endpoint; answers go to the journal, those already there are not asked again."""

    endpoint: Endpoint
    limits: Limits
    prompter: Prompter
    journal: Journal
    on_probe: Callable[[Probe, int, int], None] = lambda probe, at, total: None
    before_each: Callable[[], None] = lambda: None
    """Called before each probe while the engine is idle."""

    def run(self, probes: list[Probe]) -> list[Sample]:
        """All samples, those of an earlier run included."""
        return asyncio.run(self._run(probes))

    async def _run(self, probes: list[Probe]) -> list[Sample]:
        found: list[Sample] = []
        asker = Asker(self.endpoint)
        try:
            if any(self.journal.get(p.question) is None for p in probes):
                await self._warm_up(asker)
            for at, probe in enumerate(probes):
                self.on_probe(probe, at, len(probes))
                known = self.journal.get(probe.question)
                if known is None:
                    self.before_each()
                    known = [asdict(sample) for sample in await self._ask(asker, probe)]
                    self.journal.append(probe.question, known)
                found += [Sample(**sample) for sample in known]
        finally:
            asker.close()
        return found

    async def _warm_up(self, asker: Asker) -> None:
        for prompt, output in WARM_UP:
            if prompt + output < self.limits.max_model_len:
                await self._one(asker, prompt, output)

    async def _ask(self, asker: Asker, probe: Probe) -> list[Sample]:
        samples: list[Sample] = []
        for repeat in range(REPEATS[probe.kind] + MORE_REPEATS):
            if repeat >= REPEATS[probe.kind] and spread_of([s.seconds for s in samples]) <= NOISY:
                break
            samples += await self._once(asker, probe)
        return samples

    async def _once(self, asker: Asker, probe: Probe) -> list[Sample]:
        if probe.kind == "prefill":
            stream = await self._one(asker, probe.tokens, 1)
            return [Sample("prefill", 0, 0.0, 0, probe.tokens, stream.first_s - stream.sent_s)]
        if probe.kind == "decode":
            output = self._room(
                probe.tokens, DECODE_TOKENS + probe.batch * probe.tokens // self.limits.max_num_batched_tokens
            )
            streams = await asyncio.gather(*(self._one(asker, probe.tokens, output) for _ in range(probe.batch)))
            return decode_samples(probe, list(streams))
        return await self._beside(asker, probe)

    async def _beside(self, asker: Asker, probe: Probe) -> list[Sample]:
        """Let `batch` sequences decode, then send a prompt."""
        marks = [Mark(BESIDE_TOKENS) for _ in range(probe.batch)]
        chunks = len(chunk_tokens(probe.tokens, self.limits.max_num_batched_tokens - probe.batch))
        joining = probe.batch * probe.beside // self.limits.max_num_batched_tokens  # the first decode meanwhile
        output = self._room(probe.beside, 2 * BESIDE_TOKENS + 3 * SETTLE_STEPS + chunks + joining)
        others = [asyncio.create_task(self._one(asker, probe.beside, output, mark)) for mark in marks]
        try:
            await asyncio.gather(*(mark.reached.wait() for mark in marks))
            prompt = await self._one(asker, probe.tokens, 1)
            streams = list(await asyncio.gather(*others))
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        return mixed_samples(probe, streams, prompt, max(s.first_s for s in streams), self.limits)

    def _room(self, prompt: int, output: int) -> int:
        return min(output, self.limits.max_model_len - prompt)

    async def _one(self, asker: Asker, prompt: int, output: int, mark: Mark | None = None) -> Stream:
        return await asker.complete(self.prompter.ids(prompt), output, mark)
