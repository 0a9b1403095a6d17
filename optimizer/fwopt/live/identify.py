"""What answers at a URL: its engine, its models and its context length, as far as it says so itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import orjson

from fwopt.errors import InputError
from fwopt.live.call import call
from fwopt.live.endpoint import Endpoint
from fwopt.spec.engine import EngineName

OWNERS: dict[str, EngineName] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp", "fwopt": "fwopt"}
"""`owned_by` in /v1/models -> engine, as each engine fills it in."""


@dataclass(frozen=True, slots=True)
class Served:
    """What /v1/models says; None: nothing."""

    engine: EngineName | None
    models: tuple[str, ...]
    max_context_tokens: int | None


async def served(endpoint: Endpoint) -> Served:
    """Ask /v1/models; a server that has no such page serves something unknown, one that does not answer is an error."""
    try:
        status, body = await call(endpoint, "GET", "/v1/models")
    except OSError as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer"
        raise InputError(f"{endpoint.url}: no server answers ({reason}); start it, or name another --url") from None
    if status in (401, 403):
        raise InputError(f"{endpoint.url}: answers HTTP {status}; name the variable that holds its key, --api-key-env")
    try:
        rows: Any = orjson.loads(body)["data"] if status == 200 else []
        owners = {OWNERS[row["owned_by"]] for row in rows if row.get("owned_by") in OWNERS}
        limits = [limit for row in rows if (limit := _context(row)) is not None]
        names = tuple(str(row["id"]) for row in rows)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        return Served(None, (), None)
    return Served(owners.pop() if len(owners) == 1 else None, names, min(limits) if limits else None)


def _context(row: dict[str, Any]) -> int | None:
    """vLLM, SGLang and fwopt say `max_model_len`, llama.cpp the context of one slot."""
    limit = row.get("max_model_len") or (row.get("meta") or {}).get("n_ctx")
    return int(limit) if limit else None


def complete(endpoint: Endpoint, *, named: bool) -> Endpoint:
    """The endpoint with what the server says about itself; `named`: the model was given. Given facts stay."""
    found = asyncio.run(served(endpoint))
    model = endpoint.model
    if not named:
        if len(found.models) != 1:
            shown = ", ".join(found.models) or "none"
            raise InputError(f"{endpoint.url} serves several models or does not say which ({shown}): name it, --model")
        model = found.models[0]
    return replace(
        endpoint,
        model=model,
        engine=endpoint.engine or found.engine,
        max_context_tokens=endpoint.max_context_tokens or found.max_context_tokens,
    )
