"""`fwopt profile` against a server: protocol, resume, refusals; and what it wrote is what `fwopt tune` reads."""

import json
import subprocess
import sys

import pytest

from fwopt.cli.profiling import length_for
from fwopt.collect import machine
from fwopt.collect.journal import Journal
from fwopt.collect.machine import Busy, BusyError
from fwopt.collect.probes import Limits
from fwopt.collect.steps_profile import StepsRun, Subject
from fwopt.collect.stream import ProbeError
from fwopt.errors import InputError
from fwopt.live.endpoint import Endpoint
from fwopt.perf.steps import StepKey, measured_keys
from fwopt.perf.store import open_profile
from fwopt.spec.engine import EngineSpec
from fwopt.targets import load_hardware, load_model

pytestmark = pytest.mark.alone

RUN = [sys.executable, "-c", "from fwopt.cli.app import main; main()"]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 1000, "max_position_embeddings": 1024,
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "model"


@pytest.fixture
def steps(model, tmp_path, monkeypatch):
    """A run of few questions on a machine that counts as quiet."""
    monkeypatch.setattr(machine, "look", lambda seconds=0.0: Busy(0.0, ()))
    device = load_hardware("cpu").device
    subject = Subject(load_model(str(model)), device, EngineSpec(version="0.32.0"), StepKey("bf16", "bf16", 1))
    return StepsRun(subject, Limits(4, 256, 512), tmp_path / "profiles", command="stub", longest_prompt=200, quick=True)


def test_rows_land_in_the_store_with_what_they_rest_on(steps, stub):
    folder, law, rows = steps.measure(Endpoint(stub.url, "toy", "vllm"))
    profile = open_profile(folder)
    assert measured_keys(profile, steps.subject.model) == (steps.subject.key,)
    assert len(profile.columns("steps")["p50_s"]) == len(rows)
    (measured,) = profile.environment.measured
    assert measured.command == "stub"
    assert "one machine" in measured.notes[0]
    assert law.decode.batch.tolist() == [1, 4]
    assert not list((steps.out / ".unfinished").glob("*")), "the journal has done its work"
    assert steps.subject.known(steps.out) is not None


def test_prompts_are_unique_and_lengths_forced(steps, stub):
    steps.measure(Endpoint(stub.url, "toy", "vllm"))
    long = [tuple(c["prompt"]) for c in stub.completions if len(c["prompt"]) >= 8]
    assert len(set(long)) == len(long)
    assert all(c["ignore_eos"] and c["stream"] and c["max_tokens"] >= 1 for c in stub.completions)
    assert max(max(c["prompt"]) for c in stub.completions) < CONFIG["vocab_size"]


def test_a_run_that_was_cut_goes_on_where_it_was(steps, stub):
    stub.fail_after = 15
    with pytest.raises(ProbeError, match=r"HTTP 500: .*out of memory.*a prompt of"):
        steps.measure(Endpoint(stub.url, "toy", "vllm"))
    (journal,) = (steps.out / ".unfinished").iterdir()
    answered = len(journal.read_text().splitlines()) - 1
    assert 0 < answered < len(steps.questions())
    with journal.open("a") as file:
        file.write('{"probe": {"kind": "dec')  # killed in the middle of a line
    stub.fail_after, before, steps.resume = None, len(stub.completions), True
    asked = []
    steps.on_probe = lambda probe, at, total: asked.append(probe)
    steps.measure(Endpoint(stub.url, "toy", "vllm"))
    whole = len(stub.completions) - before
    assert len(asked) == len(steps.questions())
    steps.resume = False
    steps.measure(Endpoint(stub.url, "toy", "vllm"))
    first, rest, again = (
        {(len(c["prompt"]), c["max_tokens"]) for c in part}
        for part in (stub.completions[:before], stub.completions[before : before + whole],
                     stub.completions[before + whole :])
    )  # fmt: skip
    assert first - rest, "what was known was asked again"
    assert again == first | rest


