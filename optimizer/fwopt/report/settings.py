"""A candidate's settings by name, and what differs between two. Derived from the model, so no field can be left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fwopt.report.format import NONE
from fwopt.spec.candidate import Candidate, Quantization

_NAMES = {
    "kv_dtype": "KV cache dtype",
    "parallelism.tp": "tensor parallel",
    "parallelism.pp": "pipeline parallel",
    "parallelism.dp": "data parallel (attention)",
    "parallelism.ep": "expert parallel",
    "parallelism.replicas": "replicas",
    "batching.max_model_len": "max_model_len",
    "router": "router policy",
    "kernels": "tuned kernels",
}
"""Where a plainer name than the field's own helps."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of two candidates."""

    name: str
    here: str
    there: str

    @property
    def differs(self) -> bool:
        return self.here != self.there


def quantization(scheme: Quantization) -> str:
    extra = {k: v for k, v in scheme.model_dump().items() if k != "kind"}
    return scheme.kind + (f" ({', '.join(f'{k} {v}' for k, v in extra.items())})" if extra else "")


def settings(candidate: Candidate) -> dict[str, str]:
    """Every setting, the derived GPU count included, in the order of the `Candidate` model; of kernels only a set."""
    found = {"GPUs": str(candidate.parallelism.gpus), "quantization": quantization(candidate.quantization)}
    left_out = {"quantization"} if candidate.kernels is not None else {"quantization", "kernels"}
    for path, value in _flat(candidate.model_dump(exclude=left_out)):
        found[_NAMES.get(path, path.rpartition(".")[2])] = _shown(path, value)
    return found


def compare(here: Candidate, there: Candidate) -> list[Setting]:
    one, two = settings(here), settings(there)
    return [Setting(name, one.get(name, NONE), two.get(name, NONE)) for name in {**one, **two}]


def differences(here: Candidate, there: Candidate) -> list[Setting]:
    return [s for s in compare(here, there) if s.differs]


def difference_text(here: Candidate, there: Candidate) -> str:
    """`quantization fp8 (scale tensor), replicas 2`: how `here` differs from `there`, in one line."""
    return ", ".join(f"{s.name} {s.here}" for s in differences(here, there)) or "the same settings"


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, item in value.items():
        found += _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else [(prefix + key, item)]
    return found


def _shown(path: str, value: Any) -> str:
    if path == "batching.max_model_len" and value is None:
        return "the model's own"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
