"""What every target's files share: the shape of the deployment, its start script and its router."""

from __future__ import annotations

import shlex
from importlib.resources import files

from fwopt.deploy import MARK
from fwopt.deploy.promises import one_line, promises
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineName
from fwopt.spec.plan import Entry, Plan
from fwopt.spec.router import BALANCE_ABSOLUTE, BALANCE_RELATIVE, CACHE_THRESHOLD, ROUTER_PACKAGE, RouterPolicy

ROUTER_PORT = 8000
"""Where clients connect."""
FIRST_REPLICA_PORT = 8001
"""Replica i listens on 127.0.0.1 at this port plus i, behind the router."""

NGINX_POLICY: dict[RouterPolicy, str] = {"least_requests": "        least_conn;\n", "round_robin": ""}
"""Router policy -> nginx's upstream method; nginx without one goes round. `cache_aware` reads prompts,
which nginx cannot."""


NAMES: dict[EngineName, str] = {"vllm": "vLLM", "sglang": "SGLang", "llamacpp": "llama.cpp", "fwopt": "fwopt"}
"""What comments call an engine."""


def model_name(plan: Plan) -> str:
    """What the engine loads: where a config.json was named to fwopt, its folder is the model."""
    return plan.model.name.removesuffix("/config.json")


def head(plan: Plan, what: str) -> list[str]:
    """First two comment lines of a file."""
    return [
        f"# {MARK} {one_line(plan.fwopt_version)} from plan {plan.content_hash()}: change the plan, not this file.",
        what,
    ]


def opening(plan: Plan, entry: Entry, engine: EngineName) -> list[str]:
    """Comment lines that open an engine's own file: where it runs, and what it promises. Files for another engine
    than the plan's name no version of it, and say whose promises these are."""
    p, device = entry.candidate.parallelism, plan.hardware.device
    where = f"{p.gpus_per_replica} {device.name} GPU" + "s" * (p.gpus_per_replica > 1)
    if device.kind == "cpu":
        where = one_line(device.full_name)
    copies = f"One of {p.replicas} equal replicas, each" if p.replicas > 1 else "The one replica,"
    planned = f"{NAMES[plan.engine.name]} {one_line(plan.engine.version)}"
    foreign = engine != plan.engine.name
    lines = head(plan, f"# {copies} on {where}; {NAMES[engine] if foreign else planned}.")
    said = [""]
    if foreign:
        whose = f"what is promised here was found for that engine, not for {NAMES[engine]}"
        said += [f"Planned for {planned}: {whose}.", ""]
    return lines + [f"# {line}".rstrip() for line in (*said, *promises(plan, entry), "")]


def directives(candidate: Candidate, **further: object) -> list[str]:
    """Comment lines that carry what the engine has no key for; fwopt reads them back."""
    values = {"replicas": candidate.parallelism.replicas, "router": candidate.router, **further}
    return [f"# fwopt: {key}={value}" for key, value in values.items()]


def surroundings(plan: Plan, entry: Entry, engine: EngineName, *, needs_model: bool = False) -> dict[str, str]:
    """fwopt.env, run.sh and, where there are several replicas behind nginx, nginx.conf."""
    texts = {"fwopt.env": environment(plan, entry, needs_model=needs_model), "run.sh": script(engine)}
    if entry.candidate.parallelism.replicas > 1 and entry.candidate.router in NGINX_POLICY:
        texts["nginx.conf"] = nginx(plan, entry.candidate)
    return texts


def environment(plan: Plan, entry: Entry, *, needs_model: bool) -> str:
    """`KEY=value` lines for run.sh (and for systemd's EnvironmentFile)."""
    p = entry.candidate.parallelism
    values: dict[str, object] = {
        "FWOPT_REPLICAS": p.replicas,
        "FWOPT_GPUS_PER_REPLICA": 0 if plan.hardware.device.kind == "cpu" else p.gpus_per_replica,
        "FWOPT_ROUTER_PORT": ROUTER_PORT,
        "FWOPT_FIRST_REPLICA_PORT": FIRST_REPLICA_PORT,
        "FWOPT_NEEDS_MODEL": int(needs_model),
    }
    if p.replicas > 1 and entry.candidate.router == "cache_aware":
        values |= {
            "FWOPT_ROUTER_PACKAGE": ROUTER_PACKAGE,
            "FWOPT_CACHE_THRESHOLD": CACHE_THRESHOLD,
            "FWOPT_BALANCE_ABSOLUTE": BALANCE_ABSOLUTE,
            "FWOPT_BALANCE_RELATIVE": BALANCE_RELATIVE,
        }
    lines = head(
        plan, "# The shape of the deployment, read by run.sh. FWOPT_MODEL, when set, replaces the model of the plan."
    )
    lines += [*(f"{key}={value}" for key, value in values.items()), "FWOPT_MODEL="]
    if plan.model.name.startswith(("./", "../")):
        lines.append(f"FWOPT_MODEL_FOLDER={shlex.quote(plan.model.name)}")
    return "\n".join(lines) + "\n"


def script(engine: EngineName) -> str:
    """run.sh with this engine's own way to start one replica."""
    assets = files("fwopt.deploy").joinpath("assets")
    replica = assets.joinpath(f"replica-{engine}.sh").read_text(encoding="utf-8")
    return assets.joinpath("run.sh").read_text(encoding="utf-8").replace("@REPLICA@\n", replica)


def nginx(plan: Plan, candidate: Candidate) -> str:
    """Router in front of the replicas, with the policy that was simulated."""
    replicas = candidate.parallelism.replicas
    servers = "".join(f"        server 127.0.0.1:{FIRST_REPLICA_PORT + i};\n" for i in range(replicas))
    top = "\n".join(
        head(plan, f"# Router policy as simulated: {candidate.router}. Start: nginx -c PATH/nginx.conf (run.sh does).")
    )
    template = files("fwopt.deploy").joinpath("assets/nginx.conf").read_text(encoding="utf-8")
    return (
        top
        + "\n"
        + template.replace("@POLICY@\n", NGINX_POLICY[candidate.router])
        .replace("@SERVERS@\n", servers)
        .replace("@PORT@", str(ROUTER_PORT))
    )
