"""llama.cpp's `llama-server`, started from the exported `llama-server.env`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from fwopt.errors import InputError
from fwopt.live.servers.base import ServerError
from fwopt.live.servers.executables import program
from fwopt.live.servers.identity import fetch
from fwopt.live.servers.settings_file import assignments, directives
from fwopt.live.servers.started import StartedServer
from fwopt.spec.candidate import Gguf
from fwopt.spec.engine import EngineName
from fwopt.targets.gguf import advice, find


class LlamaServer(StartedServer):
    """`llama-server`, one model, no router mode."""

    engine: ClassVar[EngineName] = "llamacpp"
    name: ClassVar[str] = "llama.cpp"
    env_prefix: ClassVar[str] = "LLAMA_ARG_"

    @property
    def file(self) -> Path:
        return self.launch.folder / "llama-server.env"

    def command(self, port: int) -> list[str]:
        server = program("FWOPT_LLAMA_SERVER", "llama-server")
        return [*server, "--host", "127.0.0.1", "--port", str(port), "--offline"]

    def env(self) -> dict[str, str]:
        return assignments(self.file) | {"LLAMA_ARG_MODEL": str(self.weights())}

    def weights(self) -> Path:
        """The GGUF file: the one given, the one in the folder given, or the one that the export names."""
        named = Path(assignments(self.file).get("LLAMA_ARG_MODEL", ""))
        given = Path(self.launch.model) if self.launch.model else named
        scheme = Gguf.model_validate({"type": directives(self.file).get("weights")})
        if given.is_dir():
            try:
                return find(given, named.name, scheme).absolute()
            except InputError as error:
                raise ServerError(self.name, "refused", str(error), None) from None
        if not given.is_file():
            how = advice(given.parent, named.name, scheme)
            raise ServerError(self.name, "refused", f"{given}: no such file; {how}", None)
        return given.absolute()

    def verify(self, url: str) -> None:
        """It ignores variables that it does not know: compare what it says of itself with the file."""
        values = assignments(self.file) | dict(self.launch.env)
        props = json.loads(fetch(f"{url}/props", timeout_s=self.launch.answer_timeout_s))
        stated = tuple(int(values[f"LLAMA_ARG_{key}"]) for key in ("N_PARALLEL", "KV_UNIFIED_PER_SLOT"))
        found = (props["total_slots"], props["default_generation_settings"]["n_ctx"])
        if found != stated:
            raise ServerError(
                self.name, "refused",
                f"serves {found[0]} slots of {found[1]} tokens where {self.file.name} says {stated[0]} of {stated[1]}; "
                "the model's own context is shorter, or this build reads other variables than b11434",
                None,
            )  # fmt: skip
