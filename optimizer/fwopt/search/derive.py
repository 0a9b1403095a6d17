"""The default search space of a model on some hardware, with the user's replacements."""

from __future__ import annotations

from itertools import product

from fwopt.errors import InputError
from fwopt.perf.kv_layout import attention_block
from fwopt.search.schemes import check_servable, parse_scheme, scheme_name, servable
from fwopt.search.space import SearchSpace, SpaceOverrides, layout_name, routers
from fwopt.spec.candidate import Parallelism, Quantization
from fwopt.spec.hardware import HardwareSpec
from fwopt.spec.model import ModelSpec
from fwopt.targets.parallel import valid_parallelism

GPUS_PER_MACHINE = 8
"""One copy of the model stays within it unless fwopt.yaml asks for more: beyond, GPUs talk over the network."""


def derive_space(
    model: ModelSpec, hardware: HardwareSpec, overrides: SpaceOverrides | None = None, *, shares_prefixes: bool = True
) -> SearchSpace:
    """Every precision and layout that vLLM accepts, around vLLM's own batching limits.

    `shares_prefixes`: whether the trace says which prompts share a prefix; without that, the prefix cache
    cannot matter in simulation and stays at the engine's default.
    """
    overrides = overrides or SpaceOverrides()
    quantizations = _quantizations(model, hardware, overrides)
    layouts, impossible = _layouts(model, hardware, quantizations, overrides)
    given = overrides.taken()
    given.setdefault("router", routers(shares_prefixes))
    if not shares_prefixes:
        given.setdefault("prefix_caching", (True,))
    if given.get("max_model_len", 0) > model.max_context_tokens:
        raise InputError(
            f"search.max_model_len {given['max_model_len']} exceeds the model's {model.max_context_tokens} tokens"
        )
    given["fp8_block_size"] = attention_block(model, "fp8")
    space = SearchSpace(
        quantizations=quantizations, layouts=layouts, impossible=impossible, gpus=hardware.count, **given
    )
    space.require_any()
    return space


def _quantizations(model: ModelSpec, hardware: HardwareSpec, overrides: SpaceOverrides) -> tuple[Quantization, ...]:
    if overrides.quantizations is None:
        return servable(model, hardware.device)
    found = tuple(parse_scheme(name) for name in overrides.quantizations)
    for quantization in found:
        check_servable(quantization, model, hardware.device)
    return found if model.checkpoint_quantization is None else servable(model, hardware.device)


def _layouts(
    model: ModelSpec, hardware: HardwareSpec, quantizations: tuple[Quantization, ...], overrides: SpaceOverrides
) -> tuple[tuple[Parallelism, ...], tuple[tuple[str, str], ...]]:
    """Layouts valid for at least one precision, and the pairs that are not; one copy per engine, no pipeline."""
    most = min(hardware.count, GPUS_PER_MACHINE)
    powers = tuple(2**i for i in range(most.bit_length()) if 2**i <= most)
    ranks = overrides.tp or powers
    data = overrides.dp or (powers if model.is_moe else (1,))
    expert = overrides.ep or ((False, True) if model.is_moe else (False,))
    layouts, impossible, why = [], [], "tp x dp needs more GPUs than there are"
    for tp, dp, ep in product(ranks, data, expert):
        if tp * dp > (hardware.count if overrides.tp or overrides.dp else most) or _unusual(model, dp, ep, overrides):
            continue
        layout = Parallelism(tp=tp, dp=dp, ep=ep)
        broken = [(scheme_name(q), valid_parallelism(model, q, layout)) for q in quantizations]
        if all(reason is not None for _, reason in broken):
            why = broken[0][1] or why
            continue
        layouts.append(layout)
        impossible += [(name, layout_name(layout)) for name, reason in broken if reason is not None]
    if not layouts:
        raise InputError(f"no parallel layout of {model.name} on {hardware.count} GPUs is valid: {why}")
    return tuple(sorted(layouts, key=lambda p: (p.gpus_per_replica, p.dp, p.ep))), tuple(impossible)


def _unusual(model: ModelSpec, dp: int, ep: bool, overrides: SpaceOverrides) -> bool:
    """Attention data parallelism without sharded experts keeps whole experts sliced over every rank: searched
    only where asked for."""
    return dp > 1 and not ep and overrides.dp is None and model.is_moe
