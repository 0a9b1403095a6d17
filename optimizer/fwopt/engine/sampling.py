"""The next token of each sequence from its logits."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from fwopt.engine.sequence import Sequence
from fwopt_kernels.sampling_case import GREEDY_BELOW, kept


class Sampler:
    """Greedy, temperature, top-k, top-p, as `fwopt_kernels.sampling`; a seeded request draws from its own generator."""

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
        chosen: list[int] = self._tokens(logits, sequences).tolist()
        return chosen

    def _tokens(self, logits: Tensor, sequences: Many[Sequence]) -> Tensor:
        """One of each row."""
        drawn = [row for row, s in enumerate(sequences) if s.sampling.temperature >= GREEDY_BELOW]
        best = logits.argmax(dim=-1)
        if drawn:
            rows = torch.tensor(drawn, device=self._device)
            best[rows] = self._draw(logits[rows], [sequences[row] for row in drawn])
        return best

    def _draw(self, logits: Tensor, sequences: Many[Sequence]) -> Tensor:
        wanted = [s.sampling for s in sequences]
        logits = logits / torch.tensor([[w.temperature] for w in wanted], device=self._device)
        if any(w.top_k is not None or w.top_p < 1 for w in wanted):
            k = torch.tensor([w.top_k or 0 for w in wanted], device=self._device)
            logits = kept(logits, k, torch.tensor([w.top_p for w in wanted], device=self._device))
        noise = torch.empty_like(logits).exponential_()
        for row, sequence in enumerate(sequences):
            if sequence.sampling.seed is not None:
                noise[row].exponential_(generator=self._generator(sequence))
        return logits.softmax(dim=-1).div_(noise).argmax(dim=-1)  # the exponential race draws from the distribution

    def _generator(self, sequence: Sequence) -> torch.Generator:
        found = self._generators.get(sequence.id)
        if found is None:
            assert sequence.sampling.seed is not None
            found = torch.Generator(device=self._device).manual_seed(sequence.sampling.seed)
            self._generators[sequence.id] = found
        return found
