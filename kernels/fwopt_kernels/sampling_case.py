"""Inputs of `sampling`, which tokens it may draw in float64, and its torch fallback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fwopt_kernels.contract import Expected
from fwopt_kernels.philox_torch import exponential_torch, words_torch

GREEDY_BELOW = 1e-5
"""Temperature, as vLLM's `_SAMPLING_EPS`."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_WAYS = (
    (0.6, 20, 0.95, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 0.9, 0.0),
    (1.3, 50, 1.0, 0.0),
    (0.8, 0, 1.0, 0.05),
    (3.0, 0, 0.999, 0.0),
    (0.3, 5, 0.5, 0.1),
)
"""Temperature, top_k, top_p, min_p of random rows in turn: the first as models recommend them."""


@dataclass(frozen=True)
class Parameters:
    """Of each row: all (rows,) and contiguous."""

    temperature: Tensor
    """float32; below `GREEDY_BELOW`: the first of the largest logits."""
    top_k: Tensor
    """int32; 0, and any number from the vocabulary on: all"""
    top_p: Tensor
    """float32; 1: all"""
    min_p: Tensor
    """float32; 0: all"""
    seed: Tensor
    """int64"""
    position: Tensor
    """int64; of the token to be drawn. Equal seeds draw independently at different positions."""

    def row(self, i: int) -> Parameters:
        temperature, top_k, top_p, min_p, seed, position = (part[i : i + 1] for part in self.parts())
        return Parameters(temperature, top_k, top_p, min_p, seed, position)

    def parts(self) -> tuple[Tensor, ...]:
        return self.temperature, self.top_k, self.top_p, self.min_p, self.seed, self.position


PARAMETER_TYPES = (torch.float32, torch.int32, torch.float32, torch.float32, torch.int64, torch.int64)


@dataclass(frozen=True)
class SamplingCase:
    logits: Tensor
    parameters: Parameters
    out: Tensor

    def results(self) -> dict[str, Tensor]:
        """How many nats each row's token is behind the best that may be drawn; NaN for one that may not."""
        behind = [_behind(self, i) for i in range(len(self.out))]
        return {"behind": torch.tensor(behind, dtype=torch.float64, device=self.out.device)}


def random_case(format: str, shape: Mapping[str, int], seed: int, padding: int, device: str) -> SamplingCase:
    rows, vocabulary = shape["rows"], shape["vocabulary"]
    random = torch.Generator(device).manual_seed(seed)
    logits = 3 * torch.randn(rows, vocabulary + padding, generator=random, device=device)
    logits[:, vocabulary:] = float("nan")
    ways = torch.tensor(_WAYS, device=device)[torch.arange(rows, device=device) % len(_WAYS)].T
    heat, k, top_p, min_p = (way.contiguous() for way in ways)
    seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=random, device=device)
    positions = torch.randint(0, 2**40, (rows,), generator=random, device=device)
    parameters = Parameters(heat, k.int(), top_p, min_p, seeds, positions)
    out = torch.full((rows,), -2, dtype=torch.int64, device=device)
    return SamplingCase(logits.to(DTYPES[format])[:, :vocabulary], parameters, out)


