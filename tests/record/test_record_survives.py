"""Kill -9, full disks, rotation, restarts: what is in the file afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import time

import aiohttp
import pytest

from fwopt.workload import read

pytestmark = pytest.mark.alone

CHAT = "/v1/chat/completions"


def body(number: int, stream: bool = False, **stub) -> dict:
    messages = [{"role": "user", "content": f"request {number} " * 30}]
    return {"model": "m", "messages": messages, "max_tokens": 5, "stream": stream, "stub": stub}


async def load(url: str, clients: int, seconds: float, done: list[str]) -> None:
    """Closed loop; notes the X-Mark of each reply that a client saw end."""
    deadline = time.monotonic() + seconds

    async def client(me: int) -> None:
        number = 0
        async with aiohttp.ClientSession() as session:
            while time.monotonic() < deadline:
                number += 1
                name = f"model-{me}-{number}"
                try:
                    async with session.post(
                        url + CHAT, json=body(number, stream=number % 2 == 0) | {"model": name}
                    ) as reply:
                        data = await reply.read()
                except aiohttp.ClientError:
                    return
                if b"[DONE]" in data or b'"usage"' in data:
                    done.append(name)

    await asyncio.gather(*(client(i) for i in range(clients)))


def test_kill_9_under_load_loses_no_reply_that_a_client_saw_end(stub, start) -> None:
    for attempt in range(3):
        recording = start(stub, "--rotate", "40KB", out=None)
        seen: list[str] = []

        async def run(recording=recording, seen=seen) -> None:
            traffic = asyncio.ensure_future(load(recording.url, 8, 20, seen))
            await asyncio.sleep(1.0 + 0.37 * attempt)  # noqa: B023
            os.kill(recording.process.pid, signal.SIGKILL)
            await traffic

        asyncio.run(run())
        recording.stop()
        assert len(seen) > 50
        recorded = set()
        for file in recording.out.parent.glob("*workload*"):
            lines = file.read_bytes().split(b"\n")
            recorded |= {json.loads(line)["model"] for line in lines[1:-1]}
            assert len(read(file, format="fwopt").workload)
            file.unlink()
        assert not set(seen) - recorded


def test_a_torn_last_line_is_left_out_by_the_reader_and_cut_off_at_restart(stub, start) -> None:
    recording = start(stub)
    asyncio.run(load(recording.url, 1, 0.3, []))
    recording.stop()
    whole = recording.out.read_bytes()
    rows = len(recording.rows())
    recording.out.write_bytes(whole + whole.splitlines(keepends=True)[-1][:-20])
    result = read(recording.out)
    assert len(result.workload) == rows
    assert "torn off" in result.notes[0]
    again = start(stub)
    assert "cut off a torn last line" in again.log
    assert again.out.read_bytes() == whole
    asyncio.run(load(again.url, 1, 0.3, []))
    again.stop()
    assert again.out.read_bytes().startswith(whole)
    result = read(again.out)
    assert len(result.workload) > rows
    assert not result.skipped


def test_a_torn_line_in_another_trace_is_an_error(tmp_path) -> None:
    from fwopt.errors import TraceError

    line = '{"arrival_s": 1, "prompt_tokens": 4, "output_tokens": 4}\n'
    (tmp_path / "t.jsonl").write_text(line * 2 + line[:-9])
    with pytest.raises(TraceError, match=":3: line: must be one JSON object"):
        read(tmp_path / "t.jsonl")
    (tmp_path / "t.jsonl").write_text('{"schema_version": 1, "order": "completion"}\n' + line + line[:-9] + "\n" + line)
    with pytest.raises(TraceError, match=":3: line"):
        read(tmp_path / "t.jsonl")


def test_rotation_leaves_whole_files_under_their_names(stub, start) -> None:
    recording = start(stub, "--rotate", "20KB")
    seen: list[str] = []
    asyncio.run(load(recording.url, 4, 1.5, seen))
    recording.stop()
    folder = recording.out.parent
    names = sorted(p.name for p in folder.iterdir())
    complete = [name for name in names if name != "workload.jsonl"]
    assert complete == [f"workload.{i:06}.jsonl" for i in range(1, len(complete) + 1)]
    assert len(complete) >= 3
    recorded = []
    for name in complete:
        assert (folder / name).stat().st_size <= 20_000
        assert read(folder / name).workload.block_tokens
        recorded += [json.loads(line)["model"] for line in (folder / name).read_text().splitlines()[1:]]
    if recording.out.exists():
        recorded += [row["model"] for row in recording.rows()]
    assert sorted(recorded) == sorted(seen)


def test_a_conversation_goes_on_after_rotation_without_pointing_into_another_file(stub, start) -> None:
    recording = start(stub, "--rotate", "1s")

    async def run() -> None:
        history = [{"role": "user", "content": "hi"}]
        async with aiohttp.ClientSession() as session:
            for _ in range(4):
                async with session.post(recording.url + CHAT, json={"model": "m", "messages": history}) as reply:
                    message = (await reply.json())["choices"][0]["message"]
                history = [*history, message, {"role": "user", "content": "go on"}]
                await asyncio.sleep(0.6)

    asyncio.run(run())
    recording.stop()
    files = sorted(recording.out.parent.glob("workload*.jsonl"))
    assert len(files) >= 2
    sessions = set()
    for file in files:
        read(file)
        sessions |= {json.loads(line)["session_id"] for line in file.read_text().splitlines()[1:]}
    assert len(sessions) == 1


def test_a_file_that_cannot_grow_is_reported_and_serving_goes_on(stub, start) -> None:
    recording = start(stub)
    asyncio.run(load(recording.url, 1, 0.3, []))
    room = recording.out.stat().st_size + 700  # in the middle of a line
    _, hard = resource.prlimit(recording.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(recording.process.pid, resource.RLIMIT_FSIZE, (room, hard))
    seen: list[str] = []
    asyncio.run(load(recording.url, 2, 0.5, seen))
    assert len(seen) > 5
    assert "serving goes on" in recording.log
    assert recording.log.count("cannot be written") == 1
    rows = len(read(recording.out).workload)
    resource.prlimit(recording.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    asyncio.run(load(recording.url, 1, 0.3, []))
    assert recording.stop() == 0
    assert "recording again" in recording.log
    assert "LOST" in recording.log
    result = read(recording.out)
    assert len(result.workload) > rows
    assert not result.notes[0].startswith("line")


def test_a_full_disk_is_reported_and_serving_goes_on(stub, start, tmp_path) -> None:
    """A real, small file system, where one can be mounted."""
    import subprocess

    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        recording = start(stub, out=small / "workload.jsonl")
        seen: list[str] = []
        asyncio.run(load(recording.url, 4, 2, seen))
        assert recording.stop() == 0
        assert "No space left on device" in recording.log
        result = read(small / "workload.jsonl")
        assert 10 < len(result.workload) < len(seen)
        assert not result.skipped
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_sigterm_lets_open_replies_end_and_takes_no_new_ones(stub, start) -> None:
    recording = start(stub)

    async def run() -> bytes:
        async with aiohttp.ClientSession() as session:
            async with session.post(recording.url + CHAT, json=body(1, stream=True, gap_s=0.3)) as reply:
                await reply.content.readany()
                recording.tell_to_stop()
                rest = await reply.read()
            with pytest.raises(aiohttp.ClientError):
                await session.post(recording.url + CHAT, json=body(2))
            return rest

    assert b"[DONE]" in asyncio.run(run())
    assert recording.stop() == 0
    (row,) = recording.rows()
    assert row["output_tokens"] == 5
    assert "cut" not in row


def test_replies_that_outlast_the_drain_are_broken_off_and_say_so(stub, start) -> None:
    recording = start(stub, "--drain-s", "0.2")

    async def run() -> None:
        slow = body(1, stream=True, gap_s=0.5)
        async with aiohttp.ClientSession() as session, session.post(recording.url + CHAT, json=slow) as reply:
            await reply.content.readany()
            await asyncio.sleep(0.7)
            recording.tell_to_stop()
            with pytest.raises(aiohttp.ClientError):
                await reply.read()

    asyncio.run(run())
    assert recording.stop() == 0
    (row,) = recording.rows()
    assert row["cut"] == "recorder"
    assert row["estimated"] == ["prompt_tokens", "output_tokens"]
    assert "broke off 1 replies" in recording.log


def test_two_recorders_cannot_share_a_file(stub, start, tmp_path) -> None:
    import subprocess
    import sys

    recording = start(stub)
    command = [sys.executable, "-m", "fwopt", "record", "--upstream", stub, "--port", "0", "--out"]
    for out, why in (
        (str(recording.out), "another recorder writes to it"),
        (str(tmp_path), "must be a file"),
        (str(tmp_path / "no" / "t.jsonl"), "does not exist"),
        (str(tmp_path / "t.gz"), "plain file"),
    ):
        done = subprocess.run([*command, out], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done.stderr
        assert why in done.stderr
        assert done.stderr.count("\n") == 1
    (tmp_path / "other.jsonl").write_text('{"schema_version": 1}\n{"arrival_s": 1}\n')
    done = subprocess.run([*command, str(tmp_path / "other.jsonl")], capture_output=True, text=True, timeout=60)
    assert "name another --out" in done.stderr
    assert (tmp_path / "other.jsonl").read_text() == '{"schema_version": 1}\n{"arrival_s": 1}\n'
