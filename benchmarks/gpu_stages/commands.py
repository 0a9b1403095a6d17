"""fwopt's own commands, on the machine at hand; what they keep goes into the store that travels back."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpu_stages import Result, Session

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "hidden_act": "silu", "torch_dtype": "bfloat16",
}  # fmt: skip
"""The dry run's model."""


def profile(session: Session) -> Result:
    model, *_ = models(session)
    arguments = ["profile", "--operators", "--model", model, *hardware(session), "--out", str(store(session)),
                 "--quick", "--allow-busy"]  # fmt: skip
    return _with_error({"command": command(arguments, session.seconds)})


def tune(session: Session) -> Result:
    """Three deployments of the sample trace, on vLLM's own steps; on a GPU that is not in the store, on an H200's."""
    dense, experts = models(session)
    cases = {
        "Qwen/Qwen3-8B w4a16": ["--model", dense, "--config", str(_config(session.work, "w4a16", dense))],
        "Qwen/Qwen3-8B fp8": ["--model", dense, "--config", str(_config(session.work, "fp8", dense))],
        "Qwen/Qwen3-30B-A3B bf16": ["--model", experts],
    }
    where = hardware(session) or ["--hardware", "h200:1"]
    shared = [*where, "--device", session.device, "--out", str(store(session)), "--json"]
    if session.small:  # one deployment, on the reference engine's operators that stage `profile` timed
        cases = {"tiny bf16": ["--model", dense, "--engine", "fwopt", "--profiles", str(store(session)),
                               "--buckets", "1", "--op", "rms_norm", "--op", "silu_mul"]}  # fmt: skip
    each = session.seconds / len(cases)
    trace = str(sample_trace(session))
    return _with_error(
        {
            name: command(["kernels", "tune", trace, *arguments, *shared, "--budget", f"{0.7 * each:.0f}s"], each)
            for name, arguments in cases.items()
        }
    )


def plan(session: Session) -> Result:
    """The reference engine planned with what was profiled and tuned here: tuned kernels against their defaults."""
    model, *_ = models(session)
    settings = session.work / "fwopt.yaml"
    settings.write_text("search:\n  kernels: [tuned, default]\n")
    arguments = ["tune", str(sample_trace(session)), "--model", model, "--engine", "fwopt", *hardware(session),
                 "--profiles", str(store(session)), "--config", str(settings), "--minimize", "e2e:mean", "--trials",
                 "24", "--allow-unmeasured", "--out", str(session.work / "run"), "--force", "--json"]  # fmt: skip
    found = command(arguments, session.seconds)
    if "error" in found or "printed" in found:
        return _with_error({"command": found})
    chosen, best = found["chosen"], {}
    entries = [chosen, found["baseline"], *found["runners_up"]]
    for entry in (e for e in entries if e is not None):
        value = entry["evaluation"]["goals"][0]["value"]
        name = "tuned" if entry["candidate"]["kernels"] else "default"
        best[name] = min(value, best.get(name, value))
    return {"chosen": chosen and chosen["candidate"], "best_e2e_s": best, "notes": found["notes"],
            "kernels": found["kernels"] and len(found["kernels"]["choices"])}  # fmt: skip


def models(session: Session) -> tuple[str, str]:
    """Dense, and with experts."""
    if not session.small:
        return "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"
    folder = session.work / "tiny"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY))
    return str(folder), str(folder)


def hardware(session: Session) -> list[str]:
    """The GPU at hand by its catalogue name; empty where the catalogue has profiles of neither."""
    if session.small:
        return ["--hardware", "cpu"]
    name = session.before.get("machine", {}).get("name", "")
    known = next((short for short in ("H100", "H200") if short in name), None)
    return ["--hardware", f"{known.lower()}:1"] if known else []


def store(session: Session) -> Path:
    return session.work / "store"


def _config(work: Path, weights: str, model: str) -> Path:
    path = work / f"{weights}.yaml"
    lines = {
        "w4a16": "# fwopt: weights=w4a16-g128\nquantization: compressed-tensors",
        "fp8": "quantization: fp8_per_tensor",
    }
    path.write_text(f"{lines[weights]}\nmodel: {model}\n")
    return path


def sample_trace(session: Session) -> Path:
    """Azure's conversations; in the dry run a few of them, none longer than the tiny model's context."""
    path = session.work / "trace.csv"
    lines = 40 if session.small else 2000
    with gzip.open(ROOT / "workloads" / "azure-2023-conv.csv.gz", "rt") as whole:
        path.write_text("".join(line for _, line in zip(range(lines), whole, strict=False)))
    return path


def _with_error(found: Result) -> Result:
    """A command that failed makes its stage one that failed; what the others gave stays."""
    errors = [f"{name}: {answer['error']}" for name, answer in found.items() if "error" in answer]
    return {**found, "error": "; ".join(errors)} if errors else found


def command(arguments: list[str], seconds: float) -> Any:
    """What a fwopt command prints as JSON, or its words."""
    paths = [str(ROOT / "optimizer"), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fwopt", *arguments], capture_output=True, text=True, timeout=seconds,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, cwd=tempfile.gettempdir(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {seconds:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"}
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"printed": done.stdout[-2000:]}
