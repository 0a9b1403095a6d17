"""A recorded trace on a real vLLM on a GPU, beside what was promised: python benchmarks/gpu_serving.py --out FOLDER

For each case (a model, one GPU, vLLM's default settings, several rates) a plan is made as a user makes it
(`fwopt tune`), vLLM is started once from the plan's exported files with random weights, and every rate is replayed by
`fwopt verify --server`. Random weights take the time of trained ones: lengths are forced. But a random router chooses
experts more evenly than a trained one does.

FOLDER/<case>/<rate>/ keeps the run folder with every request's record, FOLDER/<case>/server.log.gz the server's words
(among them the size of its KV cache), FOLDER/summary.json what was measured beside promised. What is there is not made
again, and a rate that does not fit the time left is named as such.

Plans come from the shipped tables alone. `--prepare` makes them and ends: no GPU is needed for that, and FOLDER may
then travel. On the GPU host only the server and the client run:

  python benchmarks/gpu_serving.py --out runs --prepare                      # at home
  python benchmarks/gpu_serving.py --out runs --minutes 9 --case qwen3-8b    # there; --python: one that has vLLM

vLLM's own flags follow `--`, for example `-- --attention-backend FLASH_ATTN`. `--device cpu` goes through all of it
with a tiny model on vLLM for processors, to see that the script is whole: its promises are an H200's and mean nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "optimizer"), str(ROOT / "kernels"), str(Path(__file__).resolve().parent)]

from gpu_stages.commands import TINY  # noqa: E402

TRACE = ROOT / "workloads" / "azure-2023-conv.csv.gz"
SETTINGS = {
    "quantizations": ["bf16"], "kv_dtypes": ["bf16"], "tp": [1], "replicas": [1], "max_num_seqs": [1024],
    "max_num_batched_tokens": [8192], "prefix_caching": [True],
}  # fmt: skip
"""vLLM's defaults on an H200. The plan's baseline is the same deployment, so that there is one candidate."""


@dataclass(frozen=True)
class Case:
    model: str
    rates: dict[float, int]
    """Multiple of the trace's own rate (5.5 requests/s) -> requests replayed."""
    memory: float = 0.92


CASES = {
    "qwen3-8b": Case("Qwen/Qwen3-8B", {0.5: 250, 1.0: 500, 2.0: 800}),
    "qwen3-30b-a3b": Case("Qwen/Qwen3-30B-A3B", {0.5: 250, 1.0: 500, 2.0: 800}),
}
DRY_RUN = {"tiny": Case("tiny", {0.25: 8, 0.5: 8}, memory=0.1)}


def main() -> None:
    arguments = _arguments()
    ends = time.monotonic() + 60 * arguments.minutes
    cases = DRY_RUN if arguments.device == "cpu" else CASES
    summary: list[dict[str, Any]] = []
    for name in arguments.case or cases:
        case, place = cases[name], arguments.out / name
        for rate in case.rates:
            _plan(case, rate, place)
        if not arguments.prepare:
            summary += _measured(name, case, place, arguments, ends)
    if arguments.prepare:
        return
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    for line in summary:
        said = line.get("problem") or "  ".join(f"{key} {_percent(value)}" for key, value in line["errors"].items())
        print(f"{line['case']:16} x{line['rate']:<5g} {said}")
    sys.exit(any("problem" in line for line in summary))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT", "gpu-serving"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--case", choices=[*CASES, *DRY_RUN], action="append")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--python", default=sys.executable, help="that imports vllm")
    parser.add_argument("--prepare", action="store_true", help="plans only")
    parser.add_argument("serve", nargs="*", metavar="-- FLAGS", help="of vllm serve")
    arguments = parser.parse_args()
    arguments.out = Path(arguments.out).resolve()
    if arguments.device == "cpu":
        arguments.serve += ["--block-size", "32"]  # its attention has no blocks of 16
    unknown = set(arguments.case or ()) - set(DRY_RUN if arguments.device == "cpu" else CASES)
    if unknown:
        parser.error(f"--case {unknown.pop()}: belongs to the other --device")
    return arguments


def _plan(case: Case, rate: float, place: Path) -> None:
    run = place / f"{rate:g}"
    if (run / "plan.json").is_file():
        return
    place.mkdir(parents=True, exist_ok=True)
    weights = _weights(case.model, place)
    search = {**SETTINGS, "gpu_memory_utilization": [case.memory]}
    batching = ("max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization")
    baseline = {name.replace("_", "-"): search[name][0] for name in batching}
    pins, same = place / "pins.yaml", place / "baseline.yaml"
    pins.write_text(json.dumps({"search": search}))
    same.write_text(json.dumps(baseline))
    model = case.model if case.model != "tiny" else str(weights)
    _fwopt("tune", str(TRACE), "--rate-scale", f"{rate:g}", "--model", model, "--hardware", "h200:1", "--engine",
           "vllm==0.24.0", "--config", str(pins), "--baseline", str(same), "--minimize", "e2e:mean",
           "--allow-unmeasured", "--out", str(run), "--force", quiet=True)  # fmt: skip
    found = json.loads((run / "plan.json").read_text())
    chosen, same_again = (found[key]["evaluation"]["candidate_id"] for key in ("chosen", "baseline"))
    assert chosen == same_again, f"{run}: {chosen} was chosen, not {same_again}, with which the server starts"


