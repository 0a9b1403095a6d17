"""The next token of each sequence by `fwopt_kernels.sampling`."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from fwopt.engine.sampling import Sampler
from fwopt.engine.sequence import Sequence
from fwopt_kernels.choice import Choices
from fwopt_kernels.sampling import sampling
from fwopt_kernels.sampling_case import GREEDY_BELOW, Parameters


class KernelSampler(Sampler):
    """A draw depends on the request's seed, the token's position and the logits, on nothing else in the batch. A
    request without a seed gets one from torch's own generator."""

    def __init__(self, device: torch.device, choices: Choices) -> None:
        super().__init__(device)
        self._choices = choices
        self._seeds: dict[int, int] = {}

    def forget(self, sequence: Sequence) -> None:
        self._seeds.pop(sequence.id, None)

    def _tokens(self, logits: Tensor, sequences: Many[Sequence]) -> Tensor:
        rows, vocabulary = logits.shape
        wanted = [s.sampling for s in sequences]
        out = torch.empty(rows, dtype=torch.int64, device=self._device)
        sampling(
            logits,
            Parameters(
                self._put([w.temperature for w in wanted], torch.float32),
                self._put([w.top_k or 0 for w in wanted], torch.int32),
                self._put([w.top_p for w in wanted], torch.float32),
                self._put([0.0] * rows, torch.float32),
                self._put([self._seed(s) for s in sequences], torch.int64),
                self._put([len(s.tokens) for s in sequences], torch.int64),
            ),
            out,
            drawn=any(w.temperature >= GREEDY_BELOW for w in wanted),
            restricted=any(w.top_k is not None or w.top_p < 1 for w in wanted),
            variant=self._choices.best("sampling", "fp32", rows=rows, vocabulary=vocabulary),
        )
        return out.clamp_(min=0)  # of a row of NaN the first token, as argmax gives

    def _put(self, values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(self._device, non_blocking=True)

    def _seed(self, sequence: Sequence) -> int:
        if sequence.sampling.seed is not None:
            return sequence.sampling.seed
        if sequence.id not in self._seeds:
            self._seeds[sequence.id] = int(torch.randint(-(2**63), 2**63 - 1, ()))
        return self._seeds[sequence.id]
