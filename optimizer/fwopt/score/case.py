"""From one measured row to what has to be simulated, or the reason why it cannot be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from fwopt.errors import FwoptError
from fwopt.score.rules import server_settings
from fwopt.score.table import Row, number, text
from fwopt.spec.candidate import W4A16, Batching, Bf16, Candidate, Fp8, Mxfp4, Parallelism, Quantization
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import ModelSpec
from fwopt.targets import load_model
from fwopt.targets.hardware import device_and_price, resolve
from fwopt.targets.quantization import native_quantization

ENGINES = {"vllm": "0.24.0", "sglang": "0.5.14"}
"""Engines whose scheduling is modelled, and the version whose operator timings are used."""

MAX_GPUS = 8
_WEIGHTS: dict[str, Quantization] = {"fp8": Fp8(), "fp8-block": Fp8(scale="block"), "bf16": Bf16(), "mxfp4": Mxfp4()}


@dataclass(frozen=True, slots=True)
class Load:
    """How requests came: `closed` keeps `concurrency` in flight, `poisson` has `rate_per_s`, `burst` sends all."""

    kind: str
    requests: int
    concurrency: int | None
    rate_per_s: float | None
    prompt_tokens: float
    output_tokens: float
    spread: str
    """`fixed`, `uniform` (0.8 to 1.0 of the nominal length) or `sharegpt` (log-normal about the mean)."""


@dataclass(frozen=True, slots=True)
class Case:
    """A row that can be predicted."""

    model: ModelSpec
    device: DeviceSpec
    engine: EngineSpec
    candidate: Candidate
    load: Load
    async_scheduling: bool
    key: str
    """Identifies the configuration: rows that repeat one have the same key."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """Why a row is not predicted; equal causes have equal words."""

    reason: str


@cache
def _names() -> dict[str, dict[str, str]]:
    source = resources.files("fwopt.score").joinpath("data/models.yaml").read_text(encoding="utf-8")
    names: dict[str, dict[str, str]] = yaml.safe_load(source)
    return names


@cache
def _model(name: str) -> ModelSpec | str:
    try:
        return load_model(_names().get(name, {}).get("config", name))
    except FwoptError as error:
        return str(error)


@cache
def _device(name: str) -> DeviceSpec | str:
    try:
        return device_and_price(resolve(re.sub(r"-(\d+)GB$", "", name)))[0]
    except FwoptError as error:
        return str(error)


def read_case(row: Row) -> Case | Unscored:
    """Resolve a row."""
    engine = text(row, "engine").lower()
    if engine not in ENGINES:
        return Unscored(f"engine {engine or '(none)'} is not modelled")
    if (number(row, "n_gpus") or 0) > MAX_GPUS:
        return Unscored(f"more than {MAX_GPUS} GPUs")
    if text(row, "mode") not in ("", "agg"):
        return Unscored("disaggregated serving is not modelled")
    model = _model(text(row, "model"))
    if isinstance(model, str):
        return Unscored(f"no model config: {text(row, 'model')}")
    device = _device(text(row, "gpu"))
    if isinstance(device, str):
        return Unscored(f"unknown GPU: {text(row, 'gpu')}")
    weights = _weights(row, model)
    if isinstance(weights, Unscored):
        return weights
    load = _load(row)
    if isinstance(load, Unscored):
        return load
    candidate = _candidate(row, engine, device, weights, load)
    if isinstance(candidate, Unscored):
        return candidate
    names = ("model", "precision", "gpu", "engine", "tp", "dp", "ep", "isl", "osl", "load_type", "concurrency",
             "request_rate", "dataset", "max_num_seqs", "max_num_batched_tokens")  # fmt: skip
    key = "|".join(text(row, name) for name in names)
    overlap = "async-scheduling" in text(row, "server_cmd_or_flags") or server_settings(row).get(
        "async_scheduling", True
    )
    spec = EngineSpec.model_validate({"name": engine, "version": ENGINES[engine]})
    return Case(model, device, spec, candidate, load, overlap, key)


def _weights(row: Row, model: ModelSpec) -> Quantization | Unscored:
    named = _names().get(text(row, "model"), {}).get("weights")
    precision = text(row, "precision").lower()
    if model.checkpoint_quantization == "mxfp4":
        return Mxfp4()
    if named is not None:
        return _WEIGHTS[named]
    if "fp8_block" in precision or (precision.startswith("fp8") and model.checkpoint_quantization == "fp8_block"):
        return Fp8(scale="block")
    if precision.startswith("fp8"):
        return Fp8()
    if precision.startswith(("bf16", "fp16")) or not precision:
        return Bf16()
    if precision.startswith("int4"):
        native = native_quantization(model)
        return native if native.kind == "w4a16" else W4A16()
    return Unscored(f"precision {precision} is not modelled")


def _load(row: Row) -> Load | Unscored:
    prompt, output = number(row, "isl"), number(row, "osl")
    if not prompt or not output:
        return Unscored("no prompt or output length")
    kind, dataset = text(row, "load_type"), text(row, "dataset").lower()
    concurrency, rate, count = (number(row, name) for name in ("concurrency", "request_rate", "num_prompts"))
    spread = "sharegpt" if "sharegpt" in dataset else "uniform" if "0.8" in dataset else "fixed"
    if kind in ("closed_loop_concurrency", "rate_1000_capped_512"):
        if not concurrency:
            return Unscored("closed loop without its concurrency")
        n = int(count or 10 * concurrency)
        return Load("closed", n, int(concurrency), None, prompt, output, spread)
    if kind in ("poisson_rate", "rate"):
        if not rate:
            return Unscored("open loop without its rate")
        return Load("poisson", int(count or 1000), None, rate, prompt, output, spread)
    if kind in ("burst_all_at_once", "static_batch"):
        n = int(count or concurrency or 0)
        return Load("burst", n, None, None, prompt, output, spread) if n else Unscored("burst of unknown size")
    return Unscored(f"load type {kind or '(none)'} is not modelled")


def _memory_share(engine: str, device: DeviceSpec, tp: int) -> float:
    """What an engine takes when not told: vLLM 0.9 (0.92 since 0.20). SGLang's `mem_fraction_static` is what 512 MiB,
    1.5 MiB a token of a prefill chunk, 2 MiB a captured sequence and 1 GiB * tp / 8 leave (its server arguments, 0.5).
    """
    if engine == "vllm":
        return 0.9
    total_mib = device.memory_bytes / 2**20
    captured = 512 if tp >= 4 else 256
    return round((total_mib - (512 + 1.5 * 8192 + 2 * captured + 1024 * tp / 8)) / total_mib, 3)


def _candidate(row: Row, engine: str, device: DeviceSpec, weights: Quantization, load: Load) -> Candidate | Unscored:
    tp, dp, ep = (int(number(row, name) or 1) for name in ("tp", "dp", "ep"))
    if (number(row, "pp") or 1) > 1:
        return Unscored("pipeline parallelism is not modelled")
    flags = text(row, "server_cmd_or_flags")
    if "speculative" in flags:
        return Unscored("speculative decoding is not modelled")
    said = server_settings(row)
    memory = re.search(r"(?:gpu-memory-utilization|mem-fraction-static)[= ]([\d.]+)", flags)
    seqs = number(row, "max_num_seqs") or said.get("max_num_seqs")
    tokens = number(row, "max_num_batched_tokens") or said.get("max_num_batched_tokens")
    if seqs == "concurrency":
        seqs = load.concurrency
    context = re.search(r"max-model-len[= ](\d+)", flags)
    longest = int(load.prompt_tokens + load.output_tokens)
    batching = Batching(
        max_num_seqs=int(seqs or 1024),
        max_num_batched_tokens=int(tokens or 8192),
        block_size=16 if engine == "vllm" else 1,
        gpu_memory_utilization=float(memory[1] if memory else said.get("memory") or _memory_share(engine, device, tp)),
        prefix_caching=False,
        max_model_len=max(int(context[1]), longest) if context else None,
    )
    if batching.max_num_batched_tokens < batching.max_num_seqs:
        batching = batching.model_copy(update={"max_num_seqs": batching.max_num_batched_tokens})
    kv = "fp8" if re.search(r"kv-cache-dtype[= ]fp8", flags) else said.get("kv_dtype", "bf16")
    parallelism = Parallelism(tp=tp, dp=dp, ep=ep > 1)
    return Candidate(quantization=weights, kv_dtype=kv, parallelism=parallelism, batching=batching)