def _weights(model: str, place: Path) -> Path:
    """A folder of config.json and a tokenizer of as many words: all that vLLM needs for random weights."""
    from fwopt.targets.models import find_config

    folder = place / "weights"
    folder.mkdir(exist_ok=True)
    config = TINY if model == "tiny" else json.loads(find_config(model)[0].read_text())
    words = {f"t{i}": i for i in range(config["vocab_size"])}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }  # fmt: skip
    for file, content in (
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t2"}),
    ):
        (folder / file).write_text(json.dumps(content))
    return folder


def _measured(name: str, case: Case, place: Path, arguments: argparse.Namespace, ends: float) -> list[dict[str, Any]]:
    rates = [rate for rate in case.rates if "errors" not in _read(place, rate)]
    try:
        if rates:
            with _server(place, place / f"{rates[0]:g}", arguments, ends) as url:
                for rate in rates:
                    _replay(case, rate, place, url, ends)
    except RuntimeError as error:
        return [{"case": name, "rate": rate, **_read(place, rate), "problem": str(error)} for rate in case.rates]
    return [{"case": name, "rate": rate, **_read(place, rate)} for rate in case.rates]


def _replay(case: Case, rate: float, place: Path, url: str, ends: float) -> None:
    """Nothing where the time left does not suffice."""
    takes = 1.3 * case.rates[rate] / (5.5 * rate) + 40
    if time.monotonic() + takes < ends:
        print(f"{place.name} x{rate:g}: some {takes:.0f} s", flush=True)
        _fwopt("verify", str(place / f"{rate:g}"), "--server", url, "--requests", str(case.rates[rate]),
               "--tokenizer", str(place / "weights" / "tokenizer.json"))  # fmt: skip


def _read(place: Path, rate: float) -> dict[str, Any]:
    """What a valid replay found, or the problem."""
    file = next((place / f"{rate:g}").glob("live/*/verification.json"), None)
    if file is None:
        return {"problem": "not replayed: the time was over"}
    found = json.loads(file.read_text())
    if not found["valid"]:
        return {"problem": "; ".join(found["problems"])}
    return {"errors": {check["metric"]: check["error"] for check in found["checks"]}, "checks": found["checks"]}


@contextmanager
def _server(place: Path, run: Path, arguments: argparse.Namespace, ends: float) -> Iterator[str]:
    """vLLM as the plan's files start it, but for random weights; its log is kept whatever becomes of it."""
    wrapper, log = place / "vllm", place / "server.log"
    wrapper.write_text(
        f'#!/bin/sh\nexec "{arguments.python}" -m vllm.entrypoints.cli.main "$@" --load-format dummy '
        f"{' '.join(arguments.serve)}\n"
    )
    wrapper.chmod(0o755)
    files, port = place / "deploy", _free_port()
    shutil.copytree(run / "deploy" / "vllm", files, dirs_exist_ok=True)
    env = (files / "fwopt.env").read_text()
    (files / "fwopt.env").write_text(re.sub(r"(?m)^FWOPT_ROUTER_PORT=.*$", f"FWOPT_ROUTER_PORT={port}", env))
    environment = {**os.environ, "VLLM": str(wrapper), "FWOPT_MODEL": str(place / "weights"),
                   "VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1"}  # fmt: skip
    with log.open("wb") as said:
        server = subprocess.Popen(
            ["bash", str(files / "run.sh")], env=environment, stdout=said, stderr=said, start_new_session=True
        )
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None:
                raise RuntimeError(f"vLLM ended: {_last_words(log)}")
            if time.monotonic() > ends:
                raise RuntimeError(f"vLLM was not ready in time: {_last_words(log)}")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        with log.open("rb") as plain, gzip.open(f"{log}.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        log.unlink()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return " | ".join((errors or lines)[-3:])


def _fwopt(*arguments: str, quiet: bool = False) -> None:
    """A command of the working tree. `verify` exits with 1 where a replay is not valid, and keeps why."""
    path = os.pathsep.join([str(ROOT / "optimizer"), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    said = subprocess.DEVNULL if quiet else None
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-m", "fwopt", *arguments], env=environment, stdout=said)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"fwopt {arguments[0]} ended with status {done.returncode}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.0%}"


if __name__ == "__main__":
    main()
