"""What the recorder adds: the same requests to a stub server, directly and through `fwopt record`, interleaved.

python benchmarks/record.py [--requests 3000] [--rate 100] [--tokenizer FOLDER]

Open loop, Poisson arrivals; requests go one of the two ways in turn, so both see the same machine at the same time. The
stub streams 20 chunks a reply, 5 ms apart, and stamps when the request came and when it sent each chunk (one clock, the
machine's): its own timers are no part of what is compared, which is the way there and the way back.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import numpy as np
import orjson
import uvloop
from aiohttp import web

CHUNKS = 20
_STAMP = re.compile(rb'"content":"([0-9.]+)"')
GAP_S = 0.005


async def stub() -> None:
    """Streams chunks GAP_S apart, as a decoding server does, each with the time it was sent at."""
    usage = orjson.dumps({"choices": [], "usage": {"prompt_tokens": 500, "completion_tokens": CHUNKS}})

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        came = repr(time.perf_counter())
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Came": came})
        await response.prepare(request)
        for _ in range(CHUNKS):
            await asyncio.sleep(GAP_S)
            delta = {"content": repr(time.perf_counter())}
            row = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
            await response.write(b"data: " + orjson.dumps(row) + b"\n\n")
        if b'"include_usage":true' in body:
            await response.write(b"data: " + usage + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    runner = web.ServerRunner(web.Server(answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    gc.freeze()
    await asyncio.Event().wait()


def bodies(rng: random.Random, count: int) -> list[bytes]:
    """Chats of 200 to 8,000 bytes: the median is a few hundred tokens."""
    words = [f"{a}{b}" for a in ("ta", "lo", "mi", "ner", "sub") for b in ("ral", "tion", "ed", "ly")]
    made = []
    for _ in range(count):
        text = " ".join(rng.choices(words, k=int(rng.lognormvariate(5.3, 0.9))))[:8000]
        messages = [{"role": "system", "content": "Answer. " * 40}, {"role": "user", "content": text}]
        made.append(orjson.dumps({"model": "m", "messages": messages, "stream": True, "max_tokens": 64}))
    return made


async def one(session: aiohttp.ClientSession, url: str, body: bytes) -> tuple[float, list[float]]:
    """(seconds from the client to the server, seconds back of each chunk)."""
    start = time.perf_counter()
    back = []
    async with session.post(
        url + "/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
    ) as reply:
        there = float(reply.headers["X-Came"]) - start
        while chunk := await reply.content.readany():
            now = time.perf_counter()
            back += [now - float(stamp) for stamp in _STAMP.findall(chunk)]
    assert len(back) == CHUNKS
    return there, back


async def measure(direct: str, proxied: str, requests: int, rate: float) -> dict[str, list]:
    rng = random.Random(1)
    found: dict[str, list] = {"direct": [], "proxied": []}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        ways = [("direct", direct), ("proxied", proxied)]

        async def timed(name: str, url: str, body: bytes) -> None:
            found[name].append(await one(session, url, body))

        for warm in bodies(rng, 100):
            await asyncio.gather(*(one(session, url, warm) for _, url in ways))
        gc.freeze()
        tasks, due = [], time.perf_counter()
        for number, body in enumerate(bodies(rng, requests)):
            due += rng.expovariate(rate)
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            tasks.append(asyncio.ensure_future(timed(*ways[number % 2], body)))
        await asyncio.gather(*tasks)
    return found


def show(found: dict[str, list]) -> None:
    print(f"{'':<34}{'direct':>9}{'recorded':>10}{'added':>8}   ms")
    for name, part in (
        ("first output, there and back", lambda row: [row[0] + row[1][0]]),
        ("request, client to server", lambda row: [row[0]]),
        ("every chunk, server to client", lambda row: row[1]),
    ):
        values = {way: np.concatenate([part(row) for row in rows]) * 1e3 for way, rows in found.items()}
        for q in (0.5, 0.9, 0.99):
            direct, proxied = (float(np.quantile(values[way], q)) for way in ("direct", "proxied"))
            print(f"{name:<30}{f'p{q * 100:g}':>4}{direct:>9.3f}{proxied:>10.3f}{proxied - direct:>8.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=100, help="requests a second, both ways together")
    parser.add_argument("--tokenizer", help="folder with tokenizer.json")
    parser.add_argument("--stub", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stub:
        uvloop.run(stub())
        return
    import fwopt

    print(f"fwopt {fwopt.__version__}, aiohttp {aiohttp.__version__}, uvloop {uvloop.__version__}, "
          f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen([sys.executable, __file__, "--stub"], stdout=subprocess.PIPE, text=True)
        direct = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        out = Path(folder) / "workload.jsonl"
        extra = ["--tokenizer", options.tokenizer] if options.tokenizer else []
        recorder = subprocess.Popen(
            [sys.executable, "-m", "fwopt", "record", "--upstream", direct, "--out", str(out), "--port", "0", *extra],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        proxied = recorder.stderr.readline().split()[1]
        used = Path(f"/proc/{recorder.pid}/stat")
        before = used.read_text().split()[13:15]
        found = uvloop.run(measure(direct, proxied, options.requests, options.rate))
        after = used.read_text().split()[13:15]
        resident = int(Path(f"/proc/{recorder.pid}/statm").read_text().split()[1]) * 4096
        recorder.terminate()
        print(recorder.stderr.read().strip().replace(folder + "/", ""))
        recorder.wait()
        server.kill()
        server.wait()
        show(found)
        cpu_s = sum(int(b) - int(a) for a, b in zip(before, after, strict=True)) / os.sysconf("SC_CLK_TCK")
        recorded = len(out.read_text().splitlines()) - 1
        print(f"recorder: {cpu_s / recorded * 1e3:.2f} ms of CPU a request, {resident / 1e6:.0f} MB resident")


if __name__ == "__main__":
    main()
