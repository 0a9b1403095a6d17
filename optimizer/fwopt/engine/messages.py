"""What server and engine process say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field

from fwopt.engine.sequence import FinishReason, Sampling


@dataclass(frozen=True, slots=True)
class Add:
    id: int
    prompt: list[int]
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Abort:
    id: int


@dataclass(frozen=True, slots=True)
class ResetPrefixCache:
    pass


@dataclass(frozen=True, slots=True)
class Stop:
    pass


Request = Add | Abort | ResetPrefixCache | Stop


@dataclass(slots=True)
class Counters:
    """Since the engine started, but for what is running now."""

    running: int = 0
    waiting: int = 0
    kv_blocks: int = 0
    kv_blocks_used: int = 0
    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    """Of admitted requests, found in the cache or computed."""
    cached_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    step_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Ready:
    """The engine is loaded; `summary` says what it allocated."""

    summary: str
    kv_blocks: int


@dataclass(frozen=True, slots=True)
class Refused:
    """It did not start, for a reason that the user can mend."""

    message: str


@dataclass(frozen=True, slots=True)
class Token:
    id: int
    token: int
    reason: FinishReason | None
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Stepped:
    tokens: list[Token] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)


Reply = Ready | Refused | Stepped
