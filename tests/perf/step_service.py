"""A made-up engine with a known law of step times, as the rows that `fwopt profile` would measure of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fwopt.perf.step_law import StepRows


@dataclass(frozen=True)
class Law:
    """Seconds; the parts are those of `perf/step_law.py`."""

    fixed_s: float = 4e-3
    token_s: float = 3e-4
    sequence_s: float = 1e-3
    cached_s: float = 1e-6
    """per sequence and token of its context"""
    quadratic_s: float = 2e-8
    chunk_s: float = 2e-3
    request_s: float = 8e-3
    prompt_token_s: float = 1e-6
    crossing_s: float = 0.0
    """per prompt token and token of context beside it"""
    together_s: float = 0.0
    """of a step in which others decode beside the prompt"""

    def decode(self, n: float, context: float) -> float:
        return self.fixed_s + self.token_s * n + self.sequence_s * n + self.cached_s * n * context

    def mixed(self, n: float, context: float, past: float, tokens: float) -> float:
        """The step that completes a prompt of `past + tokens` beside n sequences."""
        inside = self.quadratic_s * ((past + tokens) ** 2 - past**2)
        sampled = self.sequence_s * (n + 1) + self.cached_s * n * context
        inside += self.crossing_s * tokens * n * context + self.together_s * (n > 0)
        return self.fixed_s + self.token_s * (n + tokens) + inside + sampled + self.chunk_s

    def first(self, tokens: float) -> float:
        return self.request_s + self.prompt_token_s * tokens + self.mixed(0, 0, 0, tokens)

    def rows(
        self,
        batches=(1, 2, 4, 8, 16),
        contexts=(64, 1024),
        lengths=(1, 16, 64, 128, 256, 512, 1024, 2048),
        beside=(20.0, 400.0),
    ) -> StepRows:
        """As a noiseless probe sees it."""
        found = [("decode", n, float(c), 0, n, self.decode(n, c)) for n in batches for c in contexts]
        found += [("prefill", 0, 0.0, 0, m, self.first(m)) for m in lengths]
        others = [(n, c) for n in batches[::2] for c in beside]
        found += [("mixed", n, c, 0, m, self.mixed(n, c, 0, m)) for n, c in others for m in lengths[2:]]
        phase, batch, context, past, tokens, seconds = zip(*found, strict=True)
        return StepRows(
            np.asarray(phase), np.asarray(batch), np.asarray(context), np.asarray(past), np.asarray(tokens),
            np.asarray(seconds),
        )  # fmt: skip
