"""cache_aware: the rule, and the same requests sent through SGLang's own router."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import subprocess
import sys

import numpy as np
import pytest
from aiohttp import ClientSession, TCPConnector, web

from fwopt.errors import InputError
from fwopt.sim import simulate
from fwopt.sim.stream import simulate_stream
from fwopt.spec.candidate import Batching, Candidate, Parallelism
from fwopt.spec.router import BALANCE_ABSOLUTE, BALANCE_RELATIVE, CACHE_THRESHOLD

BLOCK = 16
APART, TOGETHER = 1e3, 1e-6
"""Seconds between requests: each alone, or all in flight at once."""


@pytest.fixture
def routed(make_workload, make_grid):
    """Replica of each request. A request is (prefix ids, prompt tokens)."""

    def route(requests, replicas: int, gap: float = APART, blocks: int = 10**6) -> list[int]:
        chains = [ids for ids, _ in requests]
        names = {i: k for k, i in enumerate(dict.fromkeys(i for ids in chains for i in ids))}
        workload = make_workload(
            arrival=np.arange(len(requests)) * gap, prompt=[prompt for _, prompt in requests],
            output=[2000 if gap == TOGETHER else 2] * len(requests),
            chains=[[names[i] for i in ids] for ids in chains], block_tokens=BLOCK,
        )  # fmt: skip
        candidate = Candidate(parallelism=Parallelism(replicas=replicas), router="cache_aware")
        return simulate(workload, make_grid(), blocks, candidate, 1 << 20).records.replica.tolist()

    return route


def test_a_conversation_stays_where_it_began(routed):
    """Each turn holds the one before; new conversations go to the least loaded."""
    turns = [(list(range(c * 100, c * 100 + 4 * t)), 64 * t) for t in (1, 2, 3) for c in range(3)]
    assert routed(turns, 3, TOGETHER) == [0, 1, 2] * 3
    assert routed(turns, 3) == [0] * 9, "alone, each finds all replicas idle and the first is taken"


def test_more_than_the_threshold_of_a_prompt_must_match(routed):
    """Replica 0 was sent 48 tokens that begin both prompts and has more to do: exactly 0.3 of 160 are not enough."""
    begun = [([1, 2, 3], 48), ([9], 16), ([1, 2, 3], 48)]
    assert routed([*begun, ([1, 2, 3], 159)], 2, TOGETHER) == [0, 1, 0, 0]
    assert routed([*begun, ([1, 2, 3], 160)], 2, TOGETHER) == [0, 1, 0, 1]


def test_loads_too_unequal_end_the_following(routed):
    """All share one prefix: the 66th finds 65 on replica 0 and none on the other."""
    same = [([1, 2], 40)] * (BALANCE_ABSOLUTE + 6)
    went = routed(same, 2, TOGETHER)
    assert went[: BALANCE_ABSOLUTE + 1] == [0] * (BALANCE_ABSOLUTE + 1)
    assert went[BALANCE_ABSOLUTE + 1] == 1
    assert BALANCE_RELATIVE * 1 < BALANCE_ABSOLUTE
    assert set(went[BALANCE_ABSOLUTE + 2 :]) == {0, 1}


def test_what_cannot_be_followed_is_refused(make_workload, make_grid):
    pair = Candidate(parallelism=Parallelism(replicas=2), router="cache_aware")
    bare = make_workload(arrival=[0.0], prompt=[40], output=[2])
    with pytest.raises(InputError, match=r"cache_aware follows prefixes.*\('made': no\); use least_requests"):
        simulate(bare, make_grid(), 100, pair, 1 << 20)
    shared = make_workload(arrival=[0.0], prompt=[40], output=[2], chains=[[0, 1]], block_tokens=BLOCK)
    without = pair.model_copy(update={"batching": Batching(prefix_caching=False)})
    with pytest.raises(InputError, match=r"it needs prefix_caching \(here False\)"):
        simulate(shared, make_grid(), 100, without, 1 << 20)
    with pytest.raises(InputError, match="remembers prefixes is not simulated on endless traces"):
        simulate_stream([shared], make_grid(), 100, pair, 1 << 20)


def _trees(seed: int, count: int, new_in: int) -> list[tuple[list[int], int]]:
    """Prompts that go on from one before or branch off within it; one in `new_in` is new. An id is written in octal
    digits, a branch each, so that it names its whole prefix."""
    rng = np.random.default_rng(seed)
    paths: list[list[int]] = []
    for _ in range(count):
        kind, new = rng.integers(new_in), [int(rng.integers(1, 7)) for _ in range(rng.integers(2, 8))]
        base = paths[rng.integers(len(paths))] if paths and kind else []
        paths.append(base + new if kind % 4 < 3 or not base else base[: rng.integers(1, len(base) + 1)] + new)
    named = [[int("1" + "".join(map(str, p[: k + 1])), 8) for k in range(len(p))] for p in paths]
    return [(ids, len(ids) * BLOCK) for ids in named]


def _text(ids: list[int]) -> str:
    """Four characters a token, alike for as long as the ids are."""
    return "".join(f"{oct(i)[-1]}{'abcdefg'[i % 7]}{i % 10**8:08d}".ljust(4 * BLOCK, chr(97 + i % 8)) for i in ids)


class Behind:
    """Servers that hold every answer until they are let go; which of them was sent each request."""

    def __init__(self, replicas: int) -> None:
        self.taken: list[int] = []
        self.replicas, self.go = replicas, asyncio.Event()

    async def start(self, stack: list[web.AppRunner]) -> list[str]:
        urls = []
        for replica in range(self.replicas):
            app = web.Application(client_max_size=2**24)
            app.router.add_post("/v1/completions", self._taking(replica))
            app.router.add_get("/health", self._well)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            stack.append(runner)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        return urls

    async def _well(self, _: web.Request) -> web.Response:
        return web.Response()

    def _taking(self, replica: int):
        async def take(request: web.Request) -> web.StreamResponse:
            await request.read()
            self.taken.append(replica)
            await self.go.wait()
            return web.json_response({"choices": []})

        return take


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _through_the_router(requests, replicas: int) -> list[int]:
    behind, runners, port = Behind(replicas), [], _free_port()
    urls = await behind.start(runners)
    command = [
        sys.executable, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port),
        "--prometheus-port", str(_free_port()), "--worker-urls", *urls, "--policy", "cache_aware",
        "--log-level", "error", "--cache-threshold", str(CACHE_THRESHOLD),
        "--balance-abs-threshold", str(BALANCE_ABSOLUTE), "--balance-rel-threshold", str(BALANCE_RELATIVE),
    ]  # fmt: skip
    router = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        async with ClientSession(connector=TCPConnector(limit=0)) as client:
            await _ready(client, f"http://127.0.0.1:{port}", replicas)
            sent = []
            for number, (ids, _) in enumerate(requests):
                body = {"model": "m", "prompt": _text(ids), "stream": False}
                sent.append(asyncio.create_task(client.post(f"http://127.0.0.1:{port}/v1/completions", json=body)))
                for _ in range(2000):
                    if len(behind.taken) > number:
                        break
                    await asyncio.sleep(0.005)
            behind.go.set()
            for answer in await asyncio.gather(*sent):
                answer.release()
    finally:
        router.kill()
        router.wait()
        for runner in runners:
            await runner.cleanup()
    return behind.taken


async def _ready(client: ClientSession, url: str, replicas: int) -> None:
    for _ in range(600):
        try:
            async with client.get(f"{url}/workers") as answer:
                if answer.status == 200 and len((await answer.json())["workers"]) == replicas:
                    return
        except OSError:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError("the router never had its workers")


@pytest.mark.skipif(importlib.util.find_spec("sglang_router") is None, reason="sglang-router has builds for Linux only")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(("seed", "new_in"), [(1, 4), (2, 80)], ids=["even", "uneven"])
def test_sglangs_router_sends_each_request_to_the_same_replica(routed, seed, new_in):
    """All in flight at once, until some replica has too many. Replicas are numbered as the router first used them."""
    requests = _trees(seed, 250, new_in)
    simulated = routed(requests, 3, TOGETHER)
    real = asyncio.run(_through_the_router(requests, 3))
    number = {replica: k for k, replica in enumerate(dict.fromkeys(real))}
    assert [number[replica] for replica in real] == simulated
    busiest = [np.cumsum([r == k for r in simulated]) for k in range(3)]
    unequal = np.max(busiest, axis=0) - np.min(busiest, axis=0)
    assert (unequal.max() > BALANCE_ABSOLUTE) == (new_in == 80)
