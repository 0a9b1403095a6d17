"""Engines that can be started: one module each, one line here."""

from __future__ import annotations

import importlib
from typing import cast

from fwopt.errors import UnknownNameError
from fwopt.live.servers.base import Launch, Server

SERVERS: dict[str, str] = {
    "vllm": "fwopt.live.servers.vllm:VllmServer",
    "llamacpp": "fwopt.live.servers.llamacpp:LlamaServer",
    "sglang": "fwopt.live.servers.sglang:SglangServer",
    "fwopt": "fwopt.live.servers.reference:ReferenceServer",
}
"""Engine name -> `module:class` of a `Server` that takes a `Launch`."""


def make_server(engine: str, launch: Launch) -> Server:
    """The server of that engine, not yet started."""
    if engine not in SERVERS:
        raise UnknownNameError("engine to start", engine, SERVERS)
    module, _, name = SERVERS[engine].partition(":")
    return cast(Server, getattr(importlib.import_module(module), name)(launch))
