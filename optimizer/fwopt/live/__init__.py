"""Real servers, started or attached, and the client that replays a workload on them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fwopt.live.client import replay, replay_sync
    from fwopt.live.endpoint import Endpoint
    from fwopt.live.load import ClosedLoop, Load, Poisson, Ramp, Recorded
    from fwopt.live.options import ReplayOptions
    from fwopt.live.result import Replay

__all__ = [
    "ClosedLoop",
    "Endpoint",
    "Load",
    "Poisson",
    "Ramp",
    "Recorded",
    "Replay",
    "ReplayOptions",
    "replay",
    "replay_sync",
]

_HOME = {
    "ClosedLoop": "load",
    "Endpoint": "endpoint",
    "Load": "load",
    "Poisson": "load",
    "Ramp": "load",
    "Recorded": "load",
    "Replay": "result",
    "ReplayOptions": "options",
    "replay": "client",
    "replay_sync": "client",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"fwopt.live.{_HOME[name]}"), name)
