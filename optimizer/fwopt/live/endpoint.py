"""Where an OpenAI-compatible server answers, and as what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fwopt.spec.engine import EngineName


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server, or a router in front of several."""

    url: str
    """Scheme, host and port, without `/v1`: `http://127.0.0.1:8000`."""
    model: str
    """The name the server goes by in requests."""
    engine: EngineName | None = None
    """None: unknown, so only what every OpenAI-compatible server understands is used."""
    api: Literal["completions", "chat"] = "completions"
    api_key: str | None = None
    max_context_tokens: int | None = None
    """Longest prompt + output the server accepts; None: unknown."""
