"""What was tuned of fwopt's fused experts, as files that vLLM and SGLang read: constants mean the same there.

fwopt's and the engines' kernels differ all the same, so the winner of one need not be the other's:
`tune --op vllm_fused_moe` times vLLM's own where vLLM is installed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

from fwopt.deploy.kernel_configs import Config, Experts, sglang_experts, vllm_experts, with_edges
from fwopt.errors import InputError
from fwopt.perf.kernel_times import fresh
from fwopt.perf.store import Profile
from fwopt.tuning.operators import load_operator, targets
from fwopt_kernels.aot import sources

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


def hand_over(profile: Profile, target: Literal["vllm", "sglang"]) -> tuple[dict[str, str], list[str]]:
    """Path -> text of every expert layer that was tuned; and what could not be handed over."""
    operator = next((name for name in OPERATORS if profile.has(name)), None)
    if operator is None:
        raise InputError(
            f"{profile.folder}: no fused experts were tuned there; run `fwopt kernels tune --op fused_moe`"
        )
    columns = fresh(profile, operator, sources(targets()[operator]))
    known: dict[str, dict[str, Config]] = {}
    layers: dict[tuple[str, int, int, int, int], dict[int, Config]] = defaultdict(dict)
    skipped = []
    for at in (columns["chosen"] == 1).nonzero()[0]:
        format = str(columns["format"][at])
        if format not in _DTYPES:
            skipped.append(f"{operator} {format}: no file of {target} is known for it")
            continue
        if format not in known:
            known[format] = {v.id: {**dict(v.constants), "num_warps": v.num_warps, "num_stages": v.num_stages}
                             for v in load_operator(operator).space(format).variants()}  # fmt: skip
        experts, intermediate, hidden, top_k = (
            int(columns[name][at]) for name in ("experts", "intermediate", "hidden", "top_k")
        )
        key = (format, experts, intermediate, hidden, top_k)
        layers[key][int(columns["tokens"][at])] = known[format][str(columns["variant"][at])]
    files: dict[str, str] = {}
    environment = profile.environment
    for (format, experts, intermediate, hidden, top_k), configs in layers.items():
        dtype, block = _DTYPES[format]
        layer = Experts(experts, intermediate, dtype, block)
        write = vllm_experts if target == "vllm" else sglang_experts
        for name, text in write(
            layer, environment.device_full_name, with_edges(configs), environment.engine_version
        ).items():
            if name in files:
                skipped.append(
                    f"{name}: hidden {hidden}, {top_k} experts a token has the same name as another; left out"
                )
            files.setdefault(name, text)
    return files, sorted(set(skipped))
