"""Reads an exported `llama-server.env` back into a candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fwopt.deploy.llamacpp import CACHE_TYPES
from fwopt.errors import InputError
from fwopt.live.servers.settings_file import assignments, directives
from fwopt.spec.candidate import Candidate


def read(path: Path) -> Candidate:
    """The candidate that the file deploys; InputError naming file, key and rule."""
    values, said = assignments(path), directives(path)
    content: dict[str, Any] = {
        "quantization": {"kind": "gguf", "type": said.get("weights")},
        "kv_dtype": _kv_dtype(path, values),
        "parallelism": {"replicas": said.get("replicas", 1), "pp": said.get("pp", 1)},
        "batching": {
            "max_num_seqs": _whole(path, values, "LLAMA_ARG_N_PARALLEL"),
            "max_num_batched_tokens": _whole(path, values, "LLAMA_ARG_BATCH"),
            "max_model_len": _whole(path, values, "LLAMA_ARG_KV_UNIFIED_PER_SLOT"),
            "prefix_caching": values.get("LLAMA_ARG_CACHE_PROMPT", "true") == "true",
            **{key: said[key] for key in ("block_size", "gpu_memory_utilization") if key in said},
        },
        **{key: said[key] for key in ("router",) if key in said},
    }
    try:
        return Candidate.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}, got {first['input']!r}") from None


def _kv_dtype(path: Path, values: dict[str, str]) -> str:
    keys, names = ("LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_CACHE_TYPE_V"), {v: k for k, v in CACHE_TYPES.items()}
    found = {values.get(key, CACHE_TYPES["bf16"]) for key in keys}
    if len(found) > 1 or not found <= set(names):
        raise InputError(
            f"{path}: {' and '.join(keys)}: must be equal, and one of {', '.join(names)}, "
            f"got {' and '.join(sorted(found))}"
        )
    return names[found.pop()]


def _whole(path: Path, values: dict[str, str], key: str) -> int:
    text = values.get(key, "")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{path}: {key}: must be a whole number of at least 1, got '{text}'")
    return int(text)
