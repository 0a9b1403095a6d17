"""Whether the live client keeps up: send lag and memory at a fixed rate against a stub that is no bottleneck.

    python benchmarks/client.py [--rate 1000] [--seconds 60] [--gap 0.02] [--http]

The client is `fwopt.live.replay_sync` in this one process; the stub (benchmarks/client_stub.py) is another, on the
same machine. `--http` compares bare HTTP clients: aiohttp against `fwopt.live.http`. Prints Markdown; what it means is
in benchmarks/live.md.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import orjson
import uvloop

from fwopt.live import Endpoint, Recorded, ReplayOptions, replay_sync
from fwopt.live.http import Pool
from fwopt.metrics import summarize
from fwopt.metrics.records import FINISHED
from fwopt.workload.builder import Builder
from fwopt.workload.columns import Workload

PROMPT_TOKENS, CHUNKS = 64, 20
SAMPLE_S = 10.0
_TICKS = os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int | str = "self") -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def stub(gap_s: float) -> Iterator[tuple[str, int]]:
    command = [sys.executable, str(Path(__file__).with_name("client_stub.py")), "0", str(gap_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid
    finally:
        process.kill()
        process.wait()


def evenly(rate: float, seconds: float) -> Workload:
    builder = Builder("evenly", {})
    for i in range(round(rate * seconds)):
        builder.add(i / rate, PROMPT_TOKENS, CHUNKS)
    return builder.build("evenly", "made")


def ms(values: np.ndarray) -> str:
    p50, p99 = np.quantile(values, (0.5, 0.99))
    return f"{p50 * 1e3:.2f} / {p99 * 1e3:.2f} / {values.max() * 1e3:.2f}"


def whole_client(rate: float, seconds: float, gap_s: float, out: Path | None) -> None:
    workload = evenly(rate, seconds)
    memory: list[tuple[float, float]] = []

    def progress(done: int, total: int) -> None:
        now = perf_counter()
        if not memory or now - memory[-1][0] >= SAMPLE_S / 10:
            memory.append((now, resident_mb()))

    with stub(gap_s) as (url, pid):
        endpoint = Endpoint(url, "stub", engine="vllm")
        cpu, before = process_time(), cpu_s(pid)
        replay = replay_sync(endpoint, workload, Recorded(), ReplayOptions(stream_to=out), progress=progress)
        own, others = process_time() - cpu, cpu_s(pid) - before
    rows, wall = replay.rows, replay.end.duration_s
    started = memory[0][0]
    at = min((s for s in memory if s[0] - started >= min(SAMPLE_S, seconds / 2)), key=lambda s: s[0])
    metrics = summarize(replay.records)
    print(
        f"| {rate:,.0f}/s for {seconds:g} s{', records to disk' if out else ''} "
        f"| {int((rows.status == FINISHED).sum()):,} of {len(rows):,} | {ms(rows.started_s - rows.scheduled_s)} "
        f"| {replay.end.clock_lag.p99_s * 1e3:.2f} | {own / wall:.0%} | {others / wall:.0%} "
        f"| {at[1]:.1f} / {memory[-1][1]:.1f} | {metrics.ttft.p50_s * 1e3:.1f} | {metrics.itl.p50_s * 1e3:.1f} "
        f"| {'yes' if replay.valid else 'no: ' + '; '.join(str(p) for p in replay.problems if p.invalidates)} |"
    )


class _Counter:
    """A `Receiver` that parses events as the aiohttp arm does, and nothing else."""

    def __init__(self) -> None:
        self.rest, self.times, self.done = b"", [], False

    def sent(self, now_s: float) -> None: ...

    def head(self, status: int, headers: dict[bytes, bytes], now_s: float) -> None: ...

    def body(self, data: bytes, now_s: float) -> None:
        self.rest = events(self.rest + data, self.times, now_s)

    def end(self, now_s: float) -> None:
        self.done = True

    def lost(self, reason: str, now_s: float) -> None:
        raise ConnectionError(reason)


def events(text: bytes, times: list[float], now_s: float) -> bytes:
    *whole, rest = text.split(b"\n\n")
    for event in whole:
        if event[6:] != b"[DONE]":
            orjson.loads(event[6:])
            times.append(now_s)
    return rest


_BODY = orjson.dumps({"model": "stub", "prompt": list(range(PROMPT_TOKENS)), "max_tokens": CHUNKS, "stream": True})


async def with_aiohttp(url: str, rate: float, count: int) -> list[float]:
    import aiohttp

    late: list[float] = []
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
    ) as session:

        async def one() -> None:
            times: list[float] = []
            async with session.post(f"{url}/v1/completions", data=_BODY) as answer:
                rest = b""
                async for data in answer.content.iter_any():
                    rest = events(rest + data, times, perf_counter())
            assert len(times) == CHUNKS + 1

        await pace(rate, count, late, lambda: one())
    return late


async def with_own(url: str, rate: float, count: int) -> list[float]:
    pool, late = Pool(url, fresh=False, timeout_s=10), []
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {pool.netloc}\r\nContent-Length: {len(_BODY)}\r\n\r\n".encode()

    async def one() -> None:
        connection = pool.take() or await pool.open()
        receiver = _Counter()
        connection.send(head + _BODY, receiver)
        while not receiver.done:
            await asyncio.sleep(0.1)
        assert len(receiver.times) == CHUNKS + 1

    await pace(rate, count, late, one)
    pool.close()
    return late


async def pace(rate: float, count: int, late: list[float], one) -> None:
    loop, tasks, start = asyncio.get_running_loop(), set(), perf_counter() + 0.1
    for i in range(count):
        wait = start + i / rate - perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        late.append(perf_counter() - start - i / rate)
        task = loop.create_task(one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)


def bare_http(rate: float, seconds: float, gap_s: float) -> None:
    print("\n| bare HTTP client | send lag ms p50 / p99 / max | CPU of one core |\n|---|---|---|")
    for name, arm in (("aiohttp", with_aiohttp), ("fwopt.live.http", with_own), ("aiohttp again", with_aiohttp)):
        with stub(gap_s) as (url, _):
            cpu, wall = process_time(), perf_counter()
            late = uvloop.run(arm(url, rate, round(rate * seconds)))
            cpu, wall = process_time() - cpu, perf_counter() - wall
        print(f"| {name}, {rate:,.0f}/s for {seconds:g} s | {ms(np.array(late))} | {cpu / wall:.0%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--gap", type=float, default=0.02, help="seconds between the chunks of a reply")
    parser.add_argument("--http", action="store_true", help="also compare bare HTTP clients")
    given = parser.parse_args()
    names = ("numpy", "orjson", "uvloop", "aiohttp")
    print(f"Python {sys.version.split()[0]}, {', '.join(f'{n} {version(n)}' for n in names)}; {os.cpu_count()} cores\n")
    print(
        "| load | finished | send lag ms p50 / p99 / max | clock lag p99 ms | client CPU | stub CPU "
        "| RSS MB at 10 s / end | TTFT p50 ms | ITL p50 ms | valid |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for out in (None, Path(folder) / "replay.jsonl.gz"):
            whole_client(given.rate, given.seconds, given.gap, out)
    if given.http:
        bare_http(given.rate, min(given.seconds, 15), given.gap)


if __name__ == "__main__":
    main()
