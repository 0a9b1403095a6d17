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

LoadFormat = Literal["auto", "dummy"]

_MXFP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of a 4-bit E2M1 number; the high bit is the sign (OCP Microscaling Formats 1.0)."""


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
        if name not in self._files:
            raise InputError(f"{self._folder}: the checkpoint has no tensor {name}")
        found: torch.Tensor = self._files[name].get_tensor(name)
        return check_shape(str(self._folder), name, found, shape)


def check_shape(where: str, name: str, found: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    if tuple(found.shape) != tuple(shape):
        raise InputError(f"{where}: {name} must have shape {tuple(shape)} by config.json, got {tuple(found.shape)}")
    return found


def mxfp4_tensor(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(..., groups, 16) bytes of two numbers each and (..., groups) exponents -> (..., groups * 32) bf16."""
    table = torch.tensor([*_MXFP4, *(-v for v in _MXFP4)], dtype=torch.bfloat16)
    pairs = torch.stack((table[(blocks & 15).long()], table[(blocks >> 4).long()]), dim=-1)
    values = torch.ldexp(pairs.flatten(-2), (scales.int() - 127).unsqueeze(-1))
    return values.flatten(-2).to(torch.bfloat16)
