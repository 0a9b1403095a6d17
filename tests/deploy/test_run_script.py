"""run.sh is executed, with a recording stand-in for the `vllm` command and the real nginx where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fwopt.deploy import TARGETS, write
from fwopt.spec.candidate import W4A16, Batching, Bf16, Candidate, Gguf, Parallelism

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="run.sh needs bash")
needs_sglang_router = pytest.mark.skipif(
    importlib.util.find_spec("sglang_router") is None, reason="sglang-router has builds for Linux only"
)
needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")

STAND_IN = """\
#!{python}
# Writes down how it was started; answers each request with its port, and holds `hold`'s stream until `release` exists.
import http.server, json, os, pathlib, sys, time
here = pathlib.Path(__file__).parent
port = int(sys.argv[sys.argv.index("--port") + 1])
start = {{"argv": sys.argv[1:], "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
          "w4a8": os.environ.get("VLLM_CPU_INT4_W4A8")}}
(here / f"start-{{port}}.json").write_text(json.dumps(start))

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def do_POST(self):
        hold = b"hold" in self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for text in (f"{{port}}\\n", "end\\n"):
            self.wfile.write(f"{{len(text):x}}\\r\\n{{text}}\\r\\n".encode())
            self.wfile.flush()
            while hold and text != "end\\n" and not (here / "release").exists():
                time.sleep(0.01)
        self.wfile.write(b"0\\r\\n\\r\\n")
    def log_message(self, *_): pass

if not (here / "dies").exists():
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


def _free_ports(count: int) -> int:
    """First of `count + 1` neighbouring ports that nobody listens on."""
    for first in range(20000 + os.getpid() % 5000, 60000, 97):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count + 1):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


@pytest.fixture
def deployed(make_plan, tmp_path):
    """Write a plan's files and a stand-in `vllm`, on free ports. Returns (folder, environment, public port)."""

    def deploy(candidate: Candidate, target: str = "vllm", **plan) -> tuple[Path, dict[str, str], int]:
        write(make_plan(candidate, **plan), tmp_path, target)
        folder = tmp_path / target
        port = _free_ports(candidate.parallelism.replicas)
        for name in ("fwopt.env", "nginx.conf"):
            path = folder / name
            if path.exists():
                moved = re.sub(r"\b80(0\d)\b", lambda found: str(port + int(found[1])), path.read_text())
                path.write_text(moved)
        vllm = tmp_path / "bin" / "vllm"
        vllm.parent.mkdir()
        vllm.write_text(STAND_IN.format(python=sys.executable))
        vllm.chmod(0o755)
        environment = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "FWOPT_MODEL")}
        environment["PATH"] = f"{vllm.parent}{os.pathsep}{environment['PATH']}"
        return folder, environment, port

    return deploy


