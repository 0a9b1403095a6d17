"""The next token of each sequence from its logits."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from fwopt.engine.sequence import Sequence


class Sampler:
    """Greedy, temperature, top-k, top-p; a seeded request draws from a generator of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._generators: dict[int, torch.Generator] = {}

    def forget(self, sequence: Sequence) -> None:
        self._generators.pop(sequence.id, None)

    @torch.inference_mode()
    def __call__(self, logits: Tensor, sequences: Many[Sequence]) -> list[int]:
        """`logits` (N, vocabulary) in float32; changed in place."""
        for row, sequence in enumerate(sequences):
            wanted = sequence.sampling
            if sequence.output_tokens < wanted.min_tokens and wanted.stop_ids:
                logits[row, list(wanted.stop_ids)] = -torch.inf
        drawn = [row for row, s in enumerate(sequences) if s.sampling.temperature > 0]
        best = logits.argmax(dim=-1)
        if drawn:
            rows = torch.tensor(drawn, device=self._device)
            best[rows] = self._draw(logits[rows], [sequences[row] for row in drawn])
        chosen: list[int] = best.tolist()
        return chosen

    def _draw(self, logits: Tensor, sequences: Many[Sequence]) -> Tensor:
        wanted = [s.sampling for s in sequences]
        logits = logits / torch.tensor([[w.temperature] for w in wanted], device=self._device)
        if any(w.top_k is not None or w.top_p < 1 for w in wanted):
            logits = self._restrict(logits, sequences)
        noise = torch.empty_like(logits).exponential_()
        for row, sequence in enumerate(sequences):
            if sequence.sampling.seed is not None:
                noise[row].exponential_(generator=self._generator(sequence))
        return logits.softmax(dim=-1).div_(noise).argmax(dim=-1)  # the exponential race draws from the distribution

    def _restrict(self, logits: Tensor, sequences: Many[Sequence]) -> Tensor:
        """Minus infinity outside the k likeliest tokens, and outside the fewest that hold a share p."""
        vocabulary = logits.shape[-1]
        ordered, index = logits.sort(dim=-1, descending=True)
        k = torch.tensor([[s.sampling.top_k or vocabulary] for s in sequences], device=self._device)
        p = torch.tensor([[s.sampling.top_p] for s in sequences], device=self._device)
        ordered = ordered.masked_fill(torch.arange(vocabulary, device=self._device) >= k, -torch.inf)
        shares = ordered.softmax(dim=-1)
        ordered = ordered.masked_fill(shares.cumsum(dim=-1) - shares >= p, -torch.inf)
        return torch.empty_like(logits).scatter_(1, index, ordered)

    def _generator(self, sequence: Sequence) -> torch.Generator:
        found = self._generators.get(sequence.id)
        if found is None:
            assert sequence.sampling.seed is not None
            found = torch.Generator(device=self._device).manual_seed(sequence.sampling.seed)
            self._generators[sequence.id] = found
        return found
