"""The command that leads to the same plan."""

from __future__ import annotations

import shlex

from fwopt.search.run_folder import RunInputs
from fwopt.search.settings import Settings
from fwopt.search.space import SpaceOverrides
from fwopt.spec.engine import EngineSpec
from fwopt.spec.quality import QualitySettings


def command(inputs: RunInputs) -> str:
    """One `fwopt tune` line, shell-quoted; TRACE stands for the file that the plan pins by digest, and what else has
    to be at hand has a name in capitals too."""
    words = ["fwopt", "tune", "TRACE", *_traffic(inputs), "--model", inputs.model.name]
    words += ["--hardware", f"{inputs.hardware.device.name}:{inputs.hardware.count}"]
    price = inputs.hardware.price
    if price is not None and price.source == "user":
        words += ["--price", f"{price.usd_per_gpu_hour:.12g}"]
    if inputs.engine != EngineSpec():
        words += ["--engine", f"{inputs.engine.name}=={inputs.engine.version}"]
    words += ["--profiles", "FOLDER"] * (inputs.profiles is not None)
    words += ["--calibration", "CALIBRATION.yaml"] * (inputs.machine is not None)
    words += ["--speculation", "SPECULATION.json"] * (inputs.drafters is not None)
    words += _objective(inputs)
    if inputs.measuring is not None:
        for name in (*inputs.measuring.files, *inputs.measuring.traces):
            words += ["--measure-quality", name]
    words += ["--baseline", "CONFIG.yaml"] * (inputs.baseline is not None)
    files = inputs.measuring is not None and inputs.measuring.settings != QualitySettings()
    words += ["--config", "FWOPT.yaml"] * (files or inputs.overrides != SpaceOverrides())
    if inputs.trials != Settings().trials:
        words += ["--trials", str(inputs.trials)]
    return " ".join(shlex.quote(word) for word in [*words, "--seed", str(inputs.seed)])


def _traffic(inputs: RunInputs) -> list[str]:
    words = ["--format", inputs.trace_format] if inputs.trace_format else []
    words += ["--skip-bad"] * inputs.skip_bad
    words += ["--only-model", inputs.only_model] if inputs.only_model else []
    return words + (["--rate-scale", f"{inputs.rate_scale:.12g}"] if inputs.rate_scale != 1 else [])


def _objective(inputs: RunInputs) -> list[str]:
    objective, words = inputs.objective, []
    for slo in objective.slos:
        words += ["--slo", str(slo)]
    for goal in objective.goals:
        direction, _, what = str(goal).partition(" ")
        words += [f"--{direction}", what]
    for limit in objective.quality_limits:
        words += ["--max-quality-drop", str(limit)]
    return words + ["--allow-unmeasured"] * inputs.allow_unmeasured
