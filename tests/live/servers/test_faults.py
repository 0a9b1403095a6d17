"""Real engines that fail: each failure is one kind, with the engine's own words, and leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fwopt.live.servers.base import ServerError
from fwopt.live.servers.keeper import descendants
from fwopt.spec.candidate import Candidate, Gguf

from .conftest import BATCHING, needs

pytestmark = [pytest.mark.live, pytest.mark.alone, pytest.mark.slow]
ENGINES = [pytest.param(name, marks=needs(name)) for name in ("vllm", "llamacpp", "fwopt", "sglang")]
LLAMA = [pytest.param("llamacpp", marks=needs("llamacpp"))]
VLLM = [pytest.param("vllm", marks=needs("vllm"))]


def _wait_for(condition, what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


def _stopped(pid: int) -> bool:
    """Whether none of its threads runs any more: until then one may still answer."""
    states = [task.read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(state == "T" for state in states)


def _exists(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def _fails_to_start(server) -> ServerError:
    """The error of a start that must fail; checks that no process is left."""
    with pytest.raises(ServerError) as failed:
        server.start()
    assert server.pids() == []
    return failed.value


@pytest.mark.parametrize("engine", ENGINES)
def test_a_flag_it_does_not_know_is_refused(engine, prepare):
    error = _fails_to_start(prepare(engine, arguments=("--no-such-flag",)))
    assert error.failure == "refused"
    assert "no-such-flag" in error.last_words
    assert error.log
    assert "no-such-flag" in error.log.read_text()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_is_not_there_is_refused(engine, prepare, tmp_path):
    error = _fails_to_start(prepare(engine, model=str(tmp_path / "nowhere")))
    assert error.failure == "refused"
    assert "nowhere" in error.last_words


@pytest.mark.parametrize("engine", LLAMA)
def test_a_gguf_that_is_not_there_says_how_it_is_made(engine, prepare, tmp_path):
    candidate = Candidate(quantization=Gguf(type="Q5_K_M"), batching=BATCHING)
    error = _fails_to_start(prepare(engine, candidate, model=str(tmp_path)))
    assert error.failure == "refused"
    assert "make it: llama-quantize" in error.last_words
    assert "Q5_K_M" in error.last_words


@pytest.mark.parametrize("engine", LLAMA)
def test_a_file_that_is_no_model_is_refused_in_its_own_words(engine, prepare, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really" * 100)
    error = _fails_to_start(prepare(engine, model=str(tmp_path / "broken.gguf")))
    assert error.failure == "refused"
    assert "this GGUF file is version" in error.last_words


@pytest.mark.parametrize("engine", LLAMA)
def test_a_value_it_cannot_read_is_refused(engine, prepare):
    error = _fails_to_start(prepare(engine, env={"LLAMA_ARG_BATCH": "many"}))
    assert error.failure == "refused"
    assert "LLAMA_ARG_BATCH" in error.last_words


@pytest.mark.parametrize("engine", LLAMA)
def test_settings_it_did_not_take_are_noticed(engine, prepare):
    """llama-server ignores a variable that it does not know; here the model's own context is the shorter one."""
    longest = BATCHING.model_copy(update={"max_model_len": 16384, "max_num_seqs": 1})
    candidate = Candidate(quantization=Gguf(type="Q4_0"), batching=longest)
    error = _fails_to_start(prepare(engine, candidate))
    assert error.failure == "refused"
    assert "1 slots of 8192 tokens where llama-server.env says 1 of 16384" in error.last_words


@pytest.mark.parametrize("engine", VLLM)
def test_a_kv_cache_too_large_for_the_memory_is_out_of_memory(engine, prepare):
    flags = ("--enforce-eager", "--kv-cache-memory-bytes", "4T")
    error = _fails_to_start(prepare(engine, arguments=flags))
    assert error.failure == "out of memory"
    assert "less than requested memory for kv" in error.last_words
    rejected = error.rejected(Candidate())
    assert (rejected.rung, rejected.candidate_id) == ("live", Candidate().id)
    assert rejected.reason.startswith("vLLM out of memory: ValueError: Available memory")