@contextmanager
def _running(folder: Path, environment: dict[str, str], *arguments: str):
    command = [str(folder / "run.sh"), *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _wait_for(condition, what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError(f"never happened: {what}")


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def _starts(tmp_path: Path) -> dict[int, dict]:
    return {int(p.stem.split("-")[1]): json.loads(p.read_text()) for p in (tmp_path / "bin").glob("start-*.json")}


def _post(port: int, body: bytes = b"hold"):
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/completions", data=body, timeout=30)


@pytest.mark.parametrize("target", TARGETS)
def test_the_script_is_clean_for_bash_and_shellcheck(make_plan, tmp_path, target):
    weights = Gguf() if target == "llamacpp" else Bf16()
    write(make_plan(Candidate(quantization=weights)), tmp_path, target)
    subprocess.run(["bash", "-n", str(tmp_path / target / "run.sh")], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(tmp_path / target / "run.sh")], check=True)


def test_one_replica_needs_no_router_and_takes_the_public_port(deployed, tmp_path):
    folder, environment, port = deployed(Candidate(parallelism=Parallelism(tp=2)))
    with _running(folder, environment):
        _wait_for(lambda: _accepts(port), "the replica listens")
        assert _starts(tmp_path)[port] == {
            "argv": ["serve", "--config", str(folder / "config.yaml"), "--port", str(port)],
            "gpus": "0,1",
            "w4a8": "0",
        }
    assert not _accepts(port)


def test_a_folder_named_from_elsewhere_is_not_looked_for_here(deployed, tmp_path, monkeypatch):
    """A relative model path means something only where the plan was made."""
    folder, environment, port = deployed(Candidate(), name="./models/my model")
    done = subprocess.run([folder / "run.sh"], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, _starts(tmp_path)) == (2, {})
    assert "./models/my model, seen from where the plan was made" in done.stderr
    (tmp_path / "models" / "my model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with _running(folder, environment):
        _wait_for(lambda: _accepts(port), "the replica listens")


def test_a_replica_by_number_takes_its_own_share_of_the_gpus(deployed, tmp_path):
    folder, environment, port = deployed(Candidate(parallelism=Parallelism(tp=2, replicas=3)))
    with _running(folder, environment | {"CUDA_VISIBLE_DEVICES": "7,5,3,1,GPU-a,GPU-b"}, "2"):
        _wait_for(lambda: _accepts(port + 3), "replica 2 listens")
    assert {port: start["gpus"] for port, start in _starts(tmp_path).items()} == {port + 3: "GPU-a,GPU-b"}


@pytest.mark.parametrize(
    ("arguments", "extra", "message"),
    [
        (["3"], {}, "replica number must be 0 to 2, got 3"),
        (["-1"], {}, "replica number must be 0 to 2"),
        (["2"], {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "needs GPUs 4 to 5"),
        ([], {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "needs GPUs 4 to 5"),
        ([], {"NGINX": "no-such-nginx"}, "needs nginx"),
    ],
)
def test_what_cannot_start_says_so_and_starts_nothing(deployed, tmp_path, arguments, extra, message):
    folder, environment, _ = deployed(Candidate(parallelism=Parallelism(tp=2, replicas=3)))
    done = subprocess.run([folder / "run.sh", *arguments], env=environment | extra, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert _starts(tmp_path) == {}


def test_a_router_that_is_not_installed_is_asked_for_by_version(deployed, tmp_path):
    folder, environment, _ = deployed(Candidate(parallelism=Parallelism(replicas=2), router="cache_aware"))
    python = environment | {"ROUTER_PYTHON": "no-such-python"}
    for arguments in ([], ["router"]):
        done = subprocess.run([folder / "run.sh", *arguments], env=python, capture_output=True, text=True)
        assert (done.returncode, _starts(tmp_path)) == (2, {})
        assert "pip install sglang-router==0.3.2, or set ROUTER_PYTHON" in done.stderr


def test_converted_weights_are_never_replaced_by_other_ones(deployed, tmp_path):
    folder, environment, port = deployed(Candidate(quantization=W4A16()))
    refused = subprocess.run([folder / "run.sh"], env=environment, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "FWOPT_MODEL" in refused.stderr
    with _running(folder, environment | {"FWOPT_MODEL": "/weights/qwen w4a16"}):
        _wait_for(lambda: _accepts(port), "the replica listens")
    assert _starts(tmp_path)[port]["argv"][:3] == ["serve", "/weights/qwen w4a16", "--config"]


@needs_nginx
@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
def test_replicas_behind_the_real_router(deployed, tmp_path, policy):
    folder, environment, port = deployed(Candidate(parallelism=Parallelism(tp=2, replicas=3), router=policy))
    with _running(folder, environment) as process:
        _wait_for(lambda: _accepts(port) or process.poll() is not None, "the router listens")
        assert {p: s["gpus"] for p, s in _starts(tmp_path).items()} == {
            port + 1: "0,1",
            port + 2: "2,3",
            port + 3: "4,5",
        }
        with ExitStack() as stack:
            # each answer is held open after its first chunk, which must come through at once: nothing is buffered
            first = [stack.enter_context(_post(port)) for _ in range(3)]
            places = [int(answer.readline()) for answer in first]
            assert sorted(places) == [port + 1, port + 2, port + 3]
            if policy == "round_robin":
                again = [int(stack.enter_context(_post(port)).readline()) for _ in range(3)]
                assert again == places
            (tmp_path / "bin" / "release").touch()
            assert all(answer.read() == b"end\n" for answer in first)
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert not any(_accepts(port + i) for i in range(4)), "nothing is left running"


@needs_nginx
def test_a_free_replica_gets_the_next_request(deployed, tmp_path):
    folder, environment, port = deployed(Candidate(parallelism=Parallelism(replicas=2), router="least_requests"))
    with _running(folder, environment) as process:
        _wait_for(lambda: _accepts(port) or process.poll() is not None, "the router listens")
        with _post(port) as busy:
            taken = int(busy.readline())
            for _ in range(4):
                with _post(port, b"quick") as answer:
                    assert int(answer.readline()) != taken
                    assert answer.read() == b"end\n"
            (tmp_path / "bin" / "release").touch()


@needs_sglang_router
def test_requests_follow_their_prefix_through_the_real_router(deployed, tmp_path):
    """A held stream comes through at once; what goes on from its prompt joins it, what does not goes elsewhere."""
    folder, environment, port = deployed(Candidate(parallelism=Parallelism(replicas=2), router="cache_aware"))
    assert not (folder / "nginx.conf").exists()

    def ask(prompt: str):
        body = json.dumps({"model": "m", "prompt": prompt, "stream": True}).encode()
        address, headers = f"http://127.0.0.1:{port}/v1/completions", {"Content-Type": "application/json"}
        return urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=30)

    def routes() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/workers", timeout=5) as answer:
                return len(json.load(answer)["workers"]) == 2
        except OSError:
            return False

    with _running(folder, environment | {"ROUTER_PYTHON": sys.executable}) as process:
        _wait_for(lambda: routes() or process.poll() is not None, "the router knows its replicas")
        with ask("hold this " * 20) as held:
            taken = int(held.readline())
            with ask("another question " * 9) as other:
                assert int(other.readline()) != taken
            with ask("hold this " * 20 + "and go on") as follows:
                assert int(follows.readline()) == taken
                (tmp_path / "bin" / "release").touch()
                assert follows.read() == held.read() == b"end\n"
        process.terminate()
        assert process.wait(timeout=30) == 143
    assert not any(_accepts(port + i) for i in range(3)), "nothing is left running"


@needs_nginx
def test_one_replica_that_dies_ends_them_all(deployed, tmp_path):
    folder, environment, port = deployed(Candidate(parallelism=Parallelism(replicas=2)))
    (tmp_path / "bin" / "dies").touch()
    done = subprocess.run([folder / "run.sh"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert re.search(r"replica \d ended before it was ready", done.stderr)
    assert not _accepts(port)


@needs_nginx
@pytest.mark.parametrize("policy", ["round_robin", "least_requests"])
def test_nginx_accepts_its_configuration(deployed, tmp_path, policy):
    folder, _, _ = deployed(Candidate(parallelism=Parallelism(replicas=8), router=policy))
    (tmp_path / "logs").mkdir()
    flags = f"pid {tmp_path}/pid; error_log stderr;"
    command = ["nginx", "-t", "-p", str(tmp_path), "-c", str(folder / "nginx.conf"), "-g", flags]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert ("least_conn" in (folder / "nginx.conf").read_text()) == (policy == "least_requests")


LLAMA = ("FWOPT_LLAMA_SERVER", "FWOPT_SMOLLM2_GGUF")


@needs_nginx
@pytest.mark.live
@pytest.mark.skipif(not all(map(os.environ.get, LLAMA)), reason=f"{' or '.join(LLAMA)} not set; .ci/run sets them")
def test_two_real_llama_servers_behind_the_real_router(deployed, cpu):
    """The router starts when both have loaded the model, and every answer comes from one of them."""
    batching = Batching(max_num_seqs=2, max_num_batched_tokens=256, max_model_len=512)
    candidate = Candidate(quantization=Gguf(type="Q4_0"), batching=batching, parallelism=Parallelism(replicas=2))
    name = "SmolLM2-135M-Instruct"
    folder, environment, port = deployed(candidate, "llamacpp", device=cpu, name=name)
    environment |= {
        "LLAMA_SERVER": os.environ["FWOPT_LLAMA_SERVER"],
        "FWOPT_MODEL": os.environ["FWOPT_SMOLLM2_GGUF"],
        "LLAMA_ARG_N_PREDICT": "1",  # of the caller's own: not for this deployment
    }
    body = json.dumps({"model": name, "prompt": "Hello", "max_tokens": 3, "ignore_eos": True}).encode()
    with _running(folder, environment) as process:
        _wait_for(lambda: _accepts(port) or process.poll() is not None, "the router listens")
        for _ in range(4):
            with _post(port, body) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 3
    assert not any(_accepts(port + i) for i in range(3))
