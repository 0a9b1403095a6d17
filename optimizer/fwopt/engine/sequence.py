"""One request inside the engine."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are chosen, and when it ends."""

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    """0: the likeliest token."""
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the request, the model's own end tokens among them unless they are to be ignored."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Tokens known so far, how many of them have their keys and values in the cache, and in which blocks."""

    id: int
    tokens: list[int]
    """Prompt, then output."""
    prompt_tokens: int
    sampling: Sampling
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    """Of the full blocks of `tokens`, as far as they were needed."""
    published: int = 0
    """Leading blocks that others may find."""
    decoding: bool = False
    """The prompt (after a preemption: and the output so far) is computed."""
    cached_tokens: int | None = None
    """Tokens found in the prefix cache at first admission."""
    preemptions: int = 0

    @classmethod
    def new(cls, id: int, prompt: Tokens[int], sampling: Sampling) -> Sequence:
        return cls(id=id, tokens=list(prompt), prompt_tokens=len(prompt), sampling=sampling)

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    def finish_reason(self, max_model_len: int) -> FinishReason | None:
        """Why the sequence ends with the token it just got; None when it goes on."""
        if self.output_tokens >= self.sampling.min_tokens and self.tokens[-1] in self.sampling.stop_ids:
            return "stop"
        if self.output_tokens >= self.sampling.max_tokens or len(self.tokens) >= max_model_len:
            return "length"
        return None
