"""Reads a vLLM configuration, fwopt's own export or the user's, back into a candidate."""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fwopt.deploy.vllm_flags import (
    ALIASES,
    CHANGES_SPEED,
    KV_DTYPES,
    MODELLED,
    NEEDS_MODEL,
    OTHER,
    STORED_ONLY,
    parse_weights,
)
from fwopt.deploy.vllm_source import SWITCHES, Settings, load
from fwopt.errors import InputError
from fwopt.perf.kv_layout import attention_block
from fwopt.spec.candidate import W4A16, Batching, Bf16, Candidate, Fp8, Quantization
from fwopt.spec.engine import EngineSpec
from fwopt.spec.model import ModelSpec
from fwopt.spec.speculation import read_vllm
from fwopt.targets.quantization import native_quantization

_HUMAN = re.compile(r"^(\d+(?:\.\d+)?)([kmgtKMGT])$")
_POWER = {letter: power for power, letter in enumerate("kmgt", start=1)}


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """One deployment, as a vLLM configuration states it."""

    file: str
    model: str | None
    """Hugging Face id or path; None when the file names none."""
    candidate: Candidate
    """With vLLM's defaults for what is absent; weights in bf16 where only the checkpoint can tell
    (see `for_model`)."""
    kv_left_open: bool
    """Whether the checkpoint decides the KV cache's dtype: `kv-cache-dtype` is absent or `auto`."""
    stated: frozenset[str]
    """Modelled vLLM keys that the file sets itself; the others are the engine's defaults."""
    weights: Quantization | None
    """The scheme, where the file decides it; None where the checkpoint does."""
    packing: str | None
    """`quantization` where it only says how the checkpoint is packed, for example `compressed-tensors`."""
    notes: tuple[str, ...]
    """One sentence for each key that fwopt does not model, and for each value that it takes in another's place."""

    def for_model(self, model: ModelSpec) -> Candidate:
        """The candidate for this very model: its checkpoint decides what the file leaves open."""
        stored = native_quantization(model) if model.checkpoint_quantization else None
        weights = self.weights
        if weights is None:
            if stored is None and self.packing is not None:
                raise InputError(
                    f"{self.file}: quantization: '{self.packing}' names a packing, not a scheme, and {model.name} is "
                    "not a packed checkpoint; add a line '# fwopt: weights=int8' (or fp8, fp8-block, w4a16-g128, mxfp4)"
                )
            weights = stored or Bf16()
        elif weights.kind == "fp8" and stored is not None and stored.kind == "fp8":
            weights = stored
        batching = self.candidate.batching
        if not batching.chunked_prefill and "max-num-batched-tokens" not in self.stated:
            longest = batching.max_model_len or model.max_context_tokens
            tokens = max(batching.max_num_batched_tokens, longest)
            batching = batching.model_copy(update={"max_num_batched_tokens": tokens})
        kv_dtype = (model.checkpoint_kv_dtype if self.kv_left_open else None) or self.candidate.kv_dtype
        block = attention_block(model, kv_dtype)
        if block is not None and "block-size" not in self.stated:
            batching = batching.model_copy(update={"block_size": block})
        taken = {"quantization": weights.model_dump(), "kv_dtype": kv_dtype, "batching": batching.model_dump()}
        return Candidate.model_validate({**self.candidate.model_dump(), **taken})


def read(
    path: Path, *, replicas: int | None = None, engine: EngineSpec | None = None, defaults: Batching | None = None
) -> VllmConfig:
    """A `--config` YAML file or a `vllm serve` command. `replicas` overrides the file's own `# fwopt: replicas=` line.
    `defaults`: of vLLM on the device; None: on an H100 or H200.

    Raises InputError naming file, key and rule. Nothing is dropped: what fwopt does not model is in `notes`.
    """
    settings = load(path)
    _settle_false(settings, engine or EngineSpec())
    directives = _directives(settings)
    if replicas is not None:
        directives["replicas"] = str(replicas)
    weights, packing = _weights(settings, directives.pop("weights", None))
    model = directives.pop("model", None) or settings.values.get("model") or settings.values.get("model-tag")
    if model == NEEDS_MODEL:
        raise InputError(f"{path}: model: is a placeholder for a converted checkpoint; name the model")
    candidate = _candidate(settings, directives, weights or Bf16(), defaults or Batching())
    settings.notes += _unmodelled(settings)
    return VllmConfig(
        file=str(path), model=model, candidate=candidate, stated=frozenset(settings.values) & frozenset(MODELLED),
        kv_left_open=settings.values.get("kv-cache-dtype", "auto") == "auto",
        weights=weights, packing=packing, notes=tuple(settings.notes),
    )  # fmt: skip


