"""Next-token distributions of each arm beside the reference's, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    model: StreamedModel,
    windows: Windows,
    states: States,
    reference: str,
    arms: Sequence[str],
    tell: Tell,
    heads: Mapping[str, StreamedModel] | None = None,
) -> tuple[dict[str, PerToken], Floats]:
    """(each arm beside the reference, the reference's surprise). The head works in float32 on both sides. `heads`: of
    arms that have one of their own."""
    heads = heads or {}
    for each in (model, *heads.values()):
        each.to_float32()
    last = model.layers
    before = np.concatenate([np.arange(s, s + n - 1) for s, n in zip(windows.starts, windows.lengths, strict=True)])
    hidden = {name: states.read(name, last) for name in (reference, *arms)}
    # written into arrays at once: small tensors that live on between large ones keep the allocator from reusing these
    rows = {name: np.empty((4, len(before))) for name in arms}
    surprises = np.empty(len(before))
    chunk = max(1, CHUNK_LOGITS // model.config.vocab_size)
    for at in range(0, len(before), chunk):
        tell("distributions", at, len(before))
        here = torch.from_numpy(before[at : at + chunk])
        targets = torch.from_numpy(windows.tokens[before[at : at + chunk] + 1])
        truth = torch.log_softmax(model.logits(hidden[reference][here]), dim=-1)
        likeliest = truth.topk(TOP).indices
        span = slice(at, at + len(here))
        surprises[span] = -truth.gather(1, targets[:, None])[:, 0].double().numpy()
        for name in arms:
            other = torch.log_softmax(heads.get(name, model).logits(hidden[name][here]), dim=-1)
            for column, value in zip(rows[name], _row(truth, likeliest, other, targets), strict=True):
                column[span] = value.double().numpy()
    return {name: PerToken(*columns) for name, columns in rows.items()}, surprises


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
