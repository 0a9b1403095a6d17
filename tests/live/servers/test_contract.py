"""What every server keeps: one suite, run on each engine that is here, started from its exported files."""

from __future__ import annotations

from pathlib import Path

import pytest

from fwopt.errors import InputError
from fwopt.live.servers import SERVERS, make_server
from fwopt.live.servers.attached import AttachedServer
from fwopt.live.servers.base import Launch, ServerError
from fwopt.live.servers.identity import fetch

from .conftest import BATCHING, needs

pytestmark = [pytest.mark.live, pytest.mark.slow]


@pytest.fixture(scope="module", params=[pytest.param(name, marks=needs(name)) for name in SERVERS])
def running(request, prepare):
    """(engine, server, endpoint), started once for the whole suite."""
    server = prepare(request.param)
    with server as endpoint:
        yield request.param, server, endpoint


def test_it_generates_what_is_asked(running):
    _, _, endpoint = running
    body = {"model": endpoint.model, "prompt": "The capital of France is", "max_tokens": 5, "ignore_eos": True}
    answer = fetch(f"{endpoint.url}/v1/completions", body=body, timeout_s=120)
    assert b'"completion_tokens":5' in answer.replace(b" ", b"")


def test_it_says_what_it_is(running):
    engine, server, endpoint = running
    assert endpoint.engine == engine
    assert endpoint.max_context_tokens == BATCHING.max_model_len
    assert server.identity.engine == engine
    assert server.identity.version


def test_it_passes_its_check(running):
    _, server, _ = running
    server.check()
    server.check(generate=True)


def test_it_listens_on_loopback_only(running):
    _, server, endpoint = running
    port = int(endpoint.url.rpartition(":")[2])
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{server.pids()[0]}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    ]
    assert [address for address in listening if int(address.rpartition(":")[2], 16) == port] == [f"0100007F:{port:04X}"]


def test_it_works_in_its_scratch_folder_with_a_safe_path(running):
    _, server, _ = running
    pid = server.pids()[0]
    assert Path(f"/proc/{pid}/cwd").readlink() == server.launch.scratch
    assert b"PYTHONSAFEPATH=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def test_another_process_attaches_and_leaves_it_running(running):
    engine, server, endpoint = running
    attached = AttachedServer(f"{endpoint.url}/v1")
    with attached as found:
        assert (found.url, found.model, found.engine) == (endpoint.url, endpoint.model, engine)
        assert found.max_context_tokens == endpoint.max_context_tokens
        assert attached.identity
        assert attached.identity.version == server.identity.version
        attached.check(generate=True)
    server.check()


def test_a_model_it_does_not_serve_is_refused(running):
    _, _, endpoint = running
    with pytest.raises(InputError, match=r"does not serve 'other'; it serves "):
        AttachedServer(endpoint.url, model="other").start()


def test_a_taken_port_is_refused_before_anything_starts(running, prepare):
    engine, _, endpoint = running
    port = int(endpoint.url.rpartition(":")[2])
    second = prepare(engine, port=port)
    with pytest.raises(ServerError, match=f"refused: port {port} of 127.0.0.1 is taken") as failed:
        second.start()
    assert failed.value.failure == "refused"
    assert second.pids() == []


@pytest.mark.parametrize("engine", [pytest.param(name, marks=needs(name)) for name in SERVERS])
def test_missing_files_and_executables_are_one_line(engine, tmp_path, monkeypatch):
    server = make_server(engine, Launch(folder=tmp_path, scratch=tmp_path / "scratch"))
    with pytest.raises(InputError, match=r"write it with fwopt export"):
        server.start()
    server.stop()


def test_stopping_ends_every_process_and_may_be_repeated(running):
    """Last of the suite: ends the server that the others use."""
    _, server, endpoint = running
    pids = server.pids()
    assert pids
    server.stop()
    server.stop()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    with pytest.raises(ServerError, match="gone"):
        server.check()
    with pytest.raises(ServerError, match=r"never ready|gone"):
        AttachedServer(endpoint.url, answer_timeout_s=2.0).start()
