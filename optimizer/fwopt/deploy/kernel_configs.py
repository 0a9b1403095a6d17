"""Tuned kernel configurations in the files that vLLM and SGLang read themselves: names, folders and schema.

Facts (read in the sources, Apache-2.0): vLLM 0.32.0 `model_executor/layers/fused_moe/fused_moe.py`
(`get_config_file_name`, `get_moe_configs`), `model_executor/layers/quantization/utils/fp8_utils.py`
(`get_w8a8_block_fp8_configs`), `utils/platform_utils.py`; SGLang, 2026,
`srt/layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py`. vLLM's `_get_config_dtype_str` has no name for
MXFP4 experts, whose kernels there read no such file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from fwopt.errors import InputError

Config = Mapping[str, int]
KEYS = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
"""What every entry holds, in the order that shipped files have it."""
OPTIONAL = ("SPLIT_K",)
VLLM_DTYPES = ("fp8_w8a8", "fp8_w8a16", "int8_w8a16", "int4_w4a16")
SGLANG_DTYPES = ("fp8_w8a8", "int8_w8a8", "int8_w8a16")
"""Without int4: there the file's N counts packed words, and no such file was read back yet."""


@dataclass(frozen=True, slots=True)
class Experts:
    """One expert layer as its kernel sees it on one GPU."""

    experts: int
    intermediate: int
    """Width of an expert on this GPU: divided by tensor parallelism."""
    dtype: str | None = None
    """None: bf16."""
    block_shape: tuple[int, int] | None = None
    """(n, k) of the weights' scales."""


def vllm_experts(layer: Experts, device_name: str, configs: Mapping[int, Config], triton: str) -> dict[str, str]:
    """File name -> text, for the folder that `VLLM_TUNED_CONFIG_FOLDER` names. Every H200 is `NVIDIA_H200` there."""
    _require_dtype(layer.dtype, VLLM_DTYPES, "vLLM")
    device = _vllm_device(device_name)
    if "H200" in device.split("_"):
        device = "NVIDIA_H200"
    parts = [f"E={layer.experts}", f"N={layer.intermediate}", f"device_name={device}", *_dtype(layer)]
    if layer.block_shape:
        parts.append(f"block_shape=[{layer.block_shape[0]},{layer.block_shape[1]}]")
    return {f"{','.join(parts)}.json": _text(configs, triton)}


def vllm_block_fp8(
    n: int, k: int, device_name: str, configs: Mapping[int, Config], block_shape: tuple[int, int] = (128, 128)
) -> dict[str, str]:
    """For a linear layer (n, k) on one GPU. vLLM reads these from its own package only: the file belongs into
    `vllm/model_executor/layers/quantization/utils/configs/`. The device's name is not folded, and a key that is no
    number ends the server, so there is no Triton version in it."""
    shape = f"[{block_shape[0]},{block_shape[1]}]"
    name = f"N={n},K={k},device_name={_vllm_device(device_name)},dtype=fp8_w8a8,block_shape={shape}.json"
    return {name: _text(configs, None)}


def sglang_experts(
    layer: Experts,
    device_name: str,
    configs: Mapping[int, Config],
    triton: str,
    *,
    per_channel: bool = False,
    down: Mapping[int, Config] | None = None,
) -> dict[str, str]:
    """Path -> text below the folder that `SGLANG_MOE_CONFIG_DIR` names. `down`: the second product has its own file,
    whose BLOCK_SIZE_M must be the first one's (SGLang overrides it otherwise). The folder replaces SGLang's own for
    every model of that server. A key that is no number ends the server."""
    _require_dtype(layer.dtype, SGLANG_DTYPES, "SGLang")
    parts = [f"E={layer.experts}", f"N={layer.intermediate}", f"device_name={device_name.replace(' ', '_')}"]
    parts += _dtype(layer)
    if layer.block_shape:
        parts.append(f"block_shape=[{layer.block_shape[0]}, {layer.block_shape[1]}]")
    if per_channel:
        parts.append("per_channel_quant=True")
    stem = f"configs/triton_{triton.replace('.', '_')}/{','.join(parts)}"
    files = {f"{stem}.json": _text(configs, None)}
    if down is not None:
        for rows, config in down.items():
            first = configs.get(rows)
            if first is not None and first["BLOCK_SIZE_M"] != config["BLOCK_SIZE_M"]:
                raise InputError(
                    f"down projection at {rows} tokens: BLOCK_SIZE_M must be the first product's, "
                    f"{first['BLOCK_SIZE_M']}, got {config['BLOCK_SIZE_M']}; both share one sorting of tokens"
                )
        files[f"{stem}_down.json"] = _text(down, None)
    return files


def with_edges(configs: Mapping[int, Config]) -> dict[int, Config]:
    """Engines take the entry whose size is nearest by difference, buckets are tuned by ratio: an entry at each edge
    (the geometric mean of neighbours) makes the engine's choice the bucket's."""
    sizes = sorted(configs)
    edged: dict[int, Config] = {}
    for low, high in pairwise(sizes):
        edge = math.sqrt(low * high)
        edged.setdefault(math.floor(edge), configs[low])
        edged.setdefault(math.floor(edge) + 1, configs[high])
    return dict(sorted((edged | dict(configs)).items()))


def _require_dtype(dtype: str | None, known: tuple[str, ...], engine: str) -> None:
    if dtype is not None and dtype not in known:
        raise InputError(f"{engine} looks for tuned experts of dtype {', '.join(known)} or none (bf16), got '{dtype}'")


def _dtype(layer: Experts) -> list[str]:
    return [] if layer.dtype is None else [f"dtype={layer.dtype}"]


def _vllm_device(name: str) -> str:
    return re.sub(r"[\s/]+", "_", name)


def _text(configs: Mapping[int, Config], triton: str | None) -> str:
    """Entries by ascending size."""
    if not configs:
        raise InputError("nothing was tuned, so there is no configuration to write")
    entries: dict[str, object] = {} if triton is None else {"triton_version": triton}
    for size, config in sorted(configs.items()):
        missing = [key for key in KEYS if key not in config]
        unknown = [key for key in config if key not in KEYS + OPTIONAL]
        if size < 1 or missing or unknown:
            raise InputError(
                f"an entry is a size above zero with {', '.join(KEYS)}, got {size} with "
                f"{', '.join(config) or 'nothing'}"
            )
        entries[str(size)] = {key: config[key] for key in (*KEYS, *OPTIONAL) if key in config}
    return json.dumps(entries, indent=4) + "\n"