def test_measuring_again_replaces_and_another_scheme_is_added(steps, stub):
    endpoint = Endpoint(stub.url, "toy", "vllm")
    folder, _, rows = steps.measure(endpoint)
    steps.measure(endpoint)
    assert len(open_profile(folder).columns("steps")["p50_s"]) == pytest.approx(len(rows), abs=6)
    other = Subject(steps.subject.model, steps.subject.device, steps.subject.engine, StepKey("int8", "bf16", 1))
    StepsRun(other, steps.limits, steps.out, "stub", longest_prompt=200, quick=True).measure(endpoint)
    profile = open_profile(folder)
    assert {k.scheme for k in measured_keys(profile, steps.subject.model)} == {"bf16", "int8"}
    assert len(profile.environment.measured) == 2


def test_an_engine_that_stops_early_is_refused(steps, stub):
    stub.short = 1
    with pytest.raises(ProbeError, match="ignore_eos"):
        steps.measure(Endpoint(stub.url, "toy", "vllm"))


def test_a_busy_machine_is_refused_or_said(steps, monkeypatch):
    monkeypatch.setattr(machine, "look", lambda seconds=0.0: Busy(0.6, ("ffmpeg 120%",)))
    said = []
    steps.say = said.append
    with pytest.raises(BusyError, match=r"60% of this machine's \d+ cores are busy \(ffmpeg 120%\).*--allow-busy"):
        steps.before()
    steps.allow_busy = True
    steps.before()
    assert "times will be off" in said[0]


def test_what_runs_on_this_machine_is_seen():
    burn = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        found = machine.look(0.5)
    finally:
        burn.kill()
        burn.wait()
    assert found.share > 0
    assert found.top


def test_a_journal_of_something_else_is_refused(tmp_path):
    path = tmp_path / "j.jsonl"
    Journal.open(path, {"engine": "vllm-0.32.0"}, resume=False).append("prefill 1", [{"seconds": 0.1}])
    again = Journal.open(path, {"engine": "vllm-0.32.0"}, resume=True)
    assert again.get("prefill 1") == [{"seconds": 0.1}]
    with pytest.raises(InputError, match=r"begun with other engine \(vllm-0.32.0\)"):
        Journal.open(path, {"engine": "vllm-0.33.0"}, resume=True)
    path.write_text("not json\n")
    with pytest.raises(InputError, match="not the journal"):
        Journal.open(path, {}, resume=True)


def fwopt(*arguments, home, cwd):
    env = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": ":".join(p for p in sys.path if p)}
    return subprocess.run([*RUN, *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def test_the_command_says_when_a_profile_is_there_already(model, stub, tmp_path):
    call = ("profile", "--engine", "vllm", "--model", model, "--url", stub.url, "--quick", "--allow-busy",
            "--max-num-seqs", 4, "--hardware", "cpu", "--out", tmp_path / "p")  # fmt: skip
    first = fwopt(*call, home=tmp_path, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "decode step, ms by sequences" in first.stdout
    assert "vllm-0.32.0" in first.stdout, "the server's own version"
    again = fwopt(*call, home=tmp_path, cwd=tmp_path)
    assert "nothing to do" in again.stdout
    trace = tmp_path / "t.jsonl"
    lines = [{"arrival_s": i / 2, "prompt_tokens": 100 + i, "output_tokens": 20} for i in range(40)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    goal = ("--minimize", "ttft:p90", "--profiles", tmp_path / "p", "--out", "run", "--json")
    target = ("--model", model, "--hardware", "cpu", "--engine", "vllm")
    plan = fwopt("tune", trace, *target, *goal, home=tmp_path, cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    found = json.loads(plan.stdout)
    assert found["engine"]["version"] == "0.32.0"
    assert found["chosen"]["evaluation"]["provenance"]["assumed"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9 never ready: [Errno 111] Connection refused"),
        (["--url", "127.0.0.1:9"], "server URL: must be like http://127.0.0.1:8000"),
        (["--engine", "ollama", "--url", "http://127.0.0.1:9"], "only vllm"),
        (["--engine", "llamacpp==1", "--url", "http://127.0.0.1:9"], "--scheme gguf-q8_0"),
        (["--hardware", "cpu:2", "--url", "http://127.0.0.1:9"], "one processor"),
    ],
)
def test_bad_input_is_one_line(model, tmp_path, arguments, words):
    done = fwopt("profile", "--model", model, *arguments, home=tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_tune_profiles_contexts_as_long_as_the_workloads():
    assert [length_for(n) for n in (1, 192, 256, 448, 449, 3000, 100_000)] == [128, 256, 512, 512, 1024, 4096, 4096]
