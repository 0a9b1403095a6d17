"""Tensors of a checkpoint, rounded and packed by compressed-tensors, file by file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwopt.atomic import hidden_beside
from fwopt.errors import InputError
from fwopt.quality.schemes import Scheme
from fwopt.quality.shards import Shards, weight_files
from fwopt.quantize.layout import Place, left_alone, library_scheme, places, quantization_config

if TYPE_CHECKING:
    from torch import Tensor

Tell = Callable[[str, int, int], None]
INDEX = "model.safetensors.index.json"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx")
_NOT_COPIED = ("config.json", INDEX, "README.md", "pytorch_model.bin.index.json")


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """A folder of the target's own name to fill, on the same disk: it becomes `target` at the end, or vanishes."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: is there already; choose another --out, or remove it")
    beside = hidden_beside(target)
    try:
        work = beside / target.name
        work.mkdir()
        yield work
        for file in work.iterdir():
            file.chmod(0o644)
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        work.replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}; nothing was left there") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@dataclass(slots=True)
class Writer:
    """One unquantized checkpoint to one quantized one."""

    source: Path
    scheme: Scheme
    tell: Tell

    def write(self, target: Path) -> None:
        """Weights, config.json and everything else of the folder."""
        shards = Shards(self.source)
        dimensions = {name: shards.dimensions(name) for name in shards.names}
        where = places(shards.names, dimensions)
        config = json.loads((self.source / "config.json").read_text(encoding="utf-8"))
        config["quantization_config"] = quantization_config(self.scheme, where, left_alone(shards.names, dimensions))
        self._weights(shards, {f"{place.module}.weight": place for place in where}, target)
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_rest(self.source, target)

    def _weights(self, shards: Shards, where: dict[str, Place], target: Path) -> None:
        files, total = weight_files(self.source), 0
        index: dict[str, str] = {}
        for number, file in enumerate(files):
            self.tell("writing weights", number, len(files))
            tensors: dict[str, Tensor] = {}
            for name in shards.in_file(file):
                tensors |= self._stored(shards, name, where.get(name))
            save(tensors, target / file.name)
            index |= dict.fromkeys(tensors, file.name)
            total += sum(t.numel() * t.element_size() for t in tensors.values())
        if len(files) > 1:
            text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
            (target / INDEX).write_text(text + "\n", encoding="utf-8")

    def _stored(self, shards: Shards, name: str, place: Place | None) -> dict[str, Tensor]:
        part = self.scheme.at(place.layer, place.matrix) if place is not None else None
        if place is None or part is None or part.weights is None:
            return {name: shards.read(name)}
        from compressed_tensors.compressors.base import BaseCompressor

        weight = shards.read(name)
        scheme = library_scheme(part, ["Linear"])
        compressor = BaseCompressor.get_value_from_registry(scheme.format.value)
        state = compressor.compress(
            {"weight": weight, "weight_scale": self._scale(shards, place, part, weight)}, scheme
        )
        return {f"{place.module}.{key}": value.contiguous() for key, value in state.items()}

    def _scale(self, shards: Shards, place: Place, part: Scheme, weight: Tensor) -> Tensor:
        """One for a whole matrix is shared by those that an engine fuses."""
        import torch

        from fwopt.quality.rounding import scales

        assert part.weights is not None
        if part.weights["strategy"] != "tensor":
            return scales(weight, part.weights)
        fused = [f"{module}.weight" for module in place.siblings]
        if not all(name in shards.names for name in fused):
            return scales(weight, part.weights)
        return torch.stack([scales(shards.read(name), part.weights) for name in fused]).amax(dim=0)


def save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, str(path), metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(None, str(error)) from None


def copy_rest(source: Path, target: Path) -> None:
    """Tokenizer, chat template, generation config, licence: whatever is no weight."""
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix not in _WEIGHTS and file.name not in _NOT_COPIED and file.name[0] != ".":
            shutil.copyfile(file, target / file.name)


def stored_bytes(folder: Path) -> int:
    """Of all weight files."""
    return sum(file.stat().st_size for file in weight_files(folder))


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found
