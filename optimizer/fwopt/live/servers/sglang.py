"""SGLang's server, started from the exported `config.yaml`."""

from __future__ import annotations

from typing import ClassVar

from fwopt.errors import InputError
from fwopt.live.servers.base import ServerError
from fwopt.live.servers.executables import python_module
from fwopt.live.servers.started import StartedServer, is_missing_folder
from fwopt.spec.engine import EngineName


class SglangServer(StartedServer):
    """`python -m sglang.launch_server --config config.yaml`."""

    engine: ClassVar[EngineName] = "sglang"
    name: ClassVar[str] = "SGLang"

    def command(self, port: int) -> list[str]:
        command = python_module("FWOPT_SGLANG_PYTHON", "sglang.launch_server", "sglang")
        if len(command) == 1:  # the console script
            command.append("serve")
        config = (self.launch.folder / "config.yaml").absolute()
        if not config.is_file():
            raise InputError(f"{config}: no such file; write it with fwopt export")
        command += ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        if self.launch.model is None:
            return command
        if is_missing_folder(self.launch.model):
            raise ServerError(self.name, "refused", f"model {self.launch.model}: no such folder", None)
        return [*command, "--model-path", self.launch.model]
