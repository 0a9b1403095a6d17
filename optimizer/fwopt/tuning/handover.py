"""What was tuned of fwopt's fused experts, as files that vLLM and SGLang read: constants mean the same there.

fwopt's and the engines' kernels differ all the same, so the winner of one need not be the other's:
`tune --op vllm_fused_moe` times vLLM's own where vLLM is installed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from fwopt.deploy.kernel_configs import Config, Experts, sglang_experts, vllm_experts, with_edges
from fwopt.errors import InputError
from fwopt.perf.kernel_times import fresh
from fwopt.perf.store import Profile
from fwopt.tuning.family import TORCH
from fwopt.tuning.operators import targets
from fwopt.tuning.pickup import Written, written
from fwopt.tuning.vllm_lookup import Layer
from fwopt_kernels.aot import sources
from fwopt_kernels.contract import NUM_STAGES, NUM_WARPS

OPERATORS = ("vllm_fused_moe", "fused_moe")
"""The first that was tuned is handed over."""
_DTYPES: dict[str, tuple[str | None, tuple[int, int] | None]] = {
    "bf16": (None, None),
    "fp8": ("fp8_w8a8", None),
    "fp8-tensor": ("fp8_w8a8", None),
    "fp8-row": ("fp8_w8a8", None),
    "fp8-block": ("fp8_w8a8", (128, 128)),
}
"""Format -> how the engines name it."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """What is handed to an engine."""

    files: dict[str, str]
    """Path -> text."""
    written: tuple[Written, ...]
    """What the engine must take from them."""
    skipped: tuple[str, ...]
    """What could not be handed over, and why."""


def hand_over(profile: Profile, target: Literal["vllm", "sglang"]) -> HandOver:
    """Every expert layer that was tuned."""
    operator = next((name for name in OPERATORS if profile.has(name)), None)
    if operator is None:
        raise InputError(
            f"{profile.folder}: no fused experts were tuned there; run `fwopt kernels tune --op fused_moe`"
        )
    columns = fresh(profile, operator, sources(targets()[operator]))
    layers: dict[tuple[str, int, int, int, int], dict[int, Config]] = defaultdict(dict)
    skipped = []
    for at in (columns["chosen"] == 1).nonzero()[0]:
        format = str(columns["format"][at])
        if format not in _DTYPES:
            skipped.append(f"{operator} {format}: no file of {target} is known for it")
            continue
        if columns["variant"][at] == TORCH:
            skipped.append(f"{operator} {format}: timed on a processor, where there is no kernel to choose")
            continue
        experts, intermediate, hidden, top_k = (
            int(columns[name][at]) for name in ("experts", "intermediate", "hidden", "top_k")
        )
        key = (format, experts, intermediate, hidden, top_k)
        layers[key][int(columns["tokens"][at])] = _config(str(columns["variant"][at]))
    files: dict[str, str] = {}
    proofs = []
    environment = profile.environment
    for (format, experts, intermediate, hidden, top_k), configs in layers.items():
        dtype, block = _DTYPES[format]
        layer = Experts(experts, intermediate, dtype, block)
        write = vllm_experts if target == "vllm" else sglang_experts
        ((name, text),) = write(
            layer, environment.device_full_name, with_edges(configs), environment.engine_version
        ).items()
        if name in files:
            skipped.append(f"{name}: hidden {hidden}, {top_k} experts a token has the same name as another; left out")
            continue
        files[name] = text
        proofs.append(written(name, configs, Layer(experts, intermediate, hidden, top_k, dtype is not None, block, ())))
    return HandOver(files, tuple(proofs), tuple(sorted(set(skipped))))


def _config(variant: str) -> Config:
    """From a variant's id, whose every part is a name and a number: it may be no variant of the space, but an entry
    that the engine ships."""
    parts = [re.fullmatch(r"(\D+)(\d+)", part) for part in variant.split("-")]
    found = {part[1]: int(part[2]) for part in parts if part is not None}
    assert len(found) == len(parts), variant
    return {{"w": NUM_WARPS, "s": NUM_STAGES}.get(name, name.upper()): value for name, value in found.items()}
