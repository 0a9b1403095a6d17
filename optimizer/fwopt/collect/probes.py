"""Which questions are put to an engine, and how a profile's rows follow from the answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from fwopt.collect.stream import Stream

WINDOW_STEPS = 8
"""Gaps are averaged over so many steps: single ones carry the front end's jitter."""
SETTLE_STEPS = 6
"""Steps after a prompt's first token that still belong to it: what reading and answering it took from the engine."""
DECODE_TOKENS = 48
BESIDE_TOKENS = 12
"""Plain decode steps before a prompt is sent, to compare with."""
BESIDE_ROOM = 96
"""Room that those beside a prompt have for their own tokens."""
PLAIN_STEPS, LEAST_PLAIN = 10, 3
"""Plain steps taken from either side of a prompt, so that contexts grow evenly around it; fewer say nothing."""

Kind = Literal["decode", "prefill", "mixed"]
Row = dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine under test was started with."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True)
class Probe:
    """One question. decode: `batch` requests with prompts of `tokens`; prefill: one prompt of `tokens`; mixed: one
    prompt of `tokens` while `batch` others decode."""

    kind: Kind
    batch: int
    tokens: int
    turn: int = 0
    """Every question is put again in a later turn: a machine drifts over minutes, and repeats at once would not show
    it."""
    beside: int = 0
    """mixed: prompt tokens of each of those that decode."""

    @property
    def name(self) -> str:
        what = {"decode": f"{self.batch} decoding after {self.tokens}", "prefill": f"a prompt of {self.tokens}"}
        return what.get(self.kind, f"a prompt of {self.tokens} beside {self.batch} after {self.beside}")

    @property
    def question(self) -> str:
        """As the journal knows it."""
        beside = f" beside={self.beside}" if self.kind == "mixed" else ""
        return f"{self.kind} batch={self.batch} tokens={self.tokens}{beside} turn={self.turn}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One observation: a step of `seconds`, or a first token after `seconds`."""

    phase: Kind
    batch: int
    context: float
    past: int
    tokens: int
    seconds: float


LENGTHS = (1, 8, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384, 32768)
BESIDE = (1, 4, 16)
SHORT_BESIDE, LONG_BESIDE = 8, 256
"""Prompt tokens of those who decode beside a prompt: what their contexts cost it shows in the difference."""
PROMPTS_BESIDE = (64, 256, 1024)
MOST_PROMPT_TOKENS = 8192
"""Prompts of one decode probe together: computing longer ones would take most of the time."""
LONGEST_CONTEXT = 1536
TURNS, QUICK_TURNS = 2, 1


def plan(limits: Limits, *, longest_prompt: int | None = None, quick: bool = False) -> list[Probe]:
    """Every question once a turn, cheap ones first. `quick`: one turn over every other size."""
    longest = min(longest_prompt or limits.max_model_len, limits.max_model_len - DECODE_TOKENS)
    lengths = _thinned([t for t in LENGTHS if t < longest] + [longest], quick)
    batches = _thinned(powers_of_two(limits.max_num_seqs), quick=True) if quick else batch_sizes(limits.max_num_seqs)
    beside = sorted({min(n, limits.max_num_seqs - 1) for n in BESIDE})[: 2 if quick else None]
    short, long = min(SHORT_BESIDE, longest), min(LONG_BESIDE, limits.max_model_len - BESIDE_ROOM)
    after = [short, long] if long >= 4 * short and not quick else [short]
    turn = [Probe("prefill", 0, t) for t in lengths]
    turn += [Probe("decode", n, c) for n in batches for c in contexts(n, longest)]
    turn += [Probe("mixed", n, t, beside=c) for n in beside for c in after for t in PROMPTS_BESIDE if t <= longest]
    return [replace(probe, turn=at) for at in range(QUICK_TURNS if quick else TURNS) for probe in turn]


