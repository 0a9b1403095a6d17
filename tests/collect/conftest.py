"""A server with the completions API, answering at once, and the made-up law of `tests/perf/step_service.py`."""

import asyncio
import importlib.util
import json
import sys
import threading
from pathlib import Path

import pytest
from aiohttp import web

_PATH = Path(__file__).parents[1] / "perf" / "step_service.py"


@pytest.fixture(scope="session")
def law_of():
    """The class of laws."""
    if "step_service" not in sys.modules:
        spec = importlib.util.spec_from_file_location("step_service", _PATH)
        sys.modules["step_service"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["step_service"].Law


class Stub:
    """One token a tick to everyone, as an engine does; a batch begins when its requests had time to arrive. Counts what
    it is asked. `fail_after`: answers 500 to every completion beyond that; `short`: tokens held back;
    `text`: of each token."""

    def __init__(self):
        self.completions, self.fail_after, self.short, self.text = [], None, 0, "a"
        self.running, self.tick = 0, None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.ready = threading.Event()
        self.thread.start()
        assert self.ready.wait(10)

    def _serve(self):
        asyncio.set_event_loop(self.loop)
        app = web.Application()
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        runner = web.AppRunner(app)
        self.loop.run_until_complete(runner.setup())
        self.tick = asyncio.Condition()
        ticking = self.loop.create_task(self._ticks())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self.loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self.ready.set()
        self.loop.run_forever()
        ticking.cancel()
        self.loop.run_until_complete(asyncio.gather(ticking, return_exceptions=True))
        self.loop.run_until_complete(runner.cleanup())
        self.loop.close()

    async def _ticks(self):
        while True:
            idle = self.running == 0
            await asyncio.sleep(0.002)
            if idle and self.running:
                await asyncio.sleep(0.15)
            async with self.tick:
                self.tick.notify_all()

    async def _models(self, request):
        return web.json_response({"data": [{"id": "toy"}]})

    async def _version(self, request):
        return web.json_response({"version": "0.32.0+cpu"})

    async def _complete(self, request):
        asked = await request.json()
        self.completions.append(asked)
        if self.fail_after is not None and len(self.completions) > self.fail_after:
            return web.json_response({"error": "out of memory"}, status=500)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        count = asked["max_tokens"] - self.short
        self.running += 1
        for at in range(count):
            async with self.tick:
                await self.tick.wait()
            event = {
                "choices": [{"index": 0, "text": self.text, "finish_reason": "length" if at == count - 1 else None}]
            }
            await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.running -= 1
        usage = {"choices": [], "usage": {"prompt_tokens": len(asked["prompt"]), "completion_tokens": count}}
        await answer.write(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n")
        return answer

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture
def stub():
    server = Stub()
    yield server
    server.stop()
