"""What vLLM takes by itself at the sizes to tune: the default that its own kernel is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fwopt.errors import InputError
from fwopt.tuning.family import Family
from fwopt.tuning.vllm_lookup import Layer, Question, look_up

if TYPE_CHECKING:
    from fwopt_kernels.contract import Variant
    from fwopt_kernels.elsewhere import Elsewhere

TRITON_DEFAULTS = {"num_warps": 4, "num_stages": 3}
"""Where an entry says nothing of them."""


def layer_of(family: Family, tokens: tuple[int, ...]) -> Layer:
    fixed, scaled = dict(family.fixed), family.format.startswith("fp8")
    return Layer(
        fixed["experts"], fixed["intermediate"], fixed["hidden"], fixed["top_k"], scaled,
        (128, 128) if family.format == "fp8-block" else None, tokens,
    )  # fmt: skip


def own_choices(
    family: Family, points: Sequence[tuple[int, ...]], device_name: str, elsewhere: Elsewhere
) -> list[Variant]:
    """At each point, from the file that vLLM ships for the device, or by its rule where it ships none."""
    from fwopt_kernels.apart import Fault, ask_once
    from fwopt_kernels.contract import variant

    question = Question(device_name, (layer_of(family, tuple(tokens for (tokens,) in points)),))
    picks = ask_once(look_up, question, timeout_s=300, elsewhere=elsewhere)
    if isinstance(picks, Fault):
        raise InputError(f"{elsewhere.python}: vLLM could not be asked for its configuration: {picks.reason}")
    chosen = []
    for entry in picks.layers[0].entries:
        constants = {name: value for name, value in entry.items() if name.startswith(("BLOCK", "GROUP"))}
        warps, stages = (entry.get(name, usual) for name, usual in TRITON_DEFAULTS.items())
        chosen.append(variant(warps, stages, **constants))
    return chosen
