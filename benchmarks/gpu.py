"""Everything that a GPU is needed for, in one command and ten minutes: python benchmarks/gpu.py --out FOLDER

Stages, each in a process of its own, with its own share of the time and its own file FOLDER/STAGE.json, written even
where the stage after it fails; a file that is there is not made again (--again STAGE makes it). `summary.json`, and the
table printed at the end, say what ran, what failed, and how the kernels stand beside their floors and the vendor's.

  machine   GPU, driver, clocks, versions; copy bandwidth and matrix rates: the floors of everything below
  check     every variant compiled for this GPU with this Triton: which it cannot run, and why
  correct   the default and a sample of variants of every operator against float64, on the GPU
  time      fwopt's kernels, searched, at the shapes of Qwen3-8B and Qwen3-30B-A3B, beside cuBLAS and torch
  tune      `fwopt kernels tune` on a recorded trace                                           (needs fwopt's packages)
  profile   `fwopt profile --operators`                                                        (needs fwopt's packages)

Up to `time` only torch, Triton and numpy are needed. The last two need pydantic, optuna, typer, rich, orjson,
zstandard, PyYAML, numba and pyarrow; where the host lacks some, bring them as wheels and put them on PYTHONPATH:

  python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl
  PYTHONPATH=/tmp/site python3 benchmarks/gpu.py --out "$OUT" --minutes 9

`store.tar.gz` holds the profile folders (times of kernels and operators) to be unpacked into profiles/. --device cpu
goes through all of it with the torch fallbacks in a minute or two, to see that the script itself is whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "optimizer"), str(ROOT / "kernels")]

SHARES = {"machine": 0.06, "check": 0.2, "correct": 0.16, "time": 0.28, "tune": 0.2, "profile": 0.1}
LEAST_S = 30.0
"""Of a stage, whatever its share: importing torch takes some of it."""
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-8B": {
        "hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "inter": 12288,
        "linears": {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)},
    },
    "Qwen3-30B-A3B": {
        "hidden": 2048, "heads": 32, "kv_heads": 4, "head_dim": 128, "experts": 128, "top_k": 8, "expert_inter": 768,
        "linears": {"qkv": (5120, 2048), "o": (2048, 4096)},
    },
}  # fmt: skip
"""From the published config.json of each, one GPU; linears are (n, k) as vLLM fuses them."""
DECODE, LARGE = (1, 2, 4, 8, 16), (64, 256, 1024, 4096)
ATTENTION = ((1, 1024), (32, 1024), (32, 8192), (128, 2048))
W4A16_RATIO, W4A16_COPY, W4A16_BYTES, ATTENTION_COPY, NORM_COPY = 0.4, 0.8, 32 * 2**20, 0.8, 0.85
"""What must be shown: see `_verdicts`."""


# Stages: each takes (device, seconds it may take, work folder, results of earlier stages) and returns plain data.


def machine(device: str, seconds: float, work: Path, before: dict[str, Any]) -> dict[str, Any]:
    import torch

    from fwopt_kernels.host import describe
    from fwopt_kernels.timing import cache_bytes, time_calls

    host = describe(device)
    found: dict[str, Any] = {**asdict(host), "python": sys.version.split()[0], "cache_bytes": cache_bytes(device)}
    found["cuda"] = torch.version.cuda
    if device == "cuda":
        query = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,memory.total"
        asked = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True
        )
        found["nvidia_smi"] = dict(zip(query.split(","), map(str.strip, asked.stdout.split(",")), strict=False))
    size, side = (2**30, 8192) if device == "cuda" else (2**25, 512)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = time_calls([lambda: target.copy_(source)], device, 0.2)
    found["copy_bytes_per_s"] = 2 * size / copied.p50_s
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    found["bf16_flops"] = 2 * side**3 / time_calls([lambda: a @ b], device, 0.3).p50_s
    small = side if device == "cuda" else 64  # a processor has no instructions for it
    found["fp8_flops"] = _fp8_rate(a[:small, :small].contiguous(), b[:small, :small].contiguous(), device, small)
    return found


def _fp8_rate(a: Any, b: Any, device: str, side: int) -> float | str:
    import torch

    from fwopt_kernels.timing import time_calls

    one = torch.ones((), device=device)
    try:
        x, w = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        call = partial(torch._scaled_mm, x, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        return 2 * side**3 / time_calls([call], device, 0.3).p50_s
    except (RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]


def _device_spec(before: dict[str, Any]) -> Any:
    """Floors from this machine's own rates."""
    m = before["machine"]
    fp8 = m["fp8_flops"] if isinstance(m["fp8_flops"], float) else None
    return SimpleNamespace(
        bandwidth_bytes_per_s=m["copy_bytes_per_s"], bf16_flops=m["bf16_flops"], fp8_flops=fp8, name=m["name"]
    )


