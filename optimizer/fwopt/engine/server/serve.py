"""Start the engine process, answer HTTP until a signal or the engine's end."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from aiohttp import web

from fwopt.engine.process import EngineDiedError, EngineProcess
from fwopt.engine.server.app import Routes, Served
from fwopt.engine.server.link import Link
from fwopt.engine.server.text import load_text
from fwopt.engine.settings import Settings
from fwopt.errors import InputError

_DRAIN_S = 3.0
"""How long connections may take to close on shutdown."""


def served_model(settings: Settings, name: str, tokenizer: Path) -> Served:
    codec, template = load_text(tokenizer)
    return Served(
        name=name,
        max_model_len=settings.max_model_len,
        vocab_size=settings.architecture.vocab_size,
        end_ids=settings.architecture.end_ids,
        tokenizer=codec,
        template=template,
    )


def serve(settings: Settings, served: Served, host: str, port: int) -> int:
    """Exit status: 0 after a signal, 1 when the engine died."""
    stopping = [False]

    def stop_early(*_: object) -> None:
        stopping[0] = True
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop_early)  # while loading
    engine = EngineProcess(settings)
    try:
        ready = engine.wait_ready()
        print(f"fwopt: {ready.summary}", file=sys.stderr, flush=True)
        return asyncio.run(_run(engine, served, host, port))
    except KeyboardInterrupt:
        return 0
    except EngineDiedError as error:
        print(f"fwopt: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        engine.stop(patience_s=0.5 if stopping[0] else 10.0)


async def _run(engine: EngineProcess, served: Served, host: str, port: int) -> int:
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, done.set)
    link = Link(engine, on_death=done.set)
    runner = web.AppRunner(Routes(served, link).app(), access_log=None, shutdown_timeout=_DRAIN_S)
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=4096)
    try:
        await site.start()
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    bound = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    print(f"fwopt: serving {served.name} on http://{host}:{bound}", file=sys.stderr, flush=True)
    await done.wait()
    died = not link.alive
    await runner.cleanup()
    link.close()
    if died:
        print("fwopt: the engine process died; its last words are above", file=sys.stderr, flush=True)
        return 1
    return 0
