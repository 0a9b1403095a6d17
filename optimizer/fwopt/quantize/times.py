"""How long a product takes in each scheme, on the hardware to serve on: measured there, never guessed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from fwopt.errors import InputError, UnmeasuredError
from fwopt.quality.schemes import Scheme
from fwopt.quantize.bands import Band, Product
from fwopt.quantize.child import run
from fwopt.quantize.steps import Steps
from fwopt.spec.provenance import CODES

PYTHON = "FWOPT_VLLM_PYTHON"
SERVED_AS_MEASURED = {"VLLM_CPU_INT4_W4A8": "0"}
"""vLLM rounds activations of 4-bit layers to int8 on processors with AMX unless told not to."""
Tell = Callable[[str, int, int], None]
_TABLE_DTYPES = {"fp8-block": "fp8_block", "fp8-row": "fp8", "w4a16-g64": "w4a16", "w4a16-g32": "w4a16"}
"""Names in operator tables, where they differ."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of (scheme, product) in a mean step."""

    known: Mapping[tuple[str, Product], float]
    provenance: str
    says: str
    steps: str
    """How the steps that they are weighed over are known."""

    def seconds(self, scheme: str, product: Product) -> float:
        found = self.known.get((scheme, product))
        if found is None:
            raise UnmeasuredError(
                f"no time of {scheme} for a product {product.k} -> {product.n}; leave it out of --choices"
            )
        return found


def from_profile(folder: Path, bands: Sequence[Band], schemes: Sequence[Scheme], steps: Steps) -> Times:
    """Of an operator profile with matrix products (docs/profiles.md)."""
    from fwopt.perf.operators.gemm import GemmTable
    from fwopt.perf.store import open_profile
    from fwopt.targets.hardware import device_and_price, resolve

    profile = open_profile(folder)
    device, _ = device_and_price(resolve(profile.environment.device))
    table = GemmTable(profile.columns("gemm"), device, {})
    rows = steps.tokens.astype(np.float64)
    known: dict[tuple[str, Product], float] = {}
    codes: set[str] = set()
    for name in ("bf16", *(scheme.name for scheme in schemes)):
        for product in {p for band in bands for p in band.products}:
            timed = table.time(_TABLE_DTYPES.get(name, name), rows, product.n, product.k)
            known[name, product] = float(timed.seconds @ steps.shares)
            codes |= {CODES[code] for code in np.flatnonzero(timed.by_code.sum(axis=0))}
    return Times(known, ", ".join(sorted(codes)), f"operators of {folder.name} on {device.full_name}", steps.says)


def measure_vllm(bands: Sequence[Band], schemes: Sequence[Scheme], steps: Steps, kept: Path, tell: Tell) -> None:
    """vLLM's own linear layers, timed in its own Python, each in its place in a step of the model; into `kept`."""
    from fwopt.atomic import written_whole
    from fwopt.live.servers.executables import program
    from fwopt.quantize.layout import library_scheme

    (python,) = program(PYTHON, "python-with-vllm")
    with tempfile.TemporaryDirectory() as folder:
        ask: dict[str, Any] = {
            "products": [[p.k, p.n] for p in _sequence(bands)],
            "tokens": steps.sizes(),
            "schemes": {"bf16": None}
            | {s.name: library_scheme(s, ["Linear"]).model_dump(mode="json") for s in schemes},
        }
        path = Path(folder) / "order.json"
        path.write_text(json.dumps(ask), encoding="utf-8")
        tell("timing vLLM's linear layers", 0, 0)
        script = str(files("fwopt.quantize").joinpath("vllm_products_child.py"))
        env = {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"} | SERVED_AS_MEASURED
        run([python, script, str(path)], "timing vLLM's linear layers", Path(folder) / "log", env)
        with written_whole(kept) as target:
            target.write_bytes((Path(folder) / "times.json").read_bytes())


def from_measured(file: Path, bands: Sequence[Band], schemes: Sequence[Scheme], steps: Steps) -> Times:
    """Of what `measure_vllm` kept; linear in the tokens between two sizes that were timed."""
    try:
        answer = json.loads(file.read_text(encoding="utf-8"))
        products = [Product(n, k) for k, n in answer["products"]]
        seconds = {name: {int(m): times for m, times in by.items()} for name, by in answer["seconds"].items()}
        says = f"vLLM {answer['version']}'s linear layers, {answer['machine']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{file}: holds no times of `--times vllm`; measure them again") from None
    known, exact = {}, True
    for name in ("bf16", *(scheme.name for scheme in schemes)):
        timed = np.array(sorted(seconds.get(name, {})))
        if not len(timed) or steps.tokens[0] < timed[0] or steps.tokens[-1] > timed[-1]:
            have = f"{timed[0]} to {timed[-1]}" if len(timed) else "none"
            raise UnmeasuredError(
                f"{file}: of {name}, steps of {steps.tokens[0]} to {steps.tokens[-1]} tokens are needed and {have} "
                "were timed; measure again with --times vllm"
            )
        exact = exact and bool(np.isin(steps.tokens, timed).all())
        for product in {p for band in bands for p in band.products}:
            at = [i for i, other in enumerate(products) if other == product]
            if not at:
                raise UnmeasuredError(
                    f"{file}: a product {product.k} -> {product.n} was not timed; measure again with --times vllm"
                )
            curve = [float(np.mean([seconds[name][int(m)][i] for i in at])) for m in timed]
            known[name, product] = float(np.interp(steps.tokens, timed, curve) @ steps.shares)
    return Times(known, "measured" if exact else "measured, interpolated", says, steps.says)


def _sequence(bands: Sequence[Band]) -> list[Product]:
    """Products in a model's order, so that caches are as cold as they are in a step."""
    by_layer = sorted(
        (layer, at, p) for at, b in enumerate(bands) for layer, p in zip(b.layers, b.products, strict=True)
    )
    return [product for _, _, product in by_layer]