def contexts(batch: int, longest: int) -> list[int]:
    """Prompt lengths before decoding: short, long, and for small batches one in between."""
    short = min(32, longest)
    long = min(LONGEST_CONTEXT, longest, MOST_PROMPT_TOKENS // batch)
    middle = [512] if batch <= 2 and short < 512 < long else []
    return sorted({short, *middle, *([long] if long >= 2 * short else [])})


def batch_sizes(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12 … and `most` itself: kernels that take sequences in fours or eights are slow in between."""
    powers = powers_of_two(most)
    return sorted({*powers, *(3 * n for n in powers if 3 * n <= most)})


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 … and `most` itself."""
    return sorted({2**i for i in range(most.bit_length())} | {most})


def _thinned(values: list[int], quick: bool) -> list[int]:
    """Every other value, the ends always."""
    return sorted({*values[::2], values[0], values[-1]}) if quick else values


def decode_samples(probe: Probe, streams: list[Stream]) -> list[Sample]:
    """Windows of the time in which all sequences decode together; a window is the median over the sequences."""
    start, end = max(s.first_s for s in streams), min(s.chunk_s[-1] for s in streams)
    windows: list[list[float]] = []
    steps = 0.0
    for stream in streams:
        times = np.asarray([t for t in stream.chunk_s if start <= t <= end])
        wide = max(1, round(WINDOW_STEPS / stream.per_chunk))
        found = np.diff(times[::wide]) / (wide * stream.per_chunk)
        windows.append([float(step_s) for step_s in found])
        steps = max(steps, (len(times) - 1) * stream.per_chunk)
    before = float(np.mean([s.tokens_until(start) for s in streams]))
    context = round(probe.tokens + before + steps / 2)
    return [
        Sample("decode", probe.batch, context, 0, probe.batch, float(np.median(seconds)))
        for seconds in zip(*windows, strict=False)
    ]


def mixed_samples(probe: Probe, others: list[Stream], prompt: Stream, since_s: float, limits: Limits) -> list[Sample]:
    """The step with the prompt, as those saw it that decoded: the time around it less plain steps before and after.

    `since_s`: from when on nothing but decode steps ran. A prompt beyond the token budget is computed in chunks, and
    each chunk is one long gap.
    """
    chunks = chunk_tokens(probe.tokens, limits.max_num_batched_tokens - probe.batch)
    found: list[list[float]] = []
    contexts = []
    for stream in others:
        times = np.asarray(stream.chunk_s)
        before = times[(times >= since_s) & (times <= prompt.sent_s)]
        after = times[times > prompt.first_s]
        if len(before) <= LEAST_PLAIN or len(after) <= SETTLE_STEPS + LEAST_PLAIN:
            continue
        later = np.diff(after[SETTLE_STEPS:])[:PLAIN_STEPS]
        plain = float(np.diff(before)[-len(later) :].mean() + later.mean()) / 2
        contexts.append(probe.beside + stream.tokens_until(prompt.first_s))
        if len(chunks) == 1:
            inside = times[(times >= before[-1]) & (times <= after[SETTLE_STEPS])]
            steps = (len(inside) - 1) * stream.per_chunk
            found.append([inside[-1] - inside[0] - (steps - 1) * plain])
        else:
            gaps = np.diff(times[(times >= before[-1]) & (times <= after[1])])
            if len(gaps) >= len(chunks):
                longest = np.sort(np.argsort(gaps)[-len(chunks) :])
                found.append([float(gap) for gap in gaps[longest]])
    if not found:
        return []
    context = round(float(np.mean(contexts)))
    seconds = np.median(np.asarray(found), axis=0)
    pasts = np.concatenate(([0], np.cumsum(chunks)[:-1]))
    return [
        Sample("mixed", probe.batch, context, int(past), tokens, max(float(s), 1e-6))
        for past, tokens, s in zip(pasts, chunks, seconds, strict=True)
    ]


def chunk_tokens(tokens: int, most: int) -> list[int]:
    """How a prompt is split when a step has room for `most` prompt tokens."""
    whole, rest = divmod(tokens, most)
    return [most] * whole + [rest] * (rest > 0)


def rows_of(samples: list[Sample], subject: dict[str, str | int]) -> list[Row]:
    """Quantiles of equal points. Contexts of one probe differ by a token or two between repeats: they become one."""
    groups: dict[tuple[str, int, int, int, int], list[Sample]] = {}
    for s in samples:
        key = (s.phase, s.batch, _near(s.context), s.past, s.tokens)
        groups.setdefault(key, []).append(s)
    rows: list[Row] = []
    for (phase, batch, _, past, tokens), group in sorted(groups.items()):
        seconds = np.asarray([s.seconds for s in group])
        p20, p50, p80 = (float(q) for q in np.quantile(seconds, (0.2, 0.5, 0.8)))
        context = float(np.median([s.context for s in group]))
        where: Row = {"phase": phase, "batch": batch, "context": context, "past": past, "tokens": tokens}
        rows.append({**subject, **where, "p20_s": p20, "p50_s": p50, "p80_s": p80, "samples": len(group)})
    return rows


def _near(context: float) -> int:
    """Equal for contexts within some ten per cent."""
    return round(4 * math.log2(context + 32))


def spread_of(seconds: list[float]) -> float:
    """(p80 - p20) / p50; of nothing, without end."""
    if not seconds:
        return float("inf")
    p20, p50, p80 = np.quantile(seconds, (0.2, 0.5, 0.8))
    return float((p80 - p20) / p50)
