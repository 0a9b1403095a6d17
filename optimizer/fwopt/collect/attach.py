"""A server that runs already: where to ask, and which version it says it is."""

from __future__ import annotations

import re
from dataclasses import replace

from fwopt.errors import InputError
from fwopt.live.endpoint import Endpoint
from fwopt.live.servers.attached import AttachedServer
from fwopt.spec.engine import EngineName

_TIMEOUT_S = 10.0


def endpoint_of(url: str, engine: EngineName, served: str | None) -> Endpoint:
    """Where to ask, after a look at what is there. `served`: the model's name there, None: its only one."""
    return replace(AttachedServer(url, model=served, answer_timeout_s=_TIMEOUT_S).start(), engine=engine)


def running_version(url: str, engine: EngineName, served: str | None) -> str:
    """As a folder may be named by: `0.32.0`, `b7312-abc`."""
    server = AttachedServer(url, model=served, answer_timeout_s=_TIMEOUT_S)
    server.start()
    found = server.identity
    assert found is not None
    if found.engine is not None and found.engine != engine:
        raise InputError(f"{url}: is {found.engine}, not {engine}; name it with --engine {found.engine}")
    if found.version is None:
        raise InputError(f"{url}: says no version; add it to --engine, as in {engine}==1.2.3")
    return re.sub(r"[^A-Za-z0-9.]+", "-", found.version.partition("+")[0]).strip("-") or "unknown"
