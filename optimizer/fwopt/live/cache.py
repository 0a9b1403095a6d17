"""What the server's prefix cache may hold when a replay begins."""

from __future__ import annotations

import secrets

from fwopt.live.call import call
from fwopt.live.endpoint import Endpoint
from fwopt.live.options import CacheControl, ReplayOptions
from fwopt.spec.base import Frozen
from fwopt.spec.engine import EngineName

RESET_PATHS: dict[EngineName, str] = {
    "vllm": "/reset_prefix_cache",
    "sglang": "/flush_cache",
    "fwopt": "/reset_prefix_cache",
}
"""Where an engine empties its prefix cache. vLLM offers it only when started with VLLM_SERVER_DEV_MODE=1."""


class CacheState(Frozen):
    """How the cache was controlled."""

    control: CacheControl
    salt: str
    how: str
    """In words, for reports."""
    emptied: bool = False
    """The server said that it emptied its cache before the run."""


def choose_salt(options: ReplayOptions) -> str:
    if options.salt is not None:
        return options.salt
    return secrets.token_hex(8) if options.cache == "cold" else ""


async def prepare(endpoint: Endpoint, options: ReplayOptions, salt: str) -> CacheState:
    """Empty the cache where it must be cold and can be emptied; nothing else is changed."""
    if options.cache == "warm":
        how = "warm: the whole workload was sent once before, unmeasured"
        return CacheState(control="warm", salt=salt, how=how)
    if options.cache == "as is":
        return CacheState(control="as is", salt=salt, how="as the server had it")
    fresh = "prompts salted afresh" if options.salt is None else "prompts with the salt that was given"
    path = RESET_PATHS.get(endpoint.engine) if endpoint.engine is not None else None
    if path is None:
        return CacheState(control="cold", salt=salt, how=f"cold: {fresh}")
    try:
        status, _ = await call(endpoint, "POST", path)
    except OSError as error:
        return CacheState(control="cold", salt=salt, how=f"cold: {fresh}; {path} did not answer ({error})")
    if status == 200:
        return CacheState(control="cold", salt=salt, how=f"cold: {fresh}, and emptied by {path}", emptied=True)
    return CacheState(control="cold", salt=salt, how=f"cold: {fresh}; {path} answered HTTP {status}")
