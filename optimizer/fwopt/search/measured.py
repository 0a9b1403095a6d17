"""The search space of an engine whose own steps were measured: what the profile has rows of, and nothing else."""

from __future__ import annotations

from itertools import product

from fwopt.errors import InputError
from fwopt.perf.steps import NEAR, StepKey, StepProfile
from fwopt.search.schemes import GGUF_NAMES, NAMES, parse_scheme, scheme_name
from fwopt.search.space import ROUTERS, SearchSpace, SpaceOverrides, layout_name, routers
from fwopt.spec.candidate import Batching, KvDtype, Parallelism
from fwopt.spec.engine import EngineName
from fwopt.spec.hardware import HardwareSpec

PROCESSOR_MEMORY_SHARE = 0.25
"""Of a machine's memory to vLLM or the reference engine: others live there too, and engines refuse to start when less
than their share is free."""
_TOKEN_BUDGETS = (256, 512, 1024, 2048, 4096, 8192)
_FEWEST: dict[EngineName, int] = {"llamacpp": 1}
"""Sequences at a time from which on limits are searched; llama.cpp divides its context among few slots."""


def measured_space(
    steps: StepProfile, hardware: HardwareSpec, overrides: SpaceOverrides, *, shares_prefixes: bool = True
) -> SearchSpace:
    """Schemes, KV dtypes and layouts that were measured; limits up to the batch that was seen decoding."""
    keys = _keys(steps, overrides)
    names = [name for name in (*NAMES, *GGUF_NAMES) if any(key.scheme == name for key in keys)]
    layouts = tuple(Parallelism(tp=tp) for tp in sorted({key.tp for key in keys}) if tp <= hardware.count)
    if not layouts:
        raise InputError(
            f"steps of {steps.model.name} were measured on {min(key.tp for key in keys)} devices and more, "
            f"there are {hardware.count}; measure tp=1 with `fwopt profile`"
        )
    kv_dtypes: tuple[KvDtype, ...] = tuple(kv for kv in ("bf16", "fp8") if any(k.kv_dtype == kv for k in keys))
    pairs = {(key.scheme, key.tp) for key in keys}
    limits = _limits(steps, keys)
    processor = hardware.device.kind == "cpu"
    defaults = {
        "kv_dtypes": kv_dtypes,
        "max_num_seqs": limits,
        "max_num_batched_tokens": _budgets(steps, keys, max(overrides.max_num_seqs or limits)),
        "gpu_memory_utilization": (PROCESSOR_MEMORY_SHARE,) if processor else (0.92,),
        "prefix_caching": (True, False) if shares_prefixes else (True,),
        "router": ROUTERS[:1] if hardware.count == 1 else routers(shares_prefixes),
    }
    given = overrides.taken()
    longest = given.get("max_model_len") or steps.model.max_context_tokens
    if longest > steps.model.max_context_tokens:
        raise InputError(f"search.max_model_len {longest} exceeds the model's {steps.model.max_context_tokens} tokens")
    space = SearchSpace(
        quantizations=tuple(parse_scheme(name) for name in names),
        layouts=layouts,
        impossible=tuple((name, layout_name(p)) for name, p in product(names, layouts) if (name, p.tp) not in pairs),
        gpus=hardware.count,
        block_size=engine_block_size(steps.engine.name, processor=processor),
        **{**defaults, **given},
    )
    space.require_any()
    return space


def _keys(steps: StepProfile, overrides: SpaceOverrides) -> tuple[StepKey, ...]:
    """What was measured, narrowed to what fwopt.yaml asks for."""
    have = sorted({key.scheme for key in steps.keys})
    for name in overrides.quantizations or ():
        if scheme_name(parse_scheme(name)) not in have:
            raise InputError(
                f"quantization {name}: {steps.profile.name} has no step times of it for {steps.model.name}, only of "
                f"{', '.join(have)}; measure it with `fwopt profile`"
            )
    keys = tuple(
        key
        for key in steps.keys
        if (overrides.quantizations is None or key.scheme in overrides.quantizations)
        and (overrides.tp is None or key.tp in overrides.tp)
    )
    if not keys:
        raise InputError(
            f"search.tp {list(overrides.tp or ())}: {steps.profile.name} has step times of tp "
            f"{sorted({key.tp for key in steps.keys})}"
        )
    return keys


def _limits(steps: StepProfile, keys: tuple[StepKey, ...]) -> tuple[int, ...]:
    """Powers of two up to the largest batch that every scheme was measured at."""
    most = min(steps.largest_batch(key) for key in keys)
    least = min(_FEWEST.get(steps.engine.name, 4), most)
    return tuple(2**i for i in range(most.bit_length()) if least <= 2**i <= most)


def _budgets(steps: StepProfile, keys: tuple[StepKey, ...], sequences: int) -> tuple[int, ...]:
    """Token budgets that hold every sequence and do not exceed the longest step that was measured."""
    longest = max(float(steps.law(key).tokens[-1]) for key in keys)
    found = tuple(b for b in _TOKEN_BUDGETS if sequences <= b <= max(NEAR * longest, sequences))
    return found or (max(sequences, round(longest)),)


def engine_block_size(engine: EngineName, *, processor: bool) -> int:
    """vLLM's on a processor is 128 unless set (`platforms/cpu.py`)."""
    return 128 if engine == "vllm" and processor else Batching.model_fields["block_size"].default
