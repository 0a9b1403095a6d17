"""What a proxy owes both sides: headers, bodies, errors, disconnects."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest

from fwopt.workload import read

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "tell me more " * 20}]


def test_other_paths_pass_untouched(stub, start) -> None:
    recording = start(stub)
    data = bytes(range(256)) * 20_000

    async def pieces():
        for at in range(0, len(data), 99_999):
            yield data[at : at + 99_999]

    async def run() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            url = aiohttp.client.URL(recording.url + "/any/p%20a%2Fth?q=%7Ba%7D&k=1", encoded=True)
            for body in (BytesIO(data), pieces()):
                headers = {"X-Mine": "1", "Connection": "X-Drop", "X-Drop": "gone", "User-Agent": "me"}
                async with session.put(url, data=body, headers=headers) as reply:
                    assert reply.status == 203
                    assert await reply.read() == data
                    was = {name[6:]: value for name, value in reply.headers.items() if name.startswith("X-Was-")}
                    assert reply.headers["X-Path"] == "/any/p%20a%2Fth?q=%7Ba%7D&k=1"
                    assert reply.headers["Set-Cookie"] == "a=b"
                    assert reply.headers["Content-Type"] == "application/x-echo"
                    assert "X-Hop" not in reply.headers
                assert was["X-Mine"] == "1"
                assert was["User-Agent"] == "me"
                assert was["Host"] == stub.removeprefix("http://")
                assert "X-Drop" not in was
            async with session.head(recording.url + "/h") as reply:
                assert reply.headers["Content-Length"] == "1234"
            async with session.options(recording.url + "/o") as reply:
                assert reply.headers["X-Method"] == "OPTIONS"
            async with session.get(recording.url + "/v1/models") as reply:
                assert (await reply.json())["data"][0]["id"] == "base"

    asyncio.run(run())
    assert recording.rows() == []


def test_keep_alive_and_pipelining_on_one_connection(stub, start) -> None:
    recording = start(stub)
    host, port = recording.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "m", "messages": MESSAGES}).encode()
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body)
    chunked = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" % CHAT.encode()
    chunked += b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (9, body[:9], len(body) - 9, body[9:])
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(request * 3 + chunked)
        data = b""
        while piece := connection.recv(65536):
            data += piece
    assert data.count(b"HTTP/1.1 200 OK") == 4
    rows = recording.rows()
    assert len(rows) == 4
    assert len({tuple(row["prefix_blocks"]) for row in rows}) == 1


def test_compressed_bodies_both_ways(stub, start) -> None:
    recording = start(stub)
    body = {"model": "m", "messages": MESSAGES, "stub": {"compress": True}}

    async def run() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            packed = gzip.compress(json.dumps(body).encode())
            headers = {
                "Content-Encoding": "gzip",
                "Accept-Encoding": "br, gzip;q=0.5",
                "Content-Type": "application/json",
            }
            async with session.post(recording.url + CHAT, data=packed, headers=headers) as reply:
                assert reply.headers["Content-Encoding"] == "gzip"
                assert b"usage" in gzip.decompress(await reply.read())

    asyncio.run(run())
    (row,) = recording.rows()
    assert row["output_tokens"] == 5
    assert "estimated" not in row


def test_upstream_errors_are_passed_on_and_recorded_with_their_status(stub, start) -> None:
    recording = start(stub)
    sent = [
        {"stub": {"status": 500}}, {"stub": {"status": 429}, "stream": True}, {"stub": {"no_usage": True}}, {"n": 3},
        {"stub": {"break_after": 0}, "stream": True}, {"stub": {"break_after": 3}, "stream": True},
    ]  # fmt: skip
    found: list[object] = []

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            for extra in sent:
                try:
                    async with session.post(
                        recording.url + CHAT, json={"model": "m", "messages": MESSAGES} | extra
                    ) as reply:
                        await reply.read()
                        assert "Content-Length" in reply.headers
                        found.append(reply.status)
                except aiohttp.ClientError:
                    found.append("broken")
            async with session.post(recording.url + CHAT, data=b"no json") as reply:
                found.append(reply.status)

    asyncio.run(run())
    assert found == [500, 429, 200, 200, "broken", "broken", 400]
    rows = recording.rows()
    assert [row.get("left_out") for row in rows] == [
        "refused",
        "refused",
        "no usage",
        "several answers",
        "broken",
        None,
    ]
    assert [row.get("status") for row in rows[:3]] == [500, 429, 200]
    assert rows[-1]["cut"] == "upstream"
    assert rows[-1]["output_tokens"] == 2
    assert recording.stop() == 0
    assert "1 not readable" in recording.log
    assert any("broken off by the upstream" in note for note in read(recording.out).notes)


def test_no_server_is_a_502_in_json_and_a_note(start, unused_port) -> None:
    recording = start(f"http://127.0.0.1:{unused_port}")

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            for path in (CHAT, "/v1/models", "/health?key=SECRET"):
                body = {"model": "m", "messages": MESSAGES}
                async with session.post(recording.url + path, json=body) as reply:
                    assert reply.status == 502
                    error = (await reply.json())["error"]
                    assert "cannot be reached: Connect" in error["message"]
                    assert "SECRET" not in error["message"]

    asyncio.run(run())
    (row,) = recording.rows()
    assert row["left_out"] == "unreachable"


@pytest.fixture
def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_client_that_leaves_ends_the_request_at_the_server_too(stub, start) -> None:
    recording = start(stub)

    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            body = {"model": "m", "messages": MESSAGES, "max_tokens": 50, "stream": True}
            async with session.post(recording.url + CHAT, json=body | {"stub": {"gap_s": 0.1}}) as reply:
                for _ in range(4):
                    await reply.content.readany()
            waiting = session.post(recording.url + CHAT, json=body | {"stub": {"delay_s": 30}})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting, 0.3)
            for _ in range(100):
                await asyncio.sleep(0.05)
                if len(recording.rows()) == 2:
                    break

    asyncio.run(run())
    first, second = recording.rows()
    assert first["cut"] == "client"
    assert 1 <= first["output_tokens"] < 50
    assert first["estimated"] == ["prompt_tokens", "output_tokens"]
    assert second["left_out"] == "disconnected"
    assert recording.stop() == 0
    assert "Traceback" not in recording.log


def test_a_slow_client_slows_the_server_down_instead_of_filling_memory(stub, start) -> None:
    recording = start(stub)
    host, port = recording.url.removeprefix("http://").split(":")
    size = 300_000_000
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /big HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        connection.settimeout(2)
        sent, piece = 0, bytes(1 << 20)
        try:
            while sent < size:
                sent += connection.send(piece)
        except TimeoutError:  # nobody reads the echo, so at some point nothing more is taken
            pass
        assert sent < size / 4
        resident = int(Path(f"/proc/{recording.process.pid}/statm").read_text().split()[1]) * 4096
        assert resident < 200_000_000


def test_bodies_too_large_to_read_pass_through(stub, start, tmp_path) -> None:
    recording = start(stub)
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * (70 << 20)}]}

    async def pieces(data: bytes):
        for at in range(0, len(data), 1 << 20):
            yield data[at : at + (1 << 20)]

    async def run() -> None:
        data = json.dumps(body).encode()
        async with aiohttp.ClientSession() as session:
            for headers in ({"Content-Length": str(len(data))}, {}):
                async with session.post(recording.url + CHAT, data=pieces(data), headers=headers) as reply:
                    assert reply.status == 200, recording.log
                    assert (await reply.json())["usage"]["completion_tokens"] == 5

    asyncio.run(run())
    assert recording.rows() == []
    recording.stop()
    assert "2 not readable" in recording.log


def test_a_kept_alive_connection_that_the_server_closed_costs_no_request(start) -> None:
    """llama.cpp's server and others drop connections that clients still hold open."""
    server = subprocess.Popen([sys.executable, "-c", ONE_REPLY_A_CONNECTION], stdout=subprocess.PIPE, text=True)
    try:
        recording = start(f"http://127.0.0.1:{server.stdout.readline().strip()}")

        async def run() -> list[int]:
            found = []
            async with aiohttp.ClientSession() as session:
                for _ in range(10):
                    async with session.post(recording.url + CHAT, json={"model": "m", "messages": MESSAGES}) as reply:
                        await reply.read()
                        found.append(reply.status)
            return found

        assert asyncio.run(run()) == [200] * 10
        assert len(recording.rows()) == 10
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


ONE_REPLY_A_CONNECTION = """
import socket, threading, json
listener = socket.create_server(("127.0.0.1", 0)); print(listener.getsockname()[1], flush=True)
reply = json.dumps({"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 2}})
def serve(c):
    data = c.recv(1 << 20)
    c.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n%s"
              % (len(reply), reply.encode()))
    c.recv(1 << 20)  # the next request comes, and gets no answer
    c.close()
while True:
    c, _ = listener.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""
