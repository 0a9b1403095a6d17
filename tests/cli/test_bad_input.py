"""Bad input through the real command: one line on stderr, exit 2, and nothing left behind."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = [sys.executable, "-c", "from fwopt.cli.app import main; main()"]
TARGET = ("--model", "Qwen/Qwen3-8B", "--hardware", "h200:2")
LINES = [{"arrival_s": i * 0.1, "prompt_tokens": 50, "output_tokens": 20} for i in range(40)]


def fwopt(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*RUN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120)


def refused(*arguments: object, cwd: Path) -> str:
    """The one line of a refusal that leaves the folder as it was."""
    before = {p: p.read_bytes() for p in cwd.rglob("*") if p.is_file()}
    done = fwopt(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    assert {p: p.read_bytes() for p in cwd.rglob("*") if p.is_file()} == before
    return done.stderr


def text(*changes: dict[str, object]) -> bytes:
    return "".join(
        json.dumps(row) + "\n" for row in [*LINES, *({**LINES[-1], **change} for change in changes)]
    ).encode()


TRACES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "must hold at least one request"),
    "a cut gzip file": (gzip.compress(text())[:200], "it is cut off"),
    "negative tokens": (text({"prompt_tokens": -3}), ":41: prompt_tokens: "),
    "NaN": (text({"arrival_s": float("nan")}), ":41: arrival_s: must be a finite number"),
    "arrivals out of order": (text({"arrival_s": 0.0}), ":41: arrival_s: must not decrease"),
    "a line of 10 MB": (text({"id": "x" * 10_000_000}), ":41: line: must be at most"),
    "binary": (bytes(range(256)) * 20, "must be text"),
    "two models": (text({"model": "Qwen/Qwen3-8B"}, {"model": "Qwen/Qwen3-32B"}), "--only-model"),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_bad_trace(name: str, tmp_path: Path) -> None:
    content, words = TRACES[name]
    (tmp_path / "trace.jsonl").write_bytes(content)
    assert words in refused("tune", "trace.jsonl", *TARGET, "--out", "run", cwd=tmp_path)


FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "no trace of that name": (("absent.jsonl", *TARGET), "no such trace"),
    "a folder as trace": ((".", *TARGET), "is a folder"),
    "unknown model": (("t.jsonl", "--model", "Qwen/Qwen3-9B", "--hardware", "h200:2"), "nearest: Qwen/Qwen3-8B"),
    "unknown GPU": (
        ("t.jsonl", "--model", "Qwen/Qwen3-8B", "--hardware", "h2OO:2"),
        "unknown GPU 'h2OO'; nearest: h200",
    ),
    "no GPUs": (("t.jsonl", "--model", "Qwen/Qwen3-8B", "--hardware", "h200:0"), "must be a whole number above zero"),
    "too many GPUs": (("t.jsonl", "--model", "Qwen/Qwen3-8B", "--hardware", "h200:" + "9" * 30), "at most 1,024 GPUs"),
    "too large a model": (
        ("t.jsonl", "--model", "deepseek-ai/DeepSeek-V3", "--hardware", "h200:1"),
        "use for example --hardware h200:8",
    ),
    "an SLO without limit": (("t.jsonl", *TARGET, "--slo", "ttft:p99"), "is not METRIC:STATISTIC<LIMIT"),
    "a goal that is none": (("t.jsonl", *TARGET, "--minimize", "speed"), "must be one of cost"),
    "a negative price": (("t.jsonl", *TARGET, "--price", "-1"), "--price: must be greater than or equal to 0"),
    "a price in words": (("t.jsonl", *TARGET, "--price", "cheap"), "--price"),
    "rate scale 0": (("t.jsonl", *TARGET, "--rate-scale", "0"), "--rate-scale: must be greater than 0, got 0"),
    "rate scale NaN": (("t.jsonl", *TARGET, "--rate-scale", "nan"), "--rate-scale"),
    "rate scale 1e300": (("t.jsonl", *TARGET, "--rate-scale", "1e300"), "must be between 1e-06 and 1,000,000"),
    "another engine": (("t.jsonl", *TARGET, "--engine", "sglang"), "only vllm, llamacpp, fwopt are planned for"),
    "an engine of the future": (("t.jsonl", *TARGET, "--engine", "vllm==9.9"), "vllm 0.24 to 0.33"),
    "no trials": (("t.jsonl", *TARGET, "--trials", "0"), "see fwopt tune --help"),
    "two values for one": (
        ("t.jsonl", *TARGET, "--hardware", "h100:4"),
        "Option --hardware takes one value, and is given 2 times",
    ),
    "two names of one flag": (("t.jsonl", *TARGET, "-m", "Qwen/Qwen3-32B"), "--model or -m takes one value"),
    "unknown flag": (("t.jsonl", *TARGET, "--fast"), "see fwopt tune --help"),
    "unknown setting": (
        ("t.jsonl", *TARGET, "--config", "bad.yaml"),
        "unknown setting in bad.yaml: 'modle'; nearest: model",
    ),
    "a baseline that is none": (("t.jsonl", *TARGET, "--baseline", "bad.yaml"), "bad.yaml"),
    "a run that is none": (("--resume", "absent"), "holds no run"),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_bad_word_on_the_command_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(text())
    (tmp_path / "bad.yaml").write_text("modle: Qwen/Qwen3-8B\nmax-num-seqs: banana\n")
    arguments, words = FLAGS[name]
    out = () if "--resume" in arguments else ("--out", "run")
    assert words in refused("tune", *arguments, *out, cwd=tmp_path)


def test_one_value_for_an_option_also_in_groups(tmp_path: Path) -> None:
    line = refused("profiles", "list", "--profiles", "a", "--profiles", "b", cwd=tmp_path)
    assert line == "fwopt: Option --profiles takes one value, and is given 2 times; see fwopt profiles list --help\n"
    assert "takes one value" in refused("inspect", "t.jsonl", "--format=azure", "--format=openai", cwd=tmp_path)


def test_an_option_for_a_list_and_a_switch_may_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(text())
    again = ("--slo", "ttft:p99<2s", "--slo", "tpot:p99<50ms", "--json", "--json")
    assert "unknown GPU" in refused(
        "tune", "t.jsonl", "--model", "Qwen/Qwen3-8B", "--hardware", "h2:1", *again, cwd=tmp_path
    )


EVIL = "Qwen/\x1b[31mX\x1b]0;title\x07\nfwopt: all is well"


def test_names_from_a_trace_reach_no_terminal_raw(tmp_path: Path) -> None:
    header = json.dumps({"schema_version": 1, "name": EVIL}).encode() + b"\n"
    (tmp_path / "one.jsonl").write_bytes(header + text({"model": EVIL}))
    (tmp_path / "two.jsonl").write_bytes(header + text({"model": EVIL}, {"model": "Qwen/Qwen3-8B"}))
    for trace in ("one.jsonl", "two.jsonl"):
        assert "?[31mX" in refused("tune", trace, "--hardware", "h200:1", cwd=tmp_path)
        done = fwopt("inspect", trace, cwd=tmp_path)
        assert done.returncode == 0
        assert "?[31mX" in done.stdout
        assert all(line.isprintable() for line in done.stdout.splitlines())
    assert "no?[31mfile is well: no such trace" in refused("inspect", "no\x1b[31mfile\nis well", cwd=tmp_path)


def test_names_of_a_config_reach_no_terminal_raw(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [EVIL]}))
    assert "?[31mX" in refused("models", "config.json", cwd=tmp_path)


def test_an_unknown_verb_is_one_line(tmp_path: Path) -> None:
    assert "tune" in refused("tunee", cwd=tmp_path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "t.jsonl").write_bytes(text())
    done = fwopt("tune", "t.jsonl", *TARGET, "--trials", 3, "--out", "run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


DAMAGE: dict[str, tuple[str, bytes | None, tuple[str, ...], str]] = {
    # name: (file, its new content or None to remove it, verbs that need it, words)
    "plan cut": ("plan.json", b"{", ("report", "explain", "export", "capacity"), "plan.json cannot be read"),
    "plan of something else": ("plan.json", b"[]", ("report",), "states no schema_version"),
    "plan of the future": ("plan.json", b'{"schema_version": 99}', ("export",), "reads up to 1; upgrade fwopt"),
    "no plan": ("plan.json", None, ("explain", "capacity"), "does not exist"),
    "trials unreadable": (
        "trials.jsonl",
        b"xx\n",
        ("report", "explain", "tune --resume"),
        "trials.jsonl:1: not a trial",
    ),
    "no trials": ("trials.jsonl", None, ("report",), "trials.jsonl cannot be read"),
    "inputs of something else": ("inputs.json", b"{}", ("capacity", "tune --resume"), "states no schema_version"),
    "no inputs": ("inputs.json", None, ("capacity", "tune --resume"), "holds no run"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run(name: str, home: Path, tmp_path: Path) -> None:
    file, content, verbs, words = DAMAGE[name]
    shutil.copytree(home / "run", tmp_path / "run")
    (tmp_path / "run" / file).unlink()
    if content is not None:
        (tmp_path / "run" / file).write_bytes(content)
    shutil.copy(home / "t.jsonl", tmp_path)
    for verb in verbs:
        assert words in refused(*verb.split(), "run", cwd=tmp_path), verb


def test_a_torn_last_trial_is_not_damage(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    with (tmp_path / "run/trials.jsonl").open("ab") as file:
        file.write(b'{"number": 99, "candid')
    assert fwopt("report", "run", cwd=tmp_path).returncode == 0


def test_a_folder_of_somebody_else_is_never_replaced(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    line = refused("tune", home / "t.jsonl", *TARGET, "--out", "mine", "--force", cwd=tmp_path)
    assert "it holds no run" in line


def test_replacing_a_run_leaves_nothing_of_it_should_the_next_one_die(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    (tmp_path / "run/deploy/vllm/mine.txt").write_text("keep")
    arguments = ("tune", home / "t.jsonl", *TARGET, "--trials", 3, "--out", "run", "--force", "--slo", "tpot:p99<0.1ms")
    assert fwopt(*arguments, cwd=tmp_path).returncode == 2
    assert [p.name for p in (tmp_path / "run/deploy/vllm").iterdir()] == ["mine.txt"]


def test_nothing_meets_the_limits_answers_with_the_nearest_miss(home: Path, tmp_path: Path) -> None:
    done = fwopt(
        "tune", home / "t.jsonl", *TARGET, "--trials", 3, "--slo", "tpot:p99<0.1ms", "--out", "run", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("fwopt: nothing keeps tpot:p99<0.1ms (found ")
    assert "relax tpot:p99<" in done.stderr
    assert not (tmp_path / "run/deploy").exists()


def test_capacity_of_a_mistyped_run_is_no_config_file(tmp_path: Path) -> None:
    said = refused("capacity", "reports/mondy", cwd=tmp_path)
    assert "reports/mondy: no such run folder or config file" in said
