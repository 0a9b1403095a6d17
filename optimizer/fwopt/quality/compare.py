"""Next-token distributions of each arm beside the reference's, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fwopt.quality.model import StreamedModel
from fwopt.quality.states import States
from fwopt.quality.walk import Tell
from fwopt.quality.windows import Windows

CHUNK_LOGITS = 6_000_000
"""Logits of each side held at a time: 24 MB, below the size from which an allocator asks the system every time."""
TOP = 5

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PerToken:
    """Of every token that follows another in its window."""

    kl: Floats
    """KL(reference || arm) in nats."""
    top1: Floats
    """1 where the likeliest token is the same."""
    top5: Floats
    """Share of the reference's five likeliest tokens that are among the arm's five."""
    surprise: Floats
    """-ln p(token) in the arm."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of `PerToken` stand."""

    window: NDArray[np.int64]
    position: NDArray[np.int64]
    """Tokens before it in its window."""

    @classmethod
    def of(cls, windows: Windows) -> Places:
        window = np.repeat(np.arange(len(windows)), [n - 1 for n in windows.lengths])
        return cls(window, np.concatenate([np.arange(1, n) for n in windows.lengths]))


@torch.inference_mode()
def compare(
    model: StreamedModel, windows: Windows, states: States, reference: str, arms: Sequence[str], tell: Tell
) -> tuple[dict[str, PerToken], Floats]:
    """(each arm beside the reference, the reference's surprise). The head works in float32 on both sides."""
    model.to_float32()
    last = model.layers
    before = np.concatenate([np.arange(s, s + n - 1) for s, n in zip(windows.starts, windows.lengths, strict=True)])
    hidden = {name: states.read(name, last) for name in (reference, *arms)}
    rows: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in arms}
    surprises: list[Tensor] = []
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    for at in range(0, len(before), chunk):
        tell("distributions", at, len(before))
        here = torch.from_numpy(before[at : at + chunk])
        targets = torch.from_numpy(windows.tokens[before[at : at + chunk] + 1])
        truth = torch.log_softmax(model.logits(hidden[reference][here]), dim=-1)
        likeliest = truth.topk(TOP).indices
        surprises.append(-truth.gather(1, targets[:, None])[:, 0])
        for name in arms:
            other = torch.log_softmax(model.logits(hidden[name][here]), dim=-1)
            rows[name].append(_row(truth, likeliest, other, targets))
    found = {
        name: PerToken(*(_numpy(list(column)) for column in zip(*parts, strict=True))) for name, parts in rows.items()
    }
    return found, _numpy(surprises)


def _row(truth: Tensor, likeliest: Tensor, other: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    top = other.topk(TOP).indices
    shared = (likeliest[:, :, None] == top[:, None, :]).any(dim=2).float().mean(dim=1)
    surprise = -other.gather(1, targets[:, None])[:, 0]
    return divergence(truth, other), (likeliest[:, 0] == top[:, 0]).float(), shared, surprise


def divergence(truth: Tensor, other: Tensor) -> Tensor:
    """KL(truth || other) from log-probabilities (tokens, vocabulary).

    Summed as p (e^d - 1 - d) with d = ln q - ln p, which is the same as -p d where both sum to one. No term is
    negative, and rounding enters by its square: -p d alone carries float32's error of the two normalisers.
    """
    p, d = truth.exp(), other - truth
    terms = p * (torch.expm1(d.clamp(max=10.0)) - d)
    far = d > 10.0
    if bool(far.any()):
        terms[far] = other[far].exp() - p[far] - p[far] * d[far]
    return terms.sum(dim=-1, dtype=torch.float64)


def _numpy(parts: list[Tensor]) -> Floats:
    return torch.cat(parts).double().numpy()
