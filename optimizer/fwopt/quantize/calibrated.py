"""Schemes that look at text while they round: GPTQ, AWQ, SmoothQuant, by llm-compressor in a Python of its own.

llm-compressor pins versions of transformers and compressed-tensors that differ from ours, so it runs as a child.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fwopt.errors import InputError, UnknownNameError
from fwopt.quality.schemes import SCHEMES
from fwopt.quantize.child import run
from fwopt.quantize.write import Tell

PYTHON = "FWOPT_LLMCOMPRESSOR_PYTHON"
METHODS = {
    "gptq": ("w4a16", "w4a16-g64", "w4a16-g32", "w8a16", "int8"),
    "awq": ("w4a16", "w4a16-g64", "w4a16-g32"),
    "smoothquant": ("int8",),
}
"""Method -> schemes that it can round to."""


@dataclass(frozen=True, slots=True)
class Calibration:
    method: str
    scheme: str
    python: Path
    rows: tuple[tuple[int, ...], ...]
    """Tokens of the text to calibrate on, window by window."""
    text: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.method}-{self.scheme}"

    @property
    def says(self) -> str:
        tokens = sum(map(len, self.rows))
        return (
            f"{SCHEMES[self.scheme].says.replace(', rounded to nearest', '')}, by {self.method.upper()} calibrated on "
            f"{tokens:,} tokens of {', '.join(self.text)}"
        )

    def write(self, source: Path, work: Path, tell: Tell) -> tuple[str, str]:
        """(what was checked, what wrote it)."""
        scheme = SCHEMES[self.scheme]
        with tempfile.TemporaryDirectory(dir=work.parent) as folder:
            order = {
                "source": str(source), "target": str(work), "method": self.method, "weights": scheme.weights,
                "activations": scheme.activations, "rows": self.rows,
            }  # fmt: skip
            path = Path(folder) / "order.json"
            path.write_text(json.dumps(order), encoding="utf-8")
            tell(f"llm-compressor: {self.name}", 0, 0)
            script = str(files("fwopt.quantize").joinpath("llmcompressor_child.py"))
            said = run(
                [str(self.python), script, str(path)], "llm-compressor", Path(folder) / "log", {"HF_HUB_OFFLINE": "1"}
            )
        by = next((line for line in said.splitlines()[::-1] if line.startswith("llmcompressor ")), "llm-compressor")
        return f"{_finite(work)} matrices read back, all finite", by


def parse(name: str) -> tuple[str, str] | None:
    """`gptq-w4a16-g64` -> its method and scheme; None: no calibrated scheme."""
    method, dash, scheme = name.partition("-")
    if method not in METHODS:
        return None
    if not dash or scheme not in METHODS[method]:
        raise UnknownNameError("calibrated scheme", name, [f"{m}-{s}" for m, found in METHODS.items() for s in found])
    return method, scheme


def find_python() -> Path:
    """One that has llm-compressor: named by the environment, else our own."""
    given = os.environ.get(PYTHON)
    if given:
        if not (Path(given).is_file() and os.access(given, os.X_OK)):
            raise InputError(f"{PYTHON}: must be an executable file, got '{given}'")
        return Path(given)
    import importlib.util

    if importlib.util.find_spec("llmcompressor") is None:
        raise InputError(
            "GPTQ, AWQ and SmoothQuant need llm-compressor: pip install 'fwopt[calibrate]' in an environment of its "
            f"own, and set {PYTHON} to its python"
        )
    return Path(sys.executable)


def _finite(work: Path) -> int:
    import torch

    from fwopt.quality.stored import StoredConfig, StoredShards

    shards = StoredShards(work, StoredConfig.read(work))
    for module in shards.quantized:
        with shards.slices([f"{module}.weight"]) as found:
            weight: Any = found[f"{module}.weight"]
            if not torch.isfinite(weight).all():
                raise InputError(f"{module} is not finite after calibration; give other text with --calibrate")
    return len(shards.quantized)