def _settle_false(settings: Settings, engine: EngineSpec) -> None:
    """`key: false` in YAML: vLLM 0.24 leaves the key out, 0.32 turns it into `--no-key`."""
    version = tuple(int(part) for part in re.findall(r"\d+", engine.version)[:2])
    for key in settings.ignored_false:
        if version <= (0, 24):
            settings.notes.append(
                f"{key}: vLLM {engine.version} ignores 'false' in a file (its default stays); write 'no-{key}: true'"
            )
        elif version >= (0, 32) or key not in MODELLED:
            settings.put(key, "false")
        else:
            raise InputError(
                f"{settings.file}: {key}: 'false' means different things to vLLM 0.24 and 0.32; write 'no-{key}: true'"
            )


def _directives(settings: Settings) -> dict[str, str]:
    known = ("replicas", "router", "weights", "model")
    for key in settings.directives:
        if key not in known:
            raise InputError(f"{settings.file}: '# fwopt: {key}=': must be one of {', '.join(known)}")
    return dict(settings.directives)


def _weights(settings: Settings, said: str | None) -> tuple[Quantization | None, str | None]:
    """(scheme, packing): what the `# fwopt: weights=` line and the `quantization` key say together."""
    key = settings.values.get("quantization")
    if key is not None and key.lower() in ("none", "null", ""):
        key = None
    scheme = parse_weights(said) if said is not None else None
    if said is not None and scheme is None:
        raise InputError(
            f"{settings.file}: '# fwopt: weights={said}': must be bf16, fp8, fp8-block, int8, w4a16-g128, "
            "w4a16-experts-g32 or mxfp4"
        )
    if key is None or key in STORED_ONLY:
        if scheme is None and key is not None and re.search(r"awq|gptq", key):
            settings.notes.append(f"quantization: {key} is taken as 4-bit weights in groups of 128")
            scheme = W4A16()
        return scheme, key
    named = Fp8() if key == "fp8_per_channel" else ALIASES.get(key)
    if named is None:
        known = ", ".join(sorted({*ALIASES, *STORED_ONLY}))
        raise InputError(f"{settings.file}: quantization: '{key}' has no cost model; one of {known}, or leave it out")
    if key == "fp8_per_channel":
        settings.notes.append(
            "quantization: fp8_per_channel is taken as fp8 with one scale a tensor (the same bytes and FLOPs)"
        )
    if scheme is not None and scheme != named:
        raise InputError(
            f"{settings.file}: quantization: '{key}' contradicts '# fwopt: weights={said}'; correct one of them"
        )
    return named, None


def _candidate(settings: Settings, directives: dict[str, str], weights: Quantization, defaults: Batching) -> Candidate:
    parts: dict[str, dict[str, Any]] = {"batching": defaults.model_dump(), "parallelism": {}}
    for key, (part, name) in MODELLED.items():
        value = settings.values.get(key)
        if value is not None and value.lower() not in ("none", "null"):
            parts[part][name] = _value(settings, key, value)
    if "replicas" in directives:
        parts["parallelism"]["replicas"] = _whole(settings, "replicas", directives["replicas"])
    content: dict[str, Any] = {"quantization": weights.model_dump(), "kv_dtype": _kv_dtype(settings), **parts}
    if "router" in directives:
        content["router"] = directives["router"]
    content["speculation"] = _drafter(settings)
    try:
        candidate = Candidate.model_validate(content)
    except ValidationError as error:
        raise _refused(settings, error) from None
    _check_dtype(settings)
    return _with_engine_rules(settings, candidate)


def _refused(settings: Settings, error: ValidationError) -> InputError:
    """Pydantic's first complaint, under the name that stands in the file."""
    first = error.errors()[0]
    path = tuple(str(part) for part in first["loc"])
    key = next((key for key, place in MODELLED.items() if place == path[-2:]), path[-1])
    rule = first["msg"].replace("Input should be ", "must be ")
    return InputError(f"{settings.file}: {key}: {rule}, got {first['input']!r}")


def _value(settings: Settings, key: str, text: str) -> object:
    if key in SWITCHES:
        return text == "true"
    if key == "gpu-memory-utilization":
        try:
            return float(text)
        except ValueError:
            raise InputError(f"{settings.file}: {key}: must be a number above 0 and at most 1, got '{text}'") from None
    if key == "max-model-len" and text.lower() in ("-1", "auto"):
        settings.notes.append("max-model-len: 'auto' is taken as the model's own maximum")
        return None
    return _whole(settings, key, text)


