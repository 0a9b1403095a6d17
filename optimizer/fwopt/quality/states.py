"""Hidden states of all windows between two layers, one file for each arm: what a killed run goes on from.

`ARM.LAYER` holds what goes into that layer. The file of the next layer is complete before the last one is removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fwopt.atomic import written_whole

EMBEDDED = "embedded"
"""Name of what goes into the first layer, the same in every arm."""


@dataclass(frozen=True, slots=True)
class States:
    """In one folder; tokens of all windows in a row."""

    folder: Path
    tokens: int
    hidden_size: int
    dtype: torch.dtype

    def _path(self, arm: str, layer: int) -> Path:
        return self.folder / f"{EMBEDDED if layer == 0 else arm}.{layer}"

    def has(self, arm: str, layer: int) -> bool:
        return self._path(arm, layer).is_file()

    def reached(self, arm: str, layers: int) -> int:
        """The furthest layer whose input is there."""
        return next((layer for layer in range(layers, 0, -1) if self.has(arm, layer)), 0)

    def read(self, arm: str, layer: int) -> Tensor:
        """(tokens, hidden), mapped."""
        return self._mapped(self._path(arm, layer))

    @contextmanager
    def write(self, arm: str, layer: int) -> Iterator[Tensor]:
        """(tokens, hidden) to fill. Space is taken first: a full disk is an error, not a crash on a mapped page."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with written_whole(self._path(arm, layer)) as path:
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.tokens * self.hidden_size * self.dtype.itemsize)
            yield self._mapped(path)

    def forget(self, arm: str, layer: int) -> None:
        if layer > 0:
            self._path(arm, layer).unlink(missing_ok=True)

    def _mapped(self, path: Path) -> Tensor:
        flat = torch.from_file(str(path), shared=True, size=self.tokens * self.hidden_size, dtype=self.dtype)
        return flat.view(self.tokens, self.hidden_size)
