"""Weights by their Hugging Face names: from safetensors, from GGUF, or made up."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from fwopt.errors import InputError
from fwopt_kernels import mxfp4

LoadFormat = Literal["auto", "dummy"]

_FP8_BLOCK = 128
"""Rows and columns that share a scale in FP8 checkpoints with blocks (`weight_block_size`)."""


class Checkpoint(Protocol):
    """Where a model takes its weights from."""

    def has(self, name: str) -> bool: ...

    def tensor(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        """The tensor of that name on the CPU, in the dtype it is stored in; another shape is an error."""
        ...


def open_checkpoint(path: Path, load_format: LoadFormat) -> Checkpoint:
    if load_format == "dummy":
        return Dummy()
    if path.suffix == ".gguf":
        from fwopt.engine.gguf_file import GgufCheckpoint

        return GgufCheckpoint(path)
    return Safetensors(path)


class Dummy:
    """Random weights of a plausible scale, the same for each name whatever the order and the number of ranks."""

    def has(self, name: str) -> bool:
        return not name.endswith(("_blocks", "weight_packed", "weight_scale"))

    def tensor(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        if "norm" in name:
            return torch.ones(*shape, dtype=torch.bfloat16)
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
        generator = torch.Generator().manual_seed(seed)
        values = torch.empty(*shape, dtype=torch.bfloat16)
        return values.normal_(0.0, 1.0 / math.sqrt(shape[-1]), generator=generator)


class Safetensors:
    """One or several `*.safetensors` files in a folder."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._folder = folder
        self._files: dict[str, Any] = {}
        for file in self._named(folder):
            handle: Any = safe_open(str(file), framework="pt", device="cpu")
            self._files.update(dict.fromkeys(handle.keys(), handle))

    @staticmethod
    def _named(folder: Path) -> list[Path]:
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            files = [folder / name for name in names]
        else:
            files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise InputError(f"{folder}: no *.safetensors here; give a folder with weights, or --load-format dummy")
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: named in {index.name}, but not there")
        return files

    def has(self, name: str) -> bool:
        return name in self._files

    def tensor(self, name: str, shape: Sequence[int]) -> torch.Tensor:
        if name not in self._files and f"{name}_packed" in self._files:
            found = self._unpacked(name, self._load(f"{name}_packed"), self._load(f"{name}_scale"))
        elif name in self._files:
            found = self._load(name)
            if found.dtype in (torch.int8, torch.float8_e4m3fn):
                found = self._scaled(name, found)
        else:
            raise InputError(f"{self._folder}: the checkpoint has no tensor {name}")
        return check_shape(str(self._folder), name, found, shape)

    def _load(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self._files[name].get_tensor(name)
        return found

    def _unpacked(self, name: str, packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Of compressed-tensors: 4-bit numbers in groups, or MXFP4."""
        if packed.dtype == torch.int32:
            return unpack_int4(packed, scale)
        if packed.dtype == scale.dtype == torch.uint8:
            return mxfp4.dense(packed, scale, torch.float32)
        raise InputError(
            f"{self._folder}: {name} is packed in {packed.dtype} with scales in {scale.dtype}; it must be "
            "pack-quantized (int32) or mxfp4-pack-quantized (uint8 both)"
        )

    def _scaled(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        """Numbers that INT8 or FP8 weights stand for: a scale a tensor, a row, or a block (`weight_scale_inv`)."""
        if f"{name}_scale_inv" in self._files:
            scale = self._load(f"{name}_scale_inv").float()
            scale = scale.repeat_interleave(_FP8_BLOCK, 0).repeat_interleave(_FP8_BLOCK, 1)
            return stored.float() * scale[: stored.shape[0], : stored.shape[1]]
        if f"{name}_scale" in self._files:
            scale = self._load(f"{name}_scale").float()
            return stored.float() * (scale.view(-1, 1) if scale.numel() > 1 else scale.view(()))
        raise InputError(f"{self._folder}: {name} is stored in {stored.dtype} without a scale")


def check_shape(where: str, name: str, found: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    if tuple(found.shape) != tuple(shape):
        raise InputError(f"{where}: {name} must have shape {tuple(shape)} by config.json, got {tuple(found.shape)}")
    return found


def unpack_int4(packed: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """compressed-tensors `pack-quantized`: eight numbers in an int32, lowest bits first, offset by 8; (n, k / group)
    scales."""
    levels = (packed.unsqueeze(-1) >> torch.arange(0, 32, 4)) & 15
    rows = levels.flatten(1).float() - 8
    return (rows.view(len(rows), scale.shape[1], -1) * scale.float()[..., None]).flatten(1)