def _whole(settings: Settings, key: str, text: str) -> int:
    """A whole number; `8k` is 8,000 and `8K` 8,192 where vLLM takes them."""
    human = _HUMAN.match(text) if key in ("max-num-batched-tokens", "max-model-len") else None
    if human is not None:
        number, letter = human.groups()
        if letter.islower():
            return int(float(number) * 1000 ** _POWER[letter])
        if number.isdecimal():
            return int(number) * int(1024 ** _POWER[letter.lower()])
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{settings.file}: {key}: must be a whole number, got '{text}'") from None


def _kv_dtype(settings: Settings) -> str:
    text = settings.values.get("kv-cache-dtype", "auto")
    if text in ("float16", "half"):
        settings.notes.append(f"kv-cache-dtype: {text} is taken as bf16 (the same size)")
        return "bf16"
    if text not in KV_DTYPES:
        raise InputError(
            f"{settings.file}: kv-cache-dtype: must be one of {', '.join(KV_DTYPES)} to be modelled, got '{text}'"
        )
    return KV_DTYPES[text]


def _drafter(settings: Settings) -> dict[str, Any] | None:
    """What `speculative-config` says of n-grams or a draft model; of other methods, or in part, it stays unmodelled."""
    text = settings.values.get("speculative-config")
    if text is None:
        return None
    try:
        said = json.loads(text)
    except ValueError:
        raise InputError(f"{settings.file}: speculative-config: must be JSON, got '{text[:60]}'") from None
    drafter = read_vllm(said) if isinstance(said, dict) else None
    if drafter is None:
        return None
    del settings.values["speculative-config"]
    return drafter.model_dump()


def _check_dtype(settings: Settings) -> None:
    text = settings.values.get("dtype", "auto")
    if text in ("float16", "half"):
        settings.notes.append(f"dtype: {text} is taken as bf16 (the same size and speed)")
    elif text not in ("auto", "bfloat16"):
        raise InputError(
            f"{settings.file}: dtype: must be auto, bfloat16, float16 or half to be modelled, got '{text}'"
        )


def _with_engine_rules(settings: Settings, candidate: Candidate) -> Candidate:
    """vLLM's own rules between limits: what it fills in, and what it refuses."""
    stated, b = settings.values, candidate.batching
    seqs, tokens = b.max_num_seqs, b.max_num_batched_tokens
    if stated.get("performance-mode") == "throughput":
        seqs *= 1 if "max-num-seqs" in stated else 2
        tokens *= 1 if "max-num-batched-tokens" in stated else 2
    if "max-num-batched-tokens" not in stated and b.max_model_len is not None:
        if not b.chunked_prefill:
            tokens = max(tokens, b.max_model_len)
        tokens = min(tokens, seqs * b.max_model_len)
    if "max-num-seqs" not in stated:
        seqs = min(seqs, tokens)
    if tokens < seqs:
        raise InputError(
            f"{settings.file}: max-num-batched-tokens: must be at least max-num-seqs ({seqs}), got {tokens}"
        )
    if not b.chunked_prefill and b.max_model_len is not None and tokens < b.max_model_len:
        raise InputError(
            f"{settings.file}: max-num-batched-tokens: must be at least max-model-len ({b.max_model_len}) "
            f"without chunked prefill, got {tokens}"
        )
    settled = b.model_copy(update={"max_num_seqs": seqs, "max_num_batched_tokens": tokens})
    return Candidate.model_validate({**candidate.model_dump(), "batching": settled.model_dump()})


def _unmodelled(settings: Settings) -> list[str]:
    known = {*MODELLED, *OTHER}
    notes = []
    for key, value in settings.values.items():
        if key in known:
            continue
        full = [name for name in known if name.startswith(key)]
        if full:
            raise InputError(f"{settings.file}: {key}: abbreviates {' or '.join(sorted(full))}; write the name in full")
        shown = value if len(value) <= 60 else f"{value[:57]}..."
        note = f"{key}={shown}: not modelled"
        if key in CHANGES_SPEED:
            note += ", and it changes speed or memory"
        elif near := difflib.get_close_matches(key, known, n=1, cutoff=0.8):
            note += f" (nearest modelled key: {near[0]})"
        notes.append(note)
    return notes
