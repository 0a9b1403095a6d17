"""Plan -> files for `vllm serve`: the engine's config, the shape of the deployment, its start script and its router."""

from __future__ import annotations

import json

from fwopt.deploy.promises import one_line
from fwopt.deploy.shape import directives, model_name, opening, surroundings
from fwopt.deploy.vllm_flags import CONVERTED, NEEDS_MODEL, engine_quantization, weights_name
from fwopt.deploy.yaml_scalar import yaml_scalar
from fwopt.perf.kv_layout import engine_layout
from fwopt.spec.plan import Entry, Plan


def render(plan: Plan) -> dict[str, str]:
    """File name -> text. Without a chosen entry there is nothing to deploy and no file."""
    entry = plan.chosen
    if entry is None:
        return {}
    needs_model = _quantization(plan, entry) == CONVERTED
    return {"config.yaml": config(plan, entry), **surroundings(plan, entry, "vllm", needs_model=needs_model)}


def _quantization(plan: Plan, entry: Entry) -> str | None:
    return engine_quantization(entry.candidate.quantization, plan.model, entry.needs_checkpoint is not None)


def config(plan: Plan, entry: Entry) -> str:
    """`vllm serve --config`: every searched value stated, nothing else."""
    candidate, quantization = entry.candidate, _quantization(plan, entry)
    lines = [
        *opening(plan, entry, "vllm"),
        "# The next lines say what vLLM has no key for; fwopt reads them back.",
        *directives(candidate),
    ]
    converted = quantization == CONVERTED
    if converted or plan.model.checkpoint_quantization:
        lines.append(f"# fwopt: weights={weights_name(candidate.quantization)}")
    if converted:
        lines += [
            f"# fwopt: model={one_line(model_name(plan))}",
            "",
            f"# {one_line(entry.needs_checkpoint or 'vLLM cannot make these weights while loading.')}",
            "# Put the path of the converted checkpoint here, or in FWOPT_MODEL of fwopt.env; it must be in the",
            "# compressed-tensors format. For one packed by AWQ or GPTQ, delete the `quantization` line below.",
        ]
    else:
        lines.append("")
    lines += [f"{key}: {yaml_scalar(value)}" for key, value in _settings(plan, entry, quantization).items()]
    return "\n".join(lines) + "\n"


def _settings(plan: Plan, entry: Entry, quantization: str | None) -> dict[str, str | int | float | bool]:
    """vLLM's own keys in reading order. Off is `no-...: true`: vLLM 0.24 ignores `key: false`."""
    candidate = entry.candidate
    p, b = candidate.parallelism, candidate.batching
    converted = quantization == CONVERTED
    settings: dict[str, str | int | float | bool] = {"model": NEEDS_MODEL if converted else model_name(plan)}
    if converted:
        settings["served-model-name"] = model_name(plan)
    settings |= {
        "dtype": "bfloat16",
        **({"quantization": quantization} if quantization else {}),
        "kv-cache-dtype": "bfloat16" if candidate.kv_dtype == "bf16" else "fp8",
        "tensor-parallel-size": p.tp,
        "pipeline-parallel-size": p.pp,
        "data-parallel-size": p.dp,
    }
    if plan.model.is_moe or p.ep:
        settings |= _switch("enable-expert-parallel", p.ep)
    settings |= {"max-num-seqs": b.max_num_seqs, "max-num-batched-tokens": b.max_num_batched_tokens}
    if b.max_model_len is not None:
        settings["max-model-len"] = b.max_model_len
    settings |= {"block-size": b.block_size, "gpu-memory-utilization": b.gpu_memory_utilization}
    if candidate.speculation is not None:
        settings["speculative-config"] = json.dumps(candidate.speculation.vllm())
    if plan.hardware.device.kind == "cpu":
        settings["kv-cache-memory-bytes"] = _kv_bytes(plan, entry)
    return (
        settings
        | _switch("enable-prefix-caching", b.prefix_caching)
        | _switch("enable-chunked-prefill", b.chunked_prefill)
    )


def _kv_bytes(plan: Plan, entry: Entry) -> int:
    """KV cache of the simulation, vLLM's null block included. On a processor vLLM would take it from a share of all
    memory, and refuse to start when other processes hold some of that share."""
    layout, batching = engine_layout(plan.model, entry.draft, entry.candidate, "vllm", processor=True)
    tokens = (entry.evaluation.kv_blocks_per_replica + 1) * batching.block_size
    return tokens * (layout.full + layout.sliding)


def _switch(key: str, on: bool) -> dict[str, bool]:
    return {key if on else f"no-{key}": True}