def check(device: str, seconds: float, work: Path, before: dict[str, Any]) -> dict[str, Any]:
    """Defaults first, then the spaces in turn, as far as the time goes; what was compiled is kept for later stages."""
    from fwopt_kernels.aot import Job, compile_all
    from fwopt_kernels.contract import ARCHITECTURES, supported
    from fwopt_kernels.registry import OPERATORS, load

    arch = before["machine"]["arch"] or "sm_90"
    spaces = {}
    for name, target in OPERATORS.items():
        operator = load(target)
        for format in operator.formats:
            if supported(format, ARCHITECTURES[arch]):
                first, *rest = operator.space(format).variants()
                random.Random(0).shuffle(rest)
                spaces[name, format] = [first, *(rest if device == "cuda" else [])]
    jobs = [
        (key, Job(OPERATORS[key[0]], key[1], variants[at], arch))
        for at in range(max(map(len, spaces.values())))
        for key, variants in spaces.items()
        if at < len(variants)
    ]
    keys = {job: key for key, job in jobs}
    rows: dict[tuple[str, str], dict[str, Any]] = {
        key: {"operator": key[0], "format": key[1], "variants": len(load(OPERATORS[key[0]]).space(key[1]).variants()),
              "compiled": 0, "rejected": [], "failed": [], "default_error": "not compiled"} for key in spaces
    }  # fmt: skip
    ends = time.monotonic() + 0.9 * seconds
    for outcome in compile_all([job for _, job in jobs]):
        row = rows[keys[outcome.job]]
        row["compiled"] += outcome.failure is None
        if outcome.failure:
            row["failed"].append([outcome.job.variant.id, outcome.failure])
        elif outcome.rejection:
            row["rejected"].append([outcome.job.variant.id, outcome.rejection])
        if outcome.job.variant == spaces[keys[outcome.job]][0]:
            row["default_error"] = outcome.failure or outcome.rejection
        if time.monotonic() > ends:
            break
    return {"arch": arch, "spaces": list(rows.values())}


def correct(device: str, seconds: float, work: Path, before: dict[str, Any]) -> dict[str, Any]:
    """One line for each output outside its tolerance, each crash, each hang."""
    from fwopt_kernels.apart import Fault
    from fwopt_kernels.registry import OPERATORS, load
    from fwopt_kernels.timing import Question, checker

    small = device == "cpu"
    rejected = {(s["operator"], s["format"], v) for s in before["check"]["spaces"] for v, _ in s["rejected"]}
    questions = []
    for name, target in OPERATORS.items():
        operator = load(target)
        for format in operator.formats:
            first, *rest = operator.space(format).variants()
            sample = [first, *random.Random(0).sample(rest, min(7, len(rest)))]
            sample = [None] if small else [v for v in sample if (name, format, v.id) not in rejected]
            for at, shape in enumerate(_shapes_to_check(name, operator.dimensions, small)):
                questions += [(at, name, Question(target, format, shape, v, device, 0.0)) for v in sample]
    questions.sort(key=lambda q: q[0])
    child, wrong, done = checker(timeout_s=60), [], 0
    ends = time.monotonic() + 0.9 * seconds
    for _, name, question in questions:
        if time.monotonic() > ends:
            break
        answer = child.ask(question)
        done += 1
        if isinstance(answer, Fault):
            variant = question.variant.id if question.variant else "torch"
            wrong.append([name, question.format, dict(question.shape), variant, answer.reason])
    child.close()
    return {"asked": done, "of": len(questions), "wrong": wrong}


