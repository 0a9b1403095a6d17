"""Plan -> files for `vllm serve`: the engine's config, the shape of the deployment, its start script and its router."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import yaml

from fwopt.deploy import MARK
from fwopt.deploy.promises import one_line, promises
from fwopt.deploy.vllm_flags import CONVERTED, NEEDS_MODEL, engine_quantization, weights_name
from fwopt.spec.candidate import Candidate
from fwopt.spec.plan import Entry, Plan

ROUTER_PORT = 8000
"""Where clients connect."""
FIRST_REPLICA_PORT = 8001
"""Replica i listens on 127.0.0.1 at this port plus i, behind the router."""

NGINX_POLICY = {"least_requests": "        least_conn;\n", "round_robin": ""}
"""Router policy -> nginx's upstream method; nginx without one goes round."""

_PLAIN = re.compile(r"^[A-Za-z0-9_./][A-Za-z0-9_./@+-]*$")
"""Names that YAML reads without quotes, unless they look like a number or a switch."""


def render(plan: Plan) -> dict[str, str]:
    """File name -> text. Without a chosen entry there is nothing to deploy and no file."""
    entry = plan.chosen
    if entry is None:
        return {}
    texts = {
        "config.yaml": config(plan, entry),
        "fwopt.env": environment(plan, entry),
        "run.sh": files("fwopt.deploy").joinpath("assets/run.sh").read_text(encoding="utf-8"),
    }
    if entry.candidate.parallelism.replicas > 1:
        texts["nginx.conf"] = nginx(plan, entry.candidate)
    return texts


def _model(plan: Plan) -> str:
    """What `vllm serve` loads: a config.json was named to fwopt, its folder is the model."""
    return plan.model.name.removesuffix("/config.json")


def _quantization(plan: Plan, entry: Entry) -> str | None:
    return engine_quantization(entry.candidate.quantization, plan.model, entry.needs_checkpoint is not None)


def _head(plan: Plan, what: str) -> list[str]:
    return [
        f"# {MARK} {one_line(plan.fwopt_version)} from plan {plan.content_hash()}: change the plan, not this file.",
        what,
    ]


def config(plan: Plan, entry: Entry) -> str:
    """`vllm serve --config`: every searched value stated, nothing else."""
    candidate, quantization = entry.candidate, _quantization(plan, entry)
    p = candidate.parallelism
    gpus = f"{p.gpus_per_replica} {plan.hardware.device.name} GPU" + "s" * (p.gpus_per_replica > 1)
    copies = f"One of {p.replicas} equal replicas, each" if p.replicas > 1 else "The one replica,"
    lines = _head(plan, f"# {copies} on {gpus}; vLLM {one_line(plan.engine.version)}.")
    lines += [f"# {line}".rstrip() for line in ("", *promises(plan, entry), "")]
    lines += [
        "# The next lines say what vLLM has no key for; fwopt reads them back.",
        f"# fwopt: replicas={p.replicas}",
        f"# fwopt: router={candidate.router}",
    ]
    converted = quantization == CONVERTED
    if converted or plan.model.checkpoint_quantization:
        lines.append(f"# fwopt: weights={weights_name(candidate.quantization)}")
    if converted:
        lines += [
            f"# fwopt: model={one_line(_model(plan))}",
            "",
            f"# {one_line(entry.needs_checkpoint or 'vLLM cannot make these weights while loading.')}",
            "# Put the path of the converted checkpoint here, or in FWOPT_MODEL of fwopt.env; it must be in the",
            "# compressed-tensors format. For one packed by AWQ or GPTQ, delete the `quantization` line below.",
        ]
    else:
        lines.append("")
    lines += [f"{key}: {_scalar(value)}" for key, value in _settings(plan, candidate, quantization).items()]
    return "\n".join(lines) + "\n"


def _settings(plan: Plan, candidate: Candidate, quantization: str | None) -> dict[str, str | int | float | bool]:
    """vLLM's own keys in reading order. Off is `no-...: true`: vLLM 0.24 ignores `key: false`."""
    p, b = candidate.parallelism, candidate.batching
    converted = quantization == CONVERTED
    settings: dict[str, str | int | float | bool] = {"model": NEEDS_MODEL if converted else _model(plan)}
    if converted:
        settings["served-model-name"] = _model(plan)
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
    return (
        settings
        | _switch("enable-prefix-caching", b.prefix_caching)
        | _switch("enable-chunked-prefill", b.chunked_prefill)
    )


def _switch(key: str, on: bool) -> dict[str, bool]:
    return {key if on else f"no-{key}": True}


def _scalar(value: str | int | float | bool) -> str:
    """YAML 1.1 scalar; a name that could be read as anything but a string is quoted."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return value if _PLAIN.match(value) and yaml.safe_load(value) == value else json.dumps(value)


def environment(plan: Plan, entry: Entry) -> str:
    """`KEY=value` lines for run.sh (and for systemd's EnvironmentFile)."""
    p = entry.candidate.parallelism
    values = {
        "FWOPT_REPLICAS": p.replicas,
        "FWOPT_GPUS_PER_REPLICA": p.gpus_per_replica,
        "FWOPT_ROUTER_PORT": ROUTER_PORT,
        "FWOPT_FIRST_REPLICA_PORT": FIRST_REPLICA_PORT,
        "FWOPT_NEEDS_MODEL": int(_quantization(plan, entry) == CONVERTED),
    }
    lines = _head(
        plan, "# The shape of the deployment, read by run.sh. FWOPT_MODEL, when set, replaces the model of config.yaml."
    )
    return "\n".join([*lines, *(f"{key}={value}" for key, value in values.items()), "FWOPT_MODEL="]) + "\n"


def nginx(plan: Plan, candidate: Candidate) -> str:
    """Router in front of the replicas, with the policy that was simulated."""
    replicas = candidate.parallelism.replicas
    servers = "".join(f"        server 127.0.0.1:{FIRST_REPLICA_PORT + i};\n" for i in range(replicas))
    head = "\n".join(
        _head(plan, f"# Router policy as simulated: {candidate.router}. Start: nginx -c PATH/nginx.conf (run.sh does).")
    )
    template = files("fwopt.deploy").joinpath("assets/nginx.conf").read_text(encoding="utf-8")
    return (
        head
        + "\n"
        + template.replace("@POLICY@\n", NGINX_POLICY[candidate.router])
        .replace("@SERVERS@\n", servers)
        .replace("@PORT@", str(ROUTER_PORT))
    )
