"""How a workload is replayed: what is asked of the server, how long the client waits, what the cache may hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fwopt.spec.base import Frozen

CacheControl = Literal["cold", "warm", "as is"]
"""cold: prompts no earlier run sent, and the cache emptied where the server offers that; warm: the whole workload was
sent once before; as is: neither, for servers whose history is known otherwise."""


class ReplayOptions(Frozen):
    """Everything about a replay except the server, the workload and the load."""

    requests: PositiveInt | None = None
    """Send only the first so many requests of the trace."""
    cache: CacheControl = "cold"
    salt: str | None = None
    """Equal salts give equal prompts. None: a fresh one for a cold cache, else the empty one; the record names it."""
    prompts: Literal["ids", "text"] | None = None
    """None: token ids where the server takes them, else text."""
    tokenizer: Path | None = None
    """`tokenizer.json` or its folder; needed for text prompts."""
    vocabulary: tuple[int, int] | None = None
    """First id and end of the range that token-id prompts use; None: the tokenizer's ordinary ids."""
    prefix_caching: bool = True
    """What the candidate says; llama.cpp takes it per request (`cache_prompt`)."""
    usage_per_chunk: bool = False
    """Ask vLLM and SGLang for token counts in every chunk (`continuous_usage_stats`); costs the server time."""
    think_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """A turn is sent so long after its parent ended; None: at its recorded time, but not before its parent ended."""
    connect_timeout_s: PositiveFloat = 30.0
    first_token_timeout_s: PositiveFloat = 600.0
    between_tokens_timeout_s: PositiveFloat = 120.0
    total_timeout_s: Annotated[float, Field(gt=0, le=4000)] = 3600.0
    """At most 4,000 s: chunk times are kept as 32-bit microseconds."""
    stream_to: Path | None = None
    """Write each request's record here as it ends (gzip JSON lines), and keep no chunk times in memory."""
