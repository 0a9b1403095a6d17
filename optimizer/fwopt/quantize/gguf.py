"""GGUF for llama.cpp, by llama.cpp's own converter and quantizer."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fwopt.errors import InputError
from fwopt.quantize.child import run
from fwopt.quantize.write import Tell

QUANTIZE, CONVERT = "FWOPT_LLAMA_QUANTIZE", "FWOPT_LLAMA_CONVERT"
_CONVERTER = "convert_hf_to_gguf.py"


@dataclass(frozen=True, slots=True)
class GgufTools:
    """`type`: as llama-quantize names it."""

    type: str
    quantize: Path
    convert: Path | None
    """convert_hf_to_gguf.py; not needed where `base` is given."""
    base: Path | None = None
    """The same model as F16, BF16 or F32 GGUF."""

    @property
    def name(self) -> str:
        return f"gguf-{self.type.lower()}"

    @classmethod
    def find(cls, type: str, base: Path | None) -> GgufTools:
        """Named by the environment, or beside llama-server."""
        server = os.environ.get("FWOPT_LLAMA_SERVER")
        beside = Path(server).parent if server else None
        quantize = _find(QUANTIZE, beside / "llama-quantize" if beside else None)
        if quantize is None:
            raise InputError(
                f"GGUF needs llama-quantize: set {QUANTIZE} to it, or FWOPT_LLAMA_SERVER to a server beside it"
            )
        convert = _find(CONVERT, beside / _CONVERTER if beside else None)
        if base is not None and not base.is_file():
            raise InputError(f"--gguf-from {base}: there is no such file")
        if base is None and convert is None:
            raise InputError(
                f"GGUF needs llama.cpp's {_CONVERTER}: set {CONVERT} to its path, or give the model as an F16 GGUF "
                "with --gguf-from"
            )
        return cls(type, quantize, convert, base)

    def write(self, source: Path, work: Path, model: str, tell: Tell) -> tuple[str, str]:
        """(what was checked, what wrote it)."""
        name = Path(model).name
        with tempfile.TemporaryDirectory(dir=work.parent) as folder:
            whole = self.base or Path(folder) / "whole.gguf"
            if self.base is None:
                tell("converting to GGUF", 0, 0)
                command = [sys.executable, str(self.convert), str(source), "--outfile", str(whole), "--outtype", "bf16"]
                paths = [str(Path(str(self.convert)).parent / "gguf-py"), os.environ.get("PYTHONPATH", "")]
                env = {"PYTHONSAFEPATH": "", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
                run(command, _CONVERTER, Path(folder) / "log", env)
            tell(f"llama-quantize {self.type}", 0, 0)
            target = work / f"{name}-{self.type}.gguf"
            said = run([str(self.quantize), str(whole), str(target), self.type], "llama-quantize", Path(folder) / "log")
        tensors = _read_back(target, self.type)
        build = re.search(r"build[ =:]+(\d+)", said)
        version = f"llama.cpp's llama-quantize{f' b{build[1]}' if build else ''}"
        return f"{tensors} tensors read back with the package gguf, all dequantize to finite numbers", version


def _find(variable: str, beside: Path | None) -> Path | None:
    given = os.environ.get(variable)
    if given and not Path(given).is_file():
        raise InputError(f"{variable}: must be a file, got '{given}'")
    if given:
        return Path(given)
    return beside if beside is not None and beside.is_file() else None


def _read_back(file: Path, type: str) -> int:
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(str(file))
    for tensor in reader.tensors:
        if not np.isfinite(dequantize(tensor.data, tensor.tensor_type)).all():
            raise InputError(f"{file.name}: {tensor.name} is not finite after {type}; the model cannot be stored so")
    return len(reader.tensors)