def kept(scores: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """`scores` (rows, vocabulary) with minus infinity outside each row's `top_k` largest (0: all), then outside the
    fewest of those whose softmax reaches `top_p`. What equals the last that is kept is kept, as by vLLM's top-k."""
    vocabulary = scores.shape[-1]
    ordered = scores.sort(dim=-1, descending=True).values
    k = torch.where((top_k > 0) & (top_k < vocabulary), top_k, vocabulary).long()
    last = ordered.gather(1, k[:, None] - 1)
    shares = ordered.masked_fill(ordered < last, -torch.inf).softmax(dim=-1)
    fewest = (shares.cumsum(dim=-1) - shares < top_p[:, None]).sum(dim=-1, keepdim=True).clamp(min=1)
    fewest = torch.where(top_p[:, None] < 1, fewest, vocabulary)
    return scores.masked_fill(scores < torch.maximum(last, ordered.gather(1, fewest - 1)), -torch.inf)


def _depths(case: SamplingCase, row: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A row's logits, NaN being minus infinity, and how many nats each lies below the largest."""
    x = case.logits[row].to(dtype)
    x = x.masked_fill(x.isnan(), -torch.inf)
    heat = case.parameters.temperature[row].to(dtype).clamp(min=GREEDY_BELOW)
    return x, ((x.max() - x) / heat).masked_fill(x == x.max(), 0.0)


def _floor(p: float) -> float:
    return max(-float(torch.tensor(p, dtype=torch.float64).log()), 0.0) if p > 0 else float("inf")


def _may_be_drawn(x: Tensor, depth: Tensor, one: Parameters, side: int) -> Tensor:
    """Tokens that are left by a rule whose borders are moved out (+1) or in (-1) by what float32 may be off: a weight
    by 2**-20 of itself for each nat of depth and one more, and 2**-40 that sums of weights cut off."""
    k, p = int(one.top_k), float(one.top_p)
    valid = (x > -torch.inf) & (depth <= _floor(float(one.min_p)) + side * 2**-20 * (1 + depth))
    valid |= depth == 0
    if 0 < k < len(x):
        valid &= x >= x.masked_fill(~valid, -torch.inf).topk(k).values[-1]
    if p < 1:
        order = x.masked_fill(~valid, -torch.inf).argsort(descending=True)
        weights = torch.exp(-depth).masked_fill(~valid, 0.0)
        off = float((weights * 2**-20 * (1 + depth).masked_fill(~valid, 0.0)).sum()) + len(x) * 2**-40
        mass = weights[order].cumsum(0)
        fewest = int((mass < p * float(mass[-1]) + side * off).sum())
        valid &= x >= x[order[min(fewest, int(valid.sum()) - 1)]]
    return valid


def _behind(case: SamplingCase, row: int) -> float:
    """Where float32 may have drawn a border elsewhere, all that is at least as likely as the token counts as kept."""
    token, one = int(case.out[row]), case.parameters.row(row)
    x, depth = _depths(case, row, torch.float64)
    if not bool((x > -torch.inf).any()):
        return 0.0 if token == -1 else float("nan")
    if not 0 <= token < len(x):
        return float("nan")
    if not float(one.temperature) >= GREEDY_BELOW:
        return 0.0 if token == int((depth == 0).nonzero()[0]) else float("nan")
    surely, perhaps = (_may_be_drawn(x, depth, one, side) for side in (-1, 1))
    if not bool(perhaps[token]):
        return float("nan")
    noise = exponential_torch(words_torch(one.seed, one.position, len(x))[0], torch.float64)
    score = -depth - noise.log()
    rivals = surely | (perhaps & (x >= x[token]))
    return float(score[rivals].max() - score[token])


def expected(case: SamplingCase) -> dict[str, Expected]:
    """A winner lies less than 27 nats deep: exponential numbers are between 2**-33 and 23. Its weight is then off by
    27 * 2**-21 at most, its number by 2**-18; two of them are compared."""
    return {"behind": Expected(torch.zeros(case.out.shape, dtype=torch.float64, device=case.out.device), atol=2**-14)}


def fallback(case: SamplingCase) -> None:
    """Row by row: the random numbers of a whole batch in 64-bit integers would take gigabytes."""
    for i in range(len(case.out)):
        one = case.parameters.row(i)
        x, depth = _depths(case, i, torch.float32)
        best = torch.where(depth == 0, torch.arange(len(x), device=x.device), len(x)).min()
        if bool(one.temperature >= GREEDY_BELOW):
            scores = (-depth).masked_fill((x == -torch.inf) | (depth > _floor(float(one.min_p))), -torch.inf)
            noise = exponential_torch(words_torch(one.seed, one.position, len(x)), torch.float32)
            best = (kept(scores[None], one.top_k, one.top_p).exp() / noise).argmax()
        case.out[i] = torch.where(x.max() > -torch.inf, best, -1)
