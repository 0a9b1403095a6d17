"""Plan -> files for SGLang: the YAML of `python -m sglang.launch_server --config` (names of 0.5.23)."""

from __future__ import annotations

import re

from fwopt.deploy.promises import one_line
from fwopt.deploy.shape import directives, model_name, opening, surroundings
from fwopt.deploy.vllm_flags import NEEDS_MODEL, weights_name
from fwopt.deploy.yaml_scalar import yaml_scalar
from fwopt.errors import InputError
from fwopt.spec.plan import Entry, Plan
from fwopt.targets.quantization import native_quantization

FILE = "config.yaml"
KV_DTYPES = {"bf16": "bf16", "fp8": "fp8_e4m3"}
ATTENTION_RANKS_SINCE = (0, 5, 23)
"""First version known to have `attn-dp-size`."""
NO_CHUNKS = -1
"""SGLang's own value of `chunked-prefill-size` for prompts computed whole."""

Setting = str | int | float | bool


def render(plan: Plan) -> dict[str, str]:
    """File name -> text. Without a chosen entry there is nothing to deploy and no file."""
    entry = plan.chosen
    if entry is None:
        return {}
    converted = entry.needs_checkpoint is not None
    return {FILE: config(plan, entry), **surroundings(plan, entry, "sglang", needs_model=converted)}


def config(plan: Plan, entry: Entry) -> str:
    """Every searched value stated, nothing else."""
    candidate = entry.candidate
    lines = [
        *opening(plan, entry, "sglang"),
        "# The next lines say what SGLang has no key for.",
        *directives(candidate, weights=weights_name(candidate.quantization)),
        "",
    ]
    if entry.needs_checkpoint is not None:
        lines += [f"# {one_line(entry.needs_checkpoint)}", "# Put its path here, or in FWOPT_MODEL of fwopt.env."]
    lines += [f"{key}: {yaml_scalar(value)}" for key, value in settings(plan, entry).items()]
    return "\n".join(lines) + "\n"


def settings(plan: Plan, entry: Entry) -> dict[str, Setting]:
    """SGLang's own keys in reading order. A switch that is off is left out: SGLang has no word for it."""
    candidate = entry.candidate
    p, b = candidate.parallelism, candidate.batching
    converted = entry.needs_checkpoint is not None
    found: dict[str, Setting] = {"model-path": NEEDS_MODEL if converted else model_name(plan)}
    if converted:
        found["served-model-name"] = model_name(plan)
    found["dtype"] = "bfloat16"
    if scheme := _on_load(plan, entry):
        found["quantization"] = scheme
    found |= {"kv-cache-dtype": KV_DTYPES[candidate.kv_dtype], "tp-size": p.tp * p.dp, "pp-size": p.pp}
    if p.dp > 1:
        found |= _data_parallel(plan.engine.version, p.dp)
    if plan.model.is_moe or p.ep:
        found["ep-size"] = p.tp * p.dp if p.ep else 1
    chunk = b.max_num_batched_tokens * p.dp  # the ranks of data-parallel attention share it, and the requests
    found |= {
        "max-running-requests": b.max_num_seqs * p.dp,
        "chunked-prefill-size": chunk if b.chunked_prefill else NO_CHUNKS,
        "max-prefill-tokens": b.max_num_batched_tokens,
    }
    if b.max_model_len is not None:
        found["context-length"] = b.max_model_len
    found |= {"page-size": b.block_size, "mem-fraction-static": b.gpu_memory_utilization}
    if not b.prefix_caching:
        found["disable-radix-cache"] = True
    if plan.hardware.device.kind == "cpu":
        found["device"] = "cpu"
    return found


def _data_parallel(version: str, ranks: int) -> dict[str, Setting]:
    """Attention in data-parallel ranks, which SGLang counts inside tp; newer versions refuse the older pair."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers >= ATTENTION_RANKS_SINCE:
        return {"attn-dp-size": ranks}
    return {"dp-size": ranks, "enable-dp-attention": True}


def _on_load(plan: Plan, entry: Entry) -> str | None:
    """What SGLang must do to the weights while loading; None: the checkpoint already is what was searched."""
    wanted, model = entry.candidate.quantization, plan.model
    native = native_quantization(model)
    if entry.needs_checkpoint is not None or wanted == native or wanted.kind == native.kind == "w4a16":
        return None
    if model.checkpoint_quantization is None and wanted.kind == "fp8" and wanted.scale == "tensor":
        return "fp8"
    raise InputError(
        f"SGLang cannot serve {model.name} as {weights_name(wanted)}: its checkpoint is stored as "
        f"{model.checkpoint_quantization or 'bf16'}; convert it first and tune on the converted model"
    )
