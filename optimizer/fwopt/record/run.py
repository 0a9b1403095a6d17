"""Start, serve, drain, close."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable
from typing import Any

from aiohttp import web

from fwopt.errors import InputError
from fwopt.record.key import PrefixKey
from fwopt.record.proxy import Proxy
from fwopt.record.recorder import Recorder, header
from fwopt.record.settings import RecordSettings, checked_out, checked_upstream
from fwopt.record.upstream import Upstream
from fwopt.record.writer import TraceWriter

_HEADER_BYTES = 1 << 16
_SWITCH_S = 0.0005
"""A tokenizer's thread gives the interpreter back this soon."""


def record(settings: RecordSettings, say: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `say` gets one line for each thing worth knowing."""
    checked_out(settings.out)
    settings = settings.model_copy(update={"upstream": checked_upstream(settings.upstream)})
    key = PrefixKey.from_file(settings.key_file) if settings.key_file else PrefixKey.random()
    sys.setswitchinterval(_SWITCH_S)
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(settings, key, say))


async def _serve(settings: RecordSettings, key: PrefixKey, say: Callable[[str], None]) -> None:
    writer = TraceWriter(
        settings.out, header(settings.tokenizer is not None), settings.rotation, settings.fsync_ms / 1000, say
    )
    recorder = Recorder(
        key, writer, settings.tokenizer, with_text=settings.with_text, ask_usage=settings.ask_usage, say=say
    )
    writer.open()
    upstream = Upstream(settings.upstream)
    proxy = Proxy(upstream, recorder)
    on_disk = asyncio.ensure_future(writer.keep_on_disk())
    try:
        runner = await _listen(settings, proxy, say)
        gc.collect()
        gc.freeze()  # what is loaded by now is no garbage: shorter pauses
        await _told_to_stop(on_disk)
        say(f"stopping: waiting up to {settings.drain_s:g} s for replies under way")
        for site in list(runner.sites):
            await site.stop()
        broken = await proxy.drain(settings.drain_s)
        await runner.cleanup()
        if broken:
            say(f"broke off {broken} replies that had not ended")
    finally:
        on_disk.cancel()
        await upstream.close()
        await recorder.close()
        await writer.close()
    say(_summary(proxy, recorder, writer))


async def _listen(settings: RecordSettings, proxy: Proxy, say: Callable[[str], None]) -> web.ServerRunner:
    quiet = logging.getLogger("fwopt.record.http")
    quiet.propagate = False  # its messages quote requests that are no HTTP, headers included
    quiet.addHandler(logging.NullHandler())
    options: dict[str, Any] = {
        "auto_decompress": False,
        "access_log": None,
        "logger": quiet,
        "max_line_size": _HEADER_BYTES,
        "max_field_size": _HEADER_BYTES,
    }
    server = web.Server(proxy.handle, handler_cancellation=True, **options)
    runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
    except OSError as error:
        await runner.cleanup()
        raise InputError(
            f"--port: {settings.host}:{settings.port} cannot be used: {error.strerror or error}; name another --port"
        ) from None
    host, port = runner.addresses[0][:2]
    say(f"recording http://{host}:{port} -> {settings.upstream} into {settings.out}; Ctrl-C ends")
    return runner


async def _told_to_stop(on_disk: asyncio.Future[None]) -> None:
    """Until a signal; a second one ends the process at once, as it would without us."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def told(number: int) -> None:
        loop.remove_signal_handler(number)
        signal.signal(number, signal.SIG_DFL)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told, number)
    waiting: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
    both: set[asyncio.Future[Any]] = {waiting, on_disk}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if on_disk.done():
        waiting.cancel()
        on_disk.result()


def _summary(proxy: Proxy, recorder: Recorder, writer: TraceWriter) -> str:
    counts, tally = recorder.counts, writer.tally
    parts = [f"{counts.recorded:,} requests recorded"]
    for number, what in (
        (counts.left_out, "noted as no load to plan for"),
        (tally.lost, "LOST, the file could not be written"),
        (counts.unread, "not readable"),
        (counts.untokenized, "refused by the chat template, so without prefix blocks"),
        (counts.without_text, "too long to keep their text"),
        (tally.rotated, "files completed"),
    ):
        if number:
            parts.append(f"{number:,} {what}")
    return f"{writer.path}: {', '.join(parts)}"
