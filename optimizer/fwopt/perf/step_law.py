"""The law of an engine's step times, from what was seen of them from outside.

Seen are gaps between the tokens of sequences that decode together, first-token times of lone prompts, and the gaps that
decoding sequences see while a prompt is computed beside them. A step is taken to cost

    decode alone    D(n, c)                                n sequences of mean context c
    with a prompt   T(n + m) + A(p + m) - A(p) + S(n + r) + [D(n, c) - D(n, 0)] + B(m) n c + x + y, without y if n = 0
    first token     request + m * per_token + x + T(m) + A(m)         of a lone prompt of m tokens

T: what depends on the step's tokens alone; S: what a sequence that gets a token adds (LM head, sampling, streaming),
S(1) counted in T, so D(n, 0) = T(n) + S(n); A(L) = q L**2: attention over a prompt; B(m): what m prompt tokens cost
more for each token of context beside them, where sequences share one pool of cells (llama.cpp); x: what a step with
prompt chunks costs besides, on the engine's side of the API; y: what it costs beyond that beside decodes.
D(n, c) is kept as measured, piecewise linear; q, B, x and y are fitted. First tokens of lone prompts were measured as
well: x is never more than they leave for it, and what mixed steps show beyond it is y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import InputError
from fwopt.perf.grid import Floats

LEAST_FIT_TOKENS = 64
"""Prompts shorter than this say nothing about the quadratic part of attention."""
LEAST_APART = 256
"""Tokens of context by which two mixed steps must differ to tell what contexts beside a prompt cost."""


@dataclass(frozen=True, slots=True)
class StepRows:
    """The medians of one model, scheme, KV dtype and tensor parallelism; columns of equal length."""

    phase: NDArray[np.str_]
    """decode: `batch` sequences at mean `context`. prefill: a lone prompt of `tokens` until its first token. mixed: the
    step that computes `tokens` prompt tokens after `past` beside `batch` sequences at mean `context`."""
    batch: NDArray[np.int64]
    context: Floats
    past: NDArray[np.int64]
    tokens: NDArray[np.int64]
    p50_s: Floats

    def of(self, phase: str) -> StepRows:
        at = self.phase == phase
        return StepRows(*(getattr(self, name)[at] for name in self.__slots__))

    def __len__(self) -> int:
        return len(self.p50_s)


@dataclass(frozen=True, slots=True)
class DecodeLaw:
    """D(n, c), piecewise linear in c at each measured n."""

    batch: Floats
    """(B,) ascending"""
    context: Floats
    """(C,) ascending, every measured mean context"""
    seconds: Floats
    """(B, C)"""
    base_s: Floats
    """(B,) D(n, 0)"""
    slope_s: Floats
    """(B,) seconds per further token of mean context beyond the longest measured"""
    measured: NDArray[np.bool_]
    """(B, C) whether that very point was measured"""

    def at_zero(self, batch: Floats) -> Floats:
        return along(self.batch, self.base_s, batch)

    def time(self, batch: float, context: float) -> float:
        """Seconds of one step."""
        axis = np.concatenate(([0.0], self.context))
        rows = [
            np.interp(context, axis, np.concatenate(([base], row))) + slope * max(context - axis[-1], 0.0)
            for base, row, slope in zip(self.base_s, self.seconds, self.slope_s, strict=True)
        ]
        return float(along(self.batch, np.asarray(rows), np.asarray([batch]))[0])


@dataclass(frozen=True, slots=True)
class StepLaw:
    """All of it, in seconds."""

    decode: DecodeLaw
    tokens: Floats
    """(T,) measured prompt lengths, first 1"""
    token_s: Floats
    """(T,) T(m) at them"""
    quadratic_s: float
    """q: attention seconds per squared token of prompt"""
    chunk_s: float
    """x"""
    beside_step_s: float
    """y"""
    request_s: float
    prompt_token_s: float
    beside_tokens: Floats
    """(M,) prompt lengths at which B(m) is known, first 0"""
    beside_s: Floats
    """(M,) B(m) at them, seconds per token of context"""

    def token(self, tokens: Floats) -> Floats:
        return along(self.tokens, self.token_s, tokens)

    def prompt(self, past: Floats, tokens: Floats) -> Floats:
        """A(past + tokens) - A(past)."""
        found: Floats = self.quadratic_s * ((past + tokens) ** 2 - past**2)
        return found

    def beside(self, tokens: Floats) -> Floats:
        return along(self.beside_tokens, self.beside_s, tokens)


def along(x: Floats, y: Floats, at: Floats) -> Floats:
    """Linear between points; beyond the last, on along the last stretch, never downhill."""
    inside = np.interp(at, x, y)
    if len(x) == 1:
        return np.asarray(inside, dtype=np.float64)
    slope = max(0.0, float((y[-1] - y[-2]) / (x[-1] - x[-2])))
    return np.asarray(inside + slope * np.maximum(at - x[-1], 0.0), dtype=np.float64)


def fit(rows: StepRows, where: str) -> StepLaw:
    """The law of `rows`; InputError names what is missing in `where`."""
    decode = fit_decode(rows.of("decode"), where)
    lone = rows.of("prefill")
    tokens, first = _medians(lone.tokens, lone.p50_s)
    if len(tokens) < 3 or tokens[0] != 1:
        raise InputError(
            f"{where}: needs first-token times of prompts of 1 token and of at least two more lengths, got lengths "
            f"{', '.join(f'{t:.0f}' for t in tokens) or 'none'}; run `fwopt profile` again"
        )
    quadratic = fit_quadratic(tokens, first, rows.of("mixed"))
    # relative to a lone prompt of one token, whose step is a decode step of one sequence without context
    steps = first - first[0] + decode.base_s[0] - quadratic * (tokens**2 - 1)
    axis = np.unique(np.concatenate((tokens, decode.batch[decode.batch < tokens[-1]])))
    token_s = _below_decodes(axis, np.interp(axis, tokens, steps), decode)
    mixed = rows.of("mixed")
    excess = _excess(mixed, decode, axis, token_s, quadratic)
    beside_tokens, beside_s = fit_beside(mixed, excess)
    excess = excess - along(beside_tokens, beside_s, mixed.tokens.astype(np.float64)) * mixed.batch * mixed.context
    whole_s, per_token = fit_chunks(mixed, excess)
    lone_s = max(0.0, float(first[0] - decode.base_s[0]))
    chunk_s = min(whole_s, lone_s)
    token_s = _below_decodes(axis, token_s - per_token * (axis - 1), decode)
    return StepLaw(
        decode, axis, token_s, quadratic, chunk_s, whole_s - chunk_s, lone_s - chunk_s, per_token, beside_tokens,
        beside_s,
    )  # fmt: skip


def _below_decodes(tokens: Floats, seconds: Floats, decode: DecodeLaw) -> Floats:
    """T(n) is a part of D(n, 0), and grows."""
    ceiling = np.where(tokens <= decode.batch[-1], decode.at_zero(tokens), np.inf)
    return np.maximum(np.maximum.accumulate(np.minimum(seconds, ceiling)), 1e-9)


def fit_decode(rows: StepRows, where: str) -> DecodeLaw:
    """Longer contexts and larger batches take no less time: noise that says otherwise is pooled away."""
    batches = np.unique(rows.batch)
    if len(batches) < 2 or batches[0] != 1:
        raise InputError(
            f"{where}: needs decode steps of 1 sequence and of at least one more batch size, got batch sizes "
            f"{', '.join(map(str, batches)) or 'none'}; run `fwopt profile` again"
        )
    curves = []
    for n in batches:
        at = rows.batch == n
        contexts, seconds = _medians(rows.context[at], rows.p50_s[at])
        curves.append((contexts, _rising(seconds)))
    slopes = [_slope(c, s) / n for n, (c, s) in zip(batches, curves, strict=True) if len(c) > 1]
    pooled = float(np.median(slopes)) if slopes else 0.0
    axis = np.unique(np.concatenate([c for c, _ in curves]))
    table, tails, measured = [], [], []
    bases: list[float] = []
    for n, (contexts, seconds) in zip(batches, curves, strict=True):
        whole = _slope(contexts, seconds) if len(contexts) > 1 else pooled * n
        first = (seconds[1] - seconds[0]) / (contexts[1] - contexts[0]) if len(contexts) > 1 else whole
        # a single sequence mostly streams weights; more of them take no less, however much of it is their contexts
        base = max(seconds[0] - first * contexts[0], bases[-1] if bases else 0.5 * seconds[0])
        inner = np.interp(axis, np.concatenate(([0.0], contexts)), np.concatenate(([base], seconds)))
        table.append(inner + whole * np.maximum(axis - contexts[-1], 0.0))
        bases.append(base)
        tails.append(whole)
        measured.append(np.isin(axis, contexts))
    return DecodeLaw(
        batch=batches.astype(np.float64),
        context=axis,
        seconds=np.maximum.accumulate(np.asarray(table), axis=0),
        base_s=np.asarray(bases),
        slope_s=np.asarray(tails),
        measured=np.asarray(measured),
    )


def fit_quadratic(tokens: Floats, first: Floats, mixed: StepRows) -> float:
    """q from chunks of long prompts after different pasts, if any; else from the curve of lone prompts, by squares
    of relative errors."""
    chunked = mixed.past > 0
    if chunked.any():
        return _quadratic_of_chunks(mixed)
    at = tokens >= LEAST_FIT_TOKENS
    if at.sum() < 4:
        return 0.0
    x, y = tokens[at], first[at]
    design = np.stack([np.ones_like(x), x, x**2], axis=1) / y[:, None]
    return max(0.0, float(np.linalg.lstsq(design, np.ones_like(y), rcond=None)[0][2]))


def _quadratic_of_chunks(mixed: StepRows) -> float:
    """Equal chunks of one prompt differ by what their pasts add: 2 q past tokens."""
    over, under = 0.0, 0.0
    for n, m in {(int(n), int(m)) for n, m in zip(mixed.batch, mixed.tokens, strict=True)}:
        at = (mixed.batch == n) & (mixed.tokens == m)
        x = 2.0 * mixed.past[at] * m
        if at.sum() < 2 or np.ptp(x) == 0:
            continue
        over += float((x - x.mean()) @ (mixed.p50_s[at] - mixed.p50_s[at].mean()))
        under += float((x - x.mean()) @ (x - x.mean()))
    return max(0.0, over / under) if under else 0.0


def _excess(mixed: StepRows, decode: DecodeLaw, tokens: Floats, token_s: Floats, quadratic: float) -> Floats:
    """What mixed steps took beyond T, A, S and D."""
    excess = []
    for n, c, p, m, seconds in zip(mixed.batch, mixed.context, mixed.past, mixed.tokens, mixed.p50_s, strict=True):
        inside = along(tokens, token_s, np.asarray([n + m]))[0] + quadratic * ((p + m) ** 2 - p**2)
        sampled = decode.at_zero(np.asarray([n + 1.0]))[0] - along(tokens, token_s, np.asarray([n + 1.0]))[0]
        cached = decode.time(n, c) - decode.at_zero(np.asarray([float(n)]))[0]
        excess.append(seconds - inside - max(sampled, 0.0) - cached)
    return np.asarray(excess, dtype=np.float64)


def fit_beside(mixed: StepRows, excess: Floats) -> tuple[Floats, Floats]:
    """(prompt tokens, B at them): mixed steps that are alike but for the contexts beside the prompt."""
    lengths, found = [0.0], [0.0]
    pool = mixed.batch * mixed.context
    i, j = np.triu_indices(len(mixed), 1)
    alike = np.abs(pool[i] - pool[j]) >= LEAST_APART
    for column in (mixed.tokens, mixed.past, mixed.batch):
        alike &= column[i] == column[j]
    i, j = i[alike], j[alike]
    slopes, tokens = (excess[i] - excess[j]) / (pool[i] - pool[j]), mixed.tokens[i]
    for m in np.unique(tokens):
        lengths.append(float(m))
        found.append(max(found[-1], float(np.median(slopes[tokens == m]))))
    return np.asarray(lengths), np.asarray(found)


def fit_chunks(mixed: StepRows, left: Floats) -> tuple[float, float]:
    """(x + y, front-end seconds per prompt token) of what is `left` of mixed steps when all else is taken off. A first
    token waits for the API to read its prompt and a mixed step does not, so it falls by that much a token."""
    if len(mixed) == 0:
        return 0.0, 0.0
    lengths = mixed.tokens.astype(np.float64)
    if len(np.unique(lengths)) < 3:
        return max(0.0, float(np.median(left))), 0.0
    per_token = max(0.0, -_slope(lengths, left))
    return max(0.0, float(np.median(left + per_token * lengths))), per_token


def _slope(x: Floats, y: Floats) -> float:
    """Median of the slopes between all pairs (Theil-Sen), not below zero where `y` rises."""
    i, j = np.triu_indices(len(x), 1)
    apart = x[i] != x[j]
    return float(np.median((y[j] - y[i])[apart] / (x[j] - x[i])[apart])) if apart.any() else 0.0


def _medians(x: NDArray[np.generic], y: Floats) -> tuple[Floats, Floats]:
    """Repeated points become their median."""
    points = np.unique(x)
    return points.astype(np.float64), np.asarray([np.median(y[x == p]) for p in points])


def _rising(y: Floats) -> Floats:
    """The nearest non-decreasing curve in least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in y:
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, many = blocks.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        blocks.append((mean, count))
    return np.asarray([mean for mean, count in blocks for _ in range(count)])
