"""`fwopt replay` as a user runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fwopt.live import Replay

from .conftest import Running, running

RUN = [sys.executable, "-c", "from fwopt.cli.app import main; main()"]
Start = Callable[..., Running]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    lines = [{"arrival_s": i * 0.01, "prompt_tokens": 30 + i, "output_tokens": 5} for i in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def fwopt(*arguments: object, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


def test_it_finds_out_what_answers_and_reports_it(stub: Start, trace: Path, tmp_path: Path) -> None:
    server, out = stub(owner="vllm", gap_s=0.002), tmp_path / "r.jsonl.gz"
    done = fwopt("replay", trace, "--url", server.url, "--slo", "e2e:p99<30s", "--out", out)
    assert done.returncode == (1 if "INVALID" in done.stdout else 0), done.stderr
    late = re.findall("INVALID (.*?):", done.stdout)
    assert set(late) <= {"client lag", "clock lag", "do not use these numbers"}, "only a busy machine may spoil it"
    for words in ("stub", "(vllm, completions)", "kept   e2e:p99<30s", "40 of 40 requests finished", "length forced"):
        assert words in done.stdout
    replay = Replay.load(out)
    assert replay.header.endpoint.engine == "vllm"
    assert replay.header.endpoint.max_context_tokens == 4096
    assert replay.rows.token_events.tolist() == [5] * 40


def test_json_holds_what_text_says(stub: Start, trace: Path) -> None:
    server = stub(owner="vllm")
    done = fwopt("replay", trace, "--url", server.url, "--closed", 4, "--limit", 10, "--salt", "a", "--json")
    found = json.loads(done.stdout)
    assert found["metrics"]["finished"] == 10
    assert found["header"]["load"] == {"kind": "closed", "concurrency": 4}
    assert found["header"]["cache"]["salt"] == "a"
    assert found["send_lag"]["count"] == 10


REFUSED = {
    "no server": (("--url", "http://127.0.0.1:9"), "no server answers"),
    "two laws of arrival": (("--url", "URL", "--closed", "2", "--poisson", "3"), "got --closed and --poisson"),
    "a rate of nothing": (("--url", "URL", "--poisson", "0"), "--poisson: must be greater than 0"),
    "no range": (("--url", "URL", "--vocabulary", "5"), "--vocabulary must be two numbers"),
    "no cache state": (("--url", "URL", "--cache", "hot"), "--cache: must be 'cold', 'warm' or 'as is'"),
    "a limit a client cannot see": (("--url", "URL", "--slo", "queue:p99<1s"), "limit ttft instead"),
    "with /v1": (("--url", "URL/v1"), "without /v1"),
    "an engine nobody knows": (("--url", "URL", "--engine", "vlm"), "nearest: vllm"),
    "chat without a tokenizer": (("--url", "URL", "--api", "chat"), "--tokenizer"),
    "text of an unknown engine": (("--url", "URL"), "--engine"),
    "more than the trace has": (("--url", "URL", "--engine", "vllm", "--limit", "99"), "must be 1 to 40"),
    "a tokenizer that is none": (("--url", "URL", "--tokenizer", "TRACE"), "is no tokenizer.json"),
    "a key that is not there": (("--url", "URL", "--api-key-env", "NO_SUCH_KEY"), "no such environment variable"),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running() as server:
        yield server.url


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_one_line(url: str, trace: Path, name: str) -> None:
    arguments, words = REFUSED[name]
    done = fwopt("replay", trace, *(a.replace("URL", url).replace("TRACE", str(trace)) for a in arguments))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_an_existing_file_is_kept(stub: Start, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl.gz"
    out.write_text("mine")
    done = fwopt("replay", trace, "--url", stub(owner="vllm").url, "--out", out)
    assert done.returncode == 2
    assert "--force overwrites it" in done.stderr
    assert out.read_text() == "mine"


def test_a_wrong_model_is_said_and_is_no_success(stub: Start, trace: Path) -> None:
    done = fwopt("replay", trace, "--url", stub(owner="vllm").url, "--model", "gpt-2")
    assert done.returncode == 1
    assert "INVALID nothing finished" in done.stdout
    assert "HTTP 404" in done.stdout
    assert "Traceback" not in done.stderr


def test_ctrl_c_prints_what_there_is(stub: Start, tmp_path: Path) -> None:
    trace, out = tmp_path / "long.jsonl", tmp_path / "r.jsonl.gz"
    lines = [{"arrival_s": i * 0.01, "prompt_tokens": 30, "output_tokens": 5} for i in range(6000)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = [*RUN, "replay", str(trace), "--url", stub(owner="vllm", gap_s=0.01).url, "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        until = time.monotonic() + 60
        partial = tmp_path / "r.jsonl.gz.partial"
        while not (partial.exists() and partial.stat().st_size > 40_000):
            assert time.monotonic() < until
            time.sleep(0.05)
        client.send_signal(signal.SIGINT)
        stdout, stderr = client.communicate(timeout=60)
    assert client.returncode == 130
    assert "INVALID interrupted: stopped before its end" in stdout
    assert "Traceback" not in stderr
    assert len(Replay.load(out).records) < 6000
