"""A server that runs already: the name it serves under, and its version."""

from __future__ import annotations

import re

from fwopt.errors import InputError
from fwopt.live.endpoint import Endpoint
from fwopt.live.servers.identity import HttpError, Identity, identify
from fwopt.spec.engine import EngineName

_TIMEOUT_S = 10.0


def endpoint_of(url: str, engine: EngineName) -> Endpoint:
    """Where to ask, after a look at what is there."""
    found = _identity(url)
    return Endpoint(_base(url), found.models[0], engine, max_context_tokens=found.max_context_tokens)


def running_version(url: str, engine: EngineName) -> str:
    """As a folder may be named by: `0.32.0`, `b7312-abc`."""
    found = _identity(url)
    if found.engine is not None and found.engine != engine:
        raise InputError(f"{url}: is {found.engine}, not {engine}; name it with --engine {found.engine}")
    if found.version is None:
        raise InputError(f"{url}: says no version; add it to --engine, as in {engine}==1.2.3")
    return re.sub(r"[^A-Za-z0-9.]+", "-", found.version.partition("+")[0]).strip("-") or "unknown"


def _identity(url: str) -> Identity:
    try:
        return identify(_base(url), timeout_s=_TIMEOUT_S)
    except (HttpError, OSError, ValueError) as error:
        raise InputError(f"{url}: no answer as of an OpenAI-compatible server ({error}); start it first") from None


def _base(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1")