def _shapes_to_check(name: str, dimensions: tuple[str, ...], small: bool) -> list[tuple[tuple[str, int], ...]]:
    """A step that decodes little, one with odd numbers, one that is large."""
    shapes = []
    for rows in (1, 5) if small else (1, 33, 700):
        facts = {
            "rows": rows, "tokens": rows, "m": rows, "columns": 4096, "n": 1536, "k": 2048, "heads": 32, "kv_heads": 8,
            "head_dim": 128, "rotary_dim": 128, "block_size": 16, "sequences": min(rows, 40), "batch": min(rows, 40),
            "shortest": 1, "context": 1500, "experts": 16, "top_k": 4, "hidden": 1024, "intermediate": 512,
        }  # fmt: skip
        if small:
            facts |= {"columns": 512, "n": 256, "k": 256, "context": 200, "experts": 4, "top_k": 2, "hidden": 256,
                      "intermediate": 128, "heads": 8, "kv_heads": 2}  # fmt: skip
        shapes.append(tuple((d, facts[d]) for d in dimensions))
    return shapes


def timed(device: str, seconds: float, work: Path, before: dict[str, Any]) -> dict[str, Any]:
    """The tuner's own search, at decode shapes, every shape called equally often; and the vendor's kernels."""
    from fwopt.tuning.device import describe
    from fwopt.tuning.tune import floors, tune

    started = time.monotonic()
    spec, host = _device_spec(before), describe(device)
    baselines = _baselines(device, seconds * 0.3)
    demands = _demands(device == "cpu")
    left = seconds * 0.85 - (time.monotonic() - started)
    found = tune(demands, spec, host, budget_s=max(left, 1.0), seed=0, most=16, tell=lambda *_: None)
    rows = []
    by_family = {demand.family: demand for demand in demands}
    for family in found.families:
        floor = floors(by_family[family.family], [b.point for b in family.buckets], spec)
        for bucket, floor_s in zip(family.buckets, floor, strict=True):
            rows.append(
                {"operator": family.family.operator, "format": family.family.format, "fixed": dict(family.family.fixed),
                 "point": list(bucket.point), "floor_s": float(floor_s), "default_s": bucket.default_s,
                 "best_s": bucket.best_s, "variant": bucket.variant, "measured": bucket.measured}
            )  # fmt: skip
    refused = [[f.family.label, *r] for f in found.families for r in f.rejected]
    return {"rows": rows, "baselines": baselines, "refused": refused, "complete": found.complete}


def _demands(small: bool) -> list[Any]:
    import numpy as np

    from fwopt.tuning.family import Demand, Family
    from fwopt_kernels.registry import OPERATORS, load

    found: dict[Any, Any] = {}

    def add(operator: str, points: list[tuple[int, ...]], **fixed: int) -> None:
        if operator not in OPERATORS:
            return
        loaded = load(OPERATORS[operator])
        axes = tuple(d for d in loaded.dimensions if d in ("rows", "tokens", "m", "sequences", "batch")
                     or (d == "context" and len(points[0]) == 2))  # fmt: skip
        for format in loaded.formats[: 1 if small else None]:
            own = tuple((d, fixed[d]) for d in loaded.dimensions if d in fixed)
            family = Family(operator, format, own, axes)
            found[family] = Demand(family, np.asarray(points, dtype=np.int64), np.ones(len(points)))

    steps: list[tuple[int, ...]] = [(m,) for m in ((1, 4) if small else (*DECODE, *LARGE))]
    few: list[tuple[int, ...]] = [(m,) for m in ((1, 4) if small else (1, 16, 256, 4096))]
    for model in MODELS.values():
        add("rms_norm", few, columns=model["hidden"])
        if "inter" in model:
            add("silu_mul", few, columns=model["inter"])
        heads = {name: model[name] for name in ("heads", "kv_heads", "head_dim")}
        add("rope_cache", few, **heads, rotary_dim=model["head_dim"], block_size=16)
        add("decode_attention", [(1, 64)] if small else list(ATTENTION), **heads, block_size=16)
        for n, k in model["linears"].values():
            for operator in ("w4a16", "fp8_gemm"):
                add(operator, steps, n=256 if small else n, k=256 if small else k)
        if "experts" in model:
            sizes = {"experts": model["experts"], "hidden": model["hidden"], "intermediate": model["expert_inter"]}
            sizes = {"experts": 4, "hidden": 128, "intermediate": 64} if small else sizes
            add("fused_moe", steps, top_k=2 if small else model["top_k"], **sizes)
    return list(found.values())


