"""From a model and a scheme to a folder that engines load: measured, written, read back, described."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fwopt import __version__
from fwopt.errors import InputError
from fwopt.quality import study
from fwopt.quality.rounding import library_version
from fwopt.quality.schemes import Scheme
from fwopt.quality.shards import weight_files, weights_digest
from fwopt.quantize.calibrated import Calibration
from fwopt.quantize.card import render
from fwopt.quantize.gguf import GgufTools
from fwopt.quantize.readback import check
from fwopt.quantize.write import Tell, Writer, appearing, copy_rest, stored_bytes
from fwopt.spec.quality import QualityResults
from fwopt.spec.quantized import Mixture, QuantizedCheckpoint, Study, WrittenFile

RECORD = "fwopt.json"


@dataclass(frozen=True, slots=True)
class Order:
    """What to write where. Of `scheme`, `calibration` and `gguf`, one is given."""

    model: str
    source: Path
    target: Path
    home: Path
    """Folder of studies."""
    command: str
    scheme: Scheme | None = None
    calibration: Calibration | None = None
    gguf: GgufTools | None = None
    measure: study.Request | None = None
    """None: what was measured before is used, if anything was."""
    mixture: Mixture | None = None


def produce(order: Order, tell: Tell) -> QuantizedCheckpoint:
    """The record of what now lies in `order.target`, its card beside it."""
    _made(order.home)
    measured = _before(order, tell)
    with appearing(order.target) as work:
        written = _write(order, work, tell)
        if order.calibration is not None:
            measured = _stored(order, work, tell)
        made = _record(order, work, written, measured)
        (work / RECORD).write_text(made.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (work / "README.md").write_text(render(made), encoding="utf-8")
    return made


@dataclass(frozen=True, slots=True)
class _Written:
    name: str
    says: str
    checked: str
    by: str
    format: Literal["compressed-tensors", "gguf"] = "compressed-tensors"


def _write(order: Order, work: Path, tell: Tell) -> _Written:
    if order.gguf is not None:
        checked, by = order.gguf.write(order.source, work, order.model, tell)
        return _Written(order.gguf.name, f"llama.cpp's {order.gguf.type}, by blocks", checked, by, "gguf")
    if order.calibration is not None:
        checked, by = order.calibration.write(order.source, work, tell)
        copy_rest(order.source, work)
        return _Written(order.calibration.name, order.calibration.says, checked, by)
    scheme = order.scheme
    assert scheme is not None
    Writer(order.source, scheme, tell).write(work)
    checked = (
        f"{check(order.source, scheme, work, tell)} matrices read back, each equal to the bit to what was compared"
    )
    return _Written(scheme.name, scheme.says, checked, f"compressed-tensors {library_version()}")


def _record(order: Order, work: Path, written: _Written, measured: Study | None) -> QuantizedCheckpoint:
    return QuantizedCheckpoint(
        fwopt_version=__version__,
        model=order.model,
        scheme=written.name,
        says=written.says,
        written_by=written.by,
        source_config_digest=_digest(order.source / "config.json")[:16],
        source_weights_digest=weights_digest(order.source, order.home / "digests.json")[:16],
        weights_digest=_weights(work, written.format),
        files=tuple(_file(path) for path in sorted(work.iterdir())),
        weight_bytes=_bytes(work, written.format),
        source_bytes=stored_bytes(order.source),
        format=written.format,
        checked=written.checked,
        study=measured,
        mixture=order.mixture,
        command=order.command,
        versions=_versions(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
    )


def _before(order: Order, tell: Tell) -> Study | None:
    """Figures of a scheme that is measured without being written."""
    if order.scheme is None:
        return None
    if order.measure is not None:
        return _study(study.run(order.measure, tell)[0], order.scheme.name)
    digest = weights_digest(order.source, order.home / "digests.json")[:16]
    from fwopt.spec.quality import read_results

    known = [read_results(path) for path in sorted(order.home.glob("*/results.json"))]
    found = [r for r in known if r.weights_digest == digest and r.arm(order.scheme.name) is not None]
    return _study(max(found, key=lambda r: (r.date, r.key)), order.scheme.name) if found else None


def _stored(order: Order, work: Path, tell: Tell) -> Study | None:
    if order.measure is None:
        return None
    from dataclasses import replace

    results, _ = study.run(replace(order.measure, schemes=(), checkpoints=(work,)), tell)
    digest = weights_digest(work, order.home / "digests.json")[:12]
    return _study(results, f"{work.name}@{digest}")


def _study(results: QualityResults, name: str) -> Study:
    figures = results.arm(name)
    if figures is None:
        why = next((item.reason for item in results.left_out if item.name == name), "it was not measured")
        raise InputError(f"scheme {name}: {why}; choose another --scheme")
    return Study(
        key=results.key, text=results.text, text_digest=results.text_digest, windows_digest=results.windows_digest,
        reference_perplexity=results.reference_perplexity, figures=figures,
        controls=tuple(arm for arm in results.arms if arm.kind == "control"),
        machine=results.machine, date=results.date, versions=results.versions,
    )  # fmt: skip


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --quality-out") from None


def _weights(work: Path, form: str) -> str:
    if form == "gguf":
        return _digest(next(work.glob("*.gguf")))[:16]
    whole = hashlib.sha256()
    for file in [work / "config.json", *weight_files(work)]:
        whole.update(f"{file.name}:{_digest(file)}\n".encode())
    return whole.hexdigest()[:16]


def _bytes(work: Path, form: str) -> int:
    return sum(p.stat().st_size for p in work.glob("*.gguf")) if form == "gguf" else stored_bytes(work)


def _file(path: Path) -> WrittenFile:
    return WrittenFile(name=path.name, bytes=path.stat().st_size, sha256=_digest(path))


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "safetensors", "transformers")}


def read_record(folder: Path) -> QuantizedCheckpoint:
    """Of a folder that `fwopt quantize` wrote."""
    try:
        return QuantizedCheckpoint.model_validate(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise InputError(f"{folder / RECORD}: is no record of `fwopt quantize`") from None