@pytest.mark.parametrize("engine", LLAMA)
def test_a_kv_cache_beyond_the_address_space_is_out_of_memory(engine, prepare):
    """The limit of this process is inherited: the allocation fails, as it would on a machine without overcommit."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, before[1]))
    try:
        huge = BATCHING.model_copy(update={"max_model_len": 8192, "max_num_seqs": 200})
        error = _fails_to_start(prepare(engine, Candidate(quantization=Gguf(type="Q4_0"), batching=huge)))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert error.failure == "out of memory"
    assert "insufficient memory (attempted to allocate 36000.00 MB)" in error.last_words


@pytest.mark.parametrize("engine", ENGINES)
def test_never_ready_is_said_with_the_last_line(engine, prepare):
    error = _fails_to_start(prepare(engine, ready_timeout_s=0.0))
    assert error.failure == "never ready"
    assert "not within 0 s; its last line: " in error.last_words


@pytest.mark.parametrize("engine", LLAMA)
def test_a_server_killed_while_it_ran_is_gone(engine, prepare):
    server = prepare(engine)
    with server:
        pids = server.pids()
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(ServerError, match=r"llama.cpp gone: exit status 137") as failed:
            server.check()
        assert failed.value.failure == "gone"
    assert _exists(pids) == []


@pytest.mark.parametrize("engine", LLAMA)
def test_a_server_that_stops_answering_is_hung_and_still_ends(engine, prepare):
    server = prepare(engine, answer_timeout_s=1.0, stop_grace_s=0.5)
    with server:
        pids = server.pids()
        os.kill(pids[0], signal.SIGSTOP)
        _wait_for(lambda: _stopped(pids[0]), "every thread stopped")
        with pytest.raises(ServerError, match=r"llama.cpp hung: no answer within 1 s") as failed:
            server.check()
        assert failed.value.failure == "hung"
    assert _exists(pids) == []


@pytest.mark.parametrize("engine", VLLM)
def test_an_engine_that_died_behind_its_front_end_is_gone(engine, prepare):
    """First stopped: the front end still says it is well, and only a token shows that the engine hangs."""
    server = prepare(engine, answer_timeout_s=10.0)
    with server:
        pids = server.pids()
        core = next(p for p in pids if b"EngineCore" in Path(f"/proc/{p}/cmdline").read_bytes())
        os.kill(core, signal.SIGSTOP)
        server.check()
        with pytest.raises(ServerError) as hung:
            server.check(generate=True)
        os.kill(core, signal.SIGKILL)
        _wait_for(lambda: core not in server.pids(), "the core ended")
        with pytest.raises(ServerError) as gone:
            server.check()
    assert (hung.value.failure, gone.value.failure) == ("hung", "gone")
    assert _exists(pids) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_killing_fwopt_leaves_no_process_of_the_engine(engine, prepare, tmp_path):
    """Killed with -9 while the engine starts: what it has started by then, threads, workers and all, goes too."""
    server = prepare(engine)
    launch = server.launch
    code = (
        "from pathlib import Path; from fwopt.live.servers import Launch, make_server\n"
        f"make_server({engine!r}, Launch(folder=Path({str(launch.folder)!r}), scratch=Path({str(tmp_path)!r}), "
        f"model={launch.model!r}, arguments={launch.arguments!r})).start()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code])
    try:
        log = tmp_path / "engine.log"
        _wait_for(lambda: log.exists() and log.read_text().count("\n") > 1, "the engine has begun to speak")
        pids = descendants(owner.pid)
        assert len(pids) >= 2
        owner.kill()
        owner.wait()
        _wait_for(lambda: not _exists(pids), "every process ended")
    finally:
        owner.kill()
        owner.wait()