def _baselines(device: str, seconds: float) -> list[dict[str, Any]]:
    """cuBLAS through F.linear, `torch._scaled_mm`, torch's attention: each on rotating memory, in a CUDA graph."""
    import torch

    small = device == "cpu"
    rows, ends = [], time.monotonic() + seconds
    linears = sorted({nk for model in MODELS.values() for nk in model["linears"].values()})
    jobs: list[tuple[dict[str, Any], Callable[[], list[Callable[[], Any]]]]] = []
    for m in (1, 4) if small else (*DECODE, *LARGE):
        for n, k in [(256, 256)] if small else linears:
            shape = {"m": m, "n": n, "k": k}
            jobs.append(({"what": "cublas bf16", **shape}, partial(_linear, device, m, n, k)))
            if not small:
                for scales in ("tensor", "row"):
                    build = partial(_scaled, device, m, n, k, scales)
                    jobs.append(({"what": f"scaled_mm {scales}", **shape}, build))
    for model in MODELS.values():
        for sequences, context in [(1, 64)] if small else ATTENTION:
            shape = {"sequences": sequences, "context": context, "heads": model["heads"], "kv_heads": model["kv_heads"]}
            jobs.append(({"what": "torch sdpa", **shape}, partial(_sdpa, device, sequences, context, model)))
    for row, build in jobs:
        if time.monotonic() > ends:
            break
        try:
            from fwopt_kernels.timing import time_calls

            with torch.inference_mode():
                result = time_calls(build(), device, 0.03)
            rows.append({**row, "s": result.p50_s, "noise": result.noise})
        except (RuntimeError, NotImplementedError) as error:
            rows.append({**row, "error": str(error).splitlines()[0][:200]})
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def _copies(nbytes: int, device: str) -> int:
    from fwopt_kernels.timing import CACHES, MOST_COPIES, cache_bytes

    return max(1, min(MOST_COPIES[device], -(-CACHES * cache_bytes(device) // nbytes)))


def _linear(device: str, m: int, n: int, k: int) -> list[Callable[[], Any]]:
    import torch

    x = torch.randn(m, k, device=device).bfloat16()
    weights = [torch.randn(n, k, device=device).bfloat16() for _ in range(_copies(2 * n * k, device))]
    return [partial(torch.nn.functional.linear, x, w) for w in weights]


def _scaled(device: str, m: int, n: int, k: int, scales: str) -> list[Callable[[], Any]]:
    import torch

    x = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
    weights = [torch.randn(n, k, device=device).to(torch.float8_e4m3fn).t() for _ in range(_copies(n * k, device))]
    a, b = (torch.ones(m, 1), torch.ones(1, n)) if scales == "row" else (torch.ones(()), torch.ones(()))
    a, b = a.to(device), b.to(device)
    return [partial(torch._scaled_mm, x, w, scale_a=a, scale_b=b, out_dtype=torch.bfloat16) for w in weights]


def _sdpa(device: str, sequences: int, context: int, model: dict[str, Any]) -> list[Callable[[], Any]]:
    import torch

    size, kv = model["head_dim"], model["kv_heads"]
    make = partial(torch.randn, device=device, dtype=torch.bfloat16)
    q = make(sequences, model["heads"], 1, size)
    count = _copies(4 * sequences * kv * context * size, device)
    caches = [(make(sequences, kv, context, size), make(sequences, kv, context, size)) for _ in range(min(count, 16))]
    return [partial(torch.nn.functional.scaled_dot_product_attention, q, *c, enable_gqa=True) for c in caches]


def _with_error(found: dict[str, Any]) -> dict[str, Any]:
    """A command that failed makes its stage one that failed; what the others gave stays."""
    errors = [f"{name}: {answer['error']}" for name, answer in found.items() if "error" in answer]
    return {**found, "error": "; ".join(errors)} if errors else found


def tuned(device: str, seconds: float, work: Path, before: dict[str, Any]) -> dict[str, Any]:
    """The command itself, for three deployments of the sample trace."""
    cases = {
        "Qwen/Qwen3-8B w4a16": ["--model", "Qwen/Qwen3-8B", "--config", str(_config(work, "w4a16"))],
        "Qwen/Qwen3-8B fp8": ["--model", "Qwen/Qwen3-8B", "--config", str(_config(work, "fp8"))],
        "Qwen/Qwen3-30B-A3B bf16": ["--model", "Qwen/Qwen3-30B-A3B"],
    }
    if device == "cpu":
        cases = {"Qwen/Qwen3-0.6B": ["--model", "Qwen/Qwen3-0.6B", "--buckets", "1", "--op", "rms_norm"]}
    trace = _sample_trace(work, 60 if device == "cpu" else 2000)
    each = seconds / len(cases)
    shared = [
        "--hardware",
        "h200:1",
        "--device",
        device,
        "--budget",
        f"{0.7 * each:.0f}s",
        "--out",
        str(work / "store"),
    ]
    return _with_error(
        {
            name: _command(["kernels", "tune", str(trace), *arguments, *shared, "--json"], each)
            for name, arguments in cases.items()
        }
    )


def _config(work: Path, weights: str) -> Path:
    path = work / f"{weights}.yaml"
    lines = {
        "w4a16": "# fwopt: weights=w4a16-g128\nquantization: compressed-tensors",
        "fp8": "quantization: fp8_per_tensor",
    }
    path.write_text(f"{lines[weights]}\nmodel: Qwen/Qwen3-8B\n")
    return path


def _sample_trace(work: Path, lines: int) -> Path:
    import gzip

    path = work / "trace.csv"
    with gzip.open(ROOT / "workloads" / "azure-2023-conv.csv.gz", "rt") as whole:
        path.write_text("".join(line for _, line in zip(range(lines), whole, strict=False)))
    return path


def profiled(device: str, seconds: float, work: Path, before: dict[str, Any]) -> dict[str, Any]:
    model, hardware = ("Qwen/Qwen3-8B", []) if device == "cuda" else ("Qwen/Qwen3-0.6B", ["--hardware", "cpu"])
    arguments = ["profile", "--operators", "--model", model, *hardware, "--out", str(work / "store"), "--quick",
                 "--allow-busy"]  # fmt: skip
    if device == "cpu":  # a processor's profile takes minutes: only that the command is there
        arguments = ["profile", "--help"]
    return _with_error({"command": _command(arguments, seconds)})


def _command(arguments: list[str], seconds: float) -> Any:
    """What a fwopt command prints as JSON, or its words."""
    paths = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "fwopt", *arguments], capture_output=True, text=True, timeout=seconds,
            env={**os.environ, "PYTHONPATH": paths}, cwd=tempfile.gettempdir(),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {seconds:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"}
    try:
        return json.loads(done.stdout)
    except ValueError:
        return {"printed": done.stdout[-2000:]}


STAGES: dict[str, Callable[[str, float, Path, dict[str, Any]], dict[str, Any]]] = {
    "machine": machine, "check": check, "correct": correct, "time": timed, "tune": tuned, "profile": profiled,
}  # fmt: skip
NEEDS = {"check": ("machine",), "correct": ("check",), "time": ("machine",)}


# What the numbers say.


def _verdicts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """(what must be shown, value, limit, held): only of what was measured."""
    rows, base = found["time"]["rows"], found["time"]["baselines"]
    copy_rate = found["machine"]["copy_bytes_per_s"]
    verdicts = _against_vendor(rows, base)
    shares: dict[str, list[float]] = {}
    for row in rows:
        if row["best_s"] is None:
            continue
        kind = _memory_bound(row)
        if kind is not None:
            shares.setdefault(kind, []).append(row["floor_s"] / row["best_s"])
    limits = {"w4a16, packed weights over 32 MiB": W4A16_COPY, "decode attention, 32 x 8192": ATTENTION_COPY,
              "norm and activation, 4096 rows": NORM_COPY}  # fmt: skip
    for kind, found_shares in shares.items():
        verdicts.append(
            {"what": f"share of copy bandwidth ({copy_rate / 1e12:.2f} TB/s): {kind}", "value": min(found_shares),
             "limit": limits[kind], "held": min(found_shares) >= limits[kind]}
        )  # fmt: skip
    return verdicts


def _memory_bound(row: dict[str, Any]) -> str | None:
    fixed, point = row["fixed"], row["point"]
    if row["operator"] == "w4a16" and point[0] <= 16 and fixed["n"] * fixed["k"] / 2 > W4A16_BYTES:
        return "w4a16, packed weights over 32 MiB"
    if row["operator"] == "decode_attention" and tuple(point) == (32, 8192):
        return "decode attention, 32 x 8192"
    if row["operator"] in ("rms_norm", "silu_mul") and point[0] == LARGE[-1]:
        return "norm and activation, 4096 rows"
    return None


def _against_vendor(rows: list[dict[str, Any]], base: list[dict[str, Any]]) -> list[dict[str, Any]]:
    vendor = {(b["what"], b["m"], b["n"], b["k"]): b["s"] for b in base if "m" in b and "s" in b}
    ours = {
        (r["operator"], r["format"], r["point"][0], r["fixed"]["n"], r["fixed"]["k"]): r["best_s"]
        for r in rows
        if r["operator"] in ("w4a16", "fp8_gemm") and r["best_s"] is not None
    }
    verdicts = []
    linears = list(MODELS["Qwen3-8B"]["linears"].values())
    for format in sorted({key[1] for key in ours if key[0] == "w4a16"}):
        pairs = [
            (ours.get(("w4a16", format, m, *nk)), vendor.get(("cublas bf16", m, *nk))) for m in DECODE for nk in linears
        ]
        if all(a and b for a, b in pairs):
            ratio = sum(a for a, _ in pairs if a) / sum(b for _, b in pairs if b)
            verdicts.append({"what": f"w4a16 {format} over cuBLAS bf16, Qwen3-8B layer, M 1..16, sum",
                             "value": ratio, "limit": W4A16_RATIO, "held": ratio <= W4A16_RATIO})  # fmt: skip
    for (operator, format, m, n, k), seconds in sorted(ours.items()):
        scales = next((s for s in ("tensor", "row") if s in format.split("-")), None)
        other = vendor.get((f"scaled_mm {scales}", m, n, k))
        if operator == "fp8_gemm" and other and (m >= 1024 or m < 256):
            limit = 1.05 if m >= 1024 else 1.0
            verdicts.append({"what": f"{format} over torch._scaled_mm, m {m} n {n} k {k}", "value": seconds / other,
                             "limit": limit, "held": seconds / other <= limit})  # fmt: skip
    return verdicts


# The driver.


def _run(stage: str, arguments: argparse.Namespace, work: Path, seconds: float) -> dict[str, Any]:
    """A stage in its own process; its file exists afterwards, with the result or the reason why there is none."""
    file = arguments.out / f"{stage}.json"
    command = [sys.executable, str(Path(__file__)), "--stage", stage, "--out", str(arguments.out), "--device",
               arguments.device, "--work", str(work), "--seconds", str(seconds)]  # fmt: skip
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | str = child.wait(seconds + 15)
        except subprocess.TimeoutExpired:
            code = f"not done within {seconds:.0f} s"
        finally:
            _end_group(child)
        said.seek(0)
        words = said.read()[-2000:].strip()
    if not file.exists():
        reason = words.splitlines()[-1] if words else f"exit status {code}"
        _write(file, {"error": code if isinstance(code, str) else reason, "words": words})
    result = json.loads(file.read_text())
    print(f"{stage:8} {time.monotonic() - started:6.0f} s  {result.get('error') or 'ok'}", flush=True)
    return result


def _end_group(child: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _write(file: Path, content: Any) -> None:
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(content, indent=1))
    beside.replace(file)


def _pack(work: Path, out: Path) -> None:
    store = work / "store"
    if store.exists():
        beside = work / "store.tar.gz"
        with tarfile.open(beside, "w:gz") as archive:
            archive.add(store, arcname="profiles")
        (out / "store.tar.gz").write_bytes(beside.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT", "gpu-results"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--again", choices=STAGES, action="append", default=[])
    parser.add_argument("--only", choices=STAGES, action="append")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fwopt-gpu")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0.0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = Path(arguments.out).resolve()
    for folder in (arguments.out, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.stage:
        _one_stage(arguments)
        return
    sys.exit(_all_stages(arguments))


def _one_stage(arguments: argparse.Namespace) -> None:
    before = {}
    for need in ("machine", "check"):
        file = arguments.out / f"{need}.json"
        if file.exists():
            before[need] = json.loads(file.read_text())
    result = STAGES[arguments.stage](arguments.device, arguments.seconds, arguments.work, before)
    _write(arguments.out / f"{arguments.stage}.json", result)


def _all_stages(arguments: argparse.Namespace) -> int:
    found: dict[str, Any] = {}
    ends = time.monotonic() + 60 * arguments.minutes
    for stage in arguments.only or STAGES:
        file = arguments.out / f"{stage}.json"
        if file.exists():
            earlier = json.loads(file.read_text())
            if stage not in arguments.again and "error" not in earlier:
                found[stage] = earlier
                print(f"{stage:8}      -    made before")
                continue
            file.unlink()
        missing = [need for need in NEEDS.get(stage, ()) if "error" in _read(arguments.out / f"{need}.json")]
        if missing:
            found[stage] = {"error": f"needs stage {missing[0]}"}
            print(f"{stage:8}      -    needs stage {missing[0]}")
            continue
        later = [s for s in (arguments.only or STAGES) if s not in found]
        share = SHARES[stage] / sum(SHARES[s] for s in later)  # of what is left: time not used goes to who follows
        found[stage] = _run(stage, arguments, arguments.work, max(LEAST_S, share * (ends - time.monotonic()) - 5))
        _pack(arguments.work, arguments.out)
    verdicts = [] if any("error" in found.get(s, {"error": 1}) for s in ("machine", "time")) else _verdicts(found)
    summary = {
        "stages": {stage: result.get("error") or "ok" for stage, result in found.items()},
        "device": arguments.device,
        "must_show": verdicts,
        "wrong": found.get("correct", {}).get("wrong", []),
    }
    _write(arguments.out / "summary.json", summary)
    _print(summary, found)
    return int(any(text != "ok" for text in summary["stages"].values()))


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {"error": "missing"}


def _print(summary: dict[str, Any], found: dict[str, Any]) -> None:
    m = found.get("machine", {})
    if "copy_bytes_per_s" in m:
        fp8 = f"{m['fp8_flops'] / 1e12:.1f}" if isinstance(m["fp8_flops"], float) else "none"
        print(f"{m['name']}, torch {m['torch']}, Triton {m['triton']}: copy {m['copy_bytes_per_s'] / 1e12:.3f} TB/s, "
              f"bf16 {m['bf16_flops'] / 1e12:.1f} TFLOP/s, fp8 {fp8}")  # fmt: skip
    for row in found.get("time", {}).get("rows", []):
        sizes = " ".join(f"{k}{v}" for k, v in row["fixed"].items())
        default, best = (f"{1e6 * s:9.2f}" if s else "     none" for s in (row["default_s"], row["best_s"]))
        reached = f"{row['floor_s'] / row['best_s']:5.0%}" if row["best_s"] else ""
        print(f"{row['operator']:16} {row['format']:10} {'x'.join(map(str, row['point'])):>9} {default} {best} us "
              f"{reached} of floor  {row['variant']}  {sizes}")  # fmt: skip
    for line in summary["wrong"]:
        print("WRONG", *line)
    for verdict in summary["must_show"]:
        mark = "held  " if verdict["held"] else "MISSED"
        print(f"{mark} {verdict['what']}: {verdict['value']:.3f}, limit {verdict['limit']}")
    for stage, text in summary["stages"].items():
        print(f"{stage:8} {text}")


if __name__ == "__main__":
    main()
