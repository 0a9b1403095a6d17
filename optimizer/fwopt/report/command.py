"""The command that leads to the same plan."""

from __future__ import annotations

import shlex

from fwopt.report.format import plain
from fwopt.spec.engine import EngineSpec
from fwopt.spec.plan import Plan


def command(plan: Plan) -> str:
    """One `fwopt tune` line, shell-quoted; TRACE stands for the file that the plan pins by digest."""
    words = ["fwopt", "tune", "TRACE", "--model", plan.model.name]
    words += ["--hardware", f"{plan.hardware.device.name}:{plan.hardware.count}"]
    if plan.engine != EngineSpec():
        words += ["--engine", f"{plan.engine.name}=={plan.engine.version}"]
    if plan.rate_scale != 1:
        words += ["--rate-scale", f"{plan.rate_scale:g}"]
    for slo in plan.objective.slos:
        words += ["--slo", str(slo)]
    for goal in plan.objective.goals:
        direction, _, what = str(goal).partition(" ")
        words += [f"--{direction}", what]
    if plan.objective.max_quality_drop is not None:
        words += ["--max-quality-drop", str(plan.objective.max_quality_drop)]
    price = plan.hardware.price
    if price is not None and "--price" in price.basis:
        words += ["--price", f"{price.usd_per_gpu_hour:g}"]
    if plan.baseline_kind == "given":
        words += ["--baseline", "CONFIG.yaml"]
    if plan.chosen is not None and plan.chosen.evaluation.provenance.assumed > 0:
        words.append("--allow-unmeasured")
    words += ["--seed", str(plan.seed)]
    return " ".join(shlex.quote(plain(w)) for w in words)
