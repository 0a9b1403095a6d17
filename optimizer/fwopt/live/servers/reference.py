"""The reference engine, `fwopt serve`, started from the exported `candidate.yaml` in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import fwopt
from fwopt.errors import InputError
from fwopt.live.servers.base import ServerError
from fwopt.live.servers.started import StartedServer, is_missing_folder
from fwopt.spec.engine import EngineName


class ReferenceServer(StartedServer):
    """`python -m fwopt serve`, by this very interpreter and of this very source."""

    engine: ClassVar[EngineName] = "fwopt"
    name: ClassVar[str] = "fwopt serve"

    def command(self, port: int) -> list[str]:
        config = (self.launch.folder / "candidate.yaml").absolute()
        if not config.is_file():
            raise InputError(f"{config}: no such file; write it with fwopt export")
        model = [] if self.launch.model is None else ["--model", self.launch.model]
        if self.launch.model is not None and is_missing_folder(self.launch.model):
            raise ServerError(self.name, "refused", f"model {self.launch.model}: no such file or folder", None)
        address = ["--host", "127.0.0.1", "--port", str(port)]
        return [sys.executable, "-m", "fwopt", "serve", "--config", str(config), *model, *address]

    def env(self) -> dict[str, str]:
        return {"PYTHONPATH": str(Path(fwopt.__file__).resolve().parents[1])}
