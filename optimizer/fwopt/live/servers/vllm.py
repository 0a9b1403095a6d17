"""vLLM's OpenAI-compatible server, started from the exported `config.yaml`."""

from __future__ import annotations

from typing import ClassVar

from fwopt.errors import InputError
from fwopt.live.servers.base import ServerError
from fwopt.live.servers.executables import python_module
from fwopt.live.servers.started import StartedServer, is_missing_folder
from fwopt.spec.engine import EngineName


class VllmServer(StartedServer):
    """`vllm serve --config config.yaml`."""

    engine: ClassVar[EngineName] = "vllm"
    name: ClassVar[str] = "vLLM"

    def command(self, port: int) -> list[str]:
        command = [*python_module("FWOPT_VLLM_PYTHON", "vllm.entrypoints.cli.main", "vllm"), "serve"]
        config = (self.launch.folder / "config.yaml").absolute()
        if not config.is_file():
            raise InputError(f"{config}: no such file; write it with fwopt export")
        if self.launch.model is not None:
            if is_missing_folder(self.launch.model):
                raise ServerError(self.name, "refused", f"model {self.launch.model}: no such folder", None)
            command.append(self.launch.model)
        return [*command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]

    def env(self) -> dict[str, str]:
        """With 16-bit activations beside 4-bit weights, as `run.sh` starts it: on a processor vLLM would round them."""
        return {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_INT4_W4A8": "0"}
