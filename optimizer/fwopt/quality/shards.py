"""A checkpoint's tensors by name, over all of its safetensors files; and what its content hashes to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwopt.errors import InputError

if TYPE_CHECKING:
    import torch

_INDEX = "model.safetensors.index.json"
_READ_BYTES = 1 << 22


def weight_files(folder: Path) -> list[Path]:
    """All files that the index names, or all there are; a missing one is refused."""
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            raise InputError(f"{index}: must be the index of a checkpoint, with a weight_map") from None
        files = [folder / name for name in names]
        for file in files:
            if not file.is_file():
                raise InputError(f"{file}: named in {_INDEX}, but not there; download the missing shard")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder}: no *.safetensors here; `fwopt quality` needs a folder with the model's weights")
    return files


class Shards:
    """Opened file by file while tensors are read: nothing stays mapped."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        for file in weight_files(folder):
            with _opened(file) as handle:
                self._files.update(dict.fromkeys(handle.keys(), file))

    @property
    def names(self) -> list[str]:
        return list(self._files)

    def dtype(self, name: str) -> torch.dtype:
        with _opened(self._files[name]) as handle:
            found: torch.dtype = handle.get_slice(name)[:1].dtype
        return found

    @contextmanager
    def slices(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Tensors that are read when they are used, within the context."""
        with ExitStack() as stack:
            files = {self._files[name] for name in names}
            handles = {file: stack.enter_context(_opened(file)) for file in sorted(files)}
            yield {name: handles[self._files[name]].get_slice(name) for name in names}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as handle:
            yield handle
    except SafetensorError as error:
        raise InputError(f"{file}: is no whole safetensors file ({error}); download it again") from None


def weights_digest(folder: Path, memory: Path) -> str:
    """SHA-256 over config.json and all weight files. `memory`: a file that keeps each file's digest by its size and
    time of change, so that hashing hundreds of gigabytes happens once."""
    from fwopt.atomic import written_whole

    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    whole, fresh = hashlib.sha256(), {}
    for file in [folder / "config.json", *weight_files(folder)]:
        stat = file.stat()
        key = f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        fresh[key] = known.get(key) or _file_digest(file)
        whole.update(f"{file.name}:{fresh[key]}\n".encode())
    if fresh.keys() - known.keys():
        with written_whole(memory) as path:
            path.write_text(json.dumps(known | fresh, indent=1), encoding="utf-8")
    return whole.hexdigest()


def _file_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
