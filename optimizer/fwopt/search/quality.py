"""What a precision costs in quality: as `fwopt quality` measured it on this model, else from literature, and then
labelled `assumed`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from fwopt.search.schemes import scheme_name
from fwopt.spec.base import Frozen
from fwopt.spec.candidate import W4A16, Candidate
from fwopt.spec.model import ModelSpec
from fwopt.spec.objective import QualityLimit
from fwopt.spec.outcome import Rejected
from fwopt.spec.plan import QualityEstimate
from fwopt.spec.quality import MeasuredQuality, SchemeCost, read_results
from fwopt.targets.quantization import native_quantization


class Anchor(Frozen):
    """A published figure."""

    figure: str
    source: str


class SchemeFigure(Frozen):
    kl: float
    source: str


class Literature(Frozen):
    """`data/quality_literature.yaml`."""

    schema_version: int
    version: str
    anchors: tuple[Anchor, ...]
    rule: str
    schemes: dict[str, SchemeFigure]
    kv_fp8: SchemeFigure


@cache
def literature() -> Literature:
    import yaml

    text = files("fwopt.search").joinpath("data/quality_literature.yaml").read_text(encoding="utf-8")
    return Literature.model_validate(yaml.safe_load(text))


def find_measured(model: ModelSpec, home: Path) -> MeasuredQuality | None:
    """The newest study of this model below `home`; the one on more tokens where two are of one day."""
    found = []
    for file in sorted(home.glob("*/results.json")):
        results = read_results(file)
        if results.config_digest == model.config_digest and Path(model.name).name == Path(results.model).name:
            tokens = max((arm.overall.tokens for arm in results.arms), default=0)
            found.append((results.date, tokens, str(file), results))
    if not found:
        return None
    _, tokens, name, results = max(found, key=lambda item: item[:3])
    return MeasuredQuality(file=name, key=results.key, text=results.text, tokens=tokens, schemes=results.scheme_costs())


def _measured_name(candidate: Candidate, model: ModelSpec) -> list[str]:
    """Names under which `fwopt quality` knows what a candidate gives up; none where it gives up nothing."""
    quantization = candidate.quantization
    names = []
    if scheme_name(quantization) != scheme_name(native_quantization(model)):
        name = scheme_name(quantization)
        if quantization.kind == "w4a16" and quantization.group_size != W4A16().group_size:
            name += f"-g{quantization.group_size}"
        names.append(name)
    return [*names, "kv-fp8"] if candidate.kv_dtype == "fp8" else names


def measured_cost(candidate: Candidate, model: ModelSpec, measured: MeasuredQuality | None) -> SchemeCost | None:
    """None where a part of it was not measured. Parts that were measured apart are added up."""
    if measured is None or model.checkpoint_quantization is not None:
        return None
    names = _measured_name(candidate, model)
    whole = measured.schemes.get("+".join(names))
    if whole is not None or not names:
        return whole
    parts = [measured.schemes.get(name) for name in names]
    if None in parts:
        return None
    known = [part for part in parts if part is not None]
    return SchemeCost(
        kl=sum(part.kl for part in known),
        kl_high=sum(part.kl_high for part in known),
        top1=max(0.0, 1 - sum(1 - part.top1 for part in known)),
        top1_low=max(0.0, 1 - sum(1 - part.top1_low for part in known)),
    )


def estimate(candidate: Candidate, model: ModelSpec, measured: MeasuredQuality | None = None) -> QualityEstimate:
    """Against the published weights: a checkpoint served as it is published loses nothing by its precision."""
    cost = measured_cost(candidate, model, measured)
    if cost is not None and measured is not None:
        source = f"fwopt quality on {measured.tokens:,} tokens of {', '.join(measured.text)}: {measured.file}"
        return QualityEstimate(kl=cost.kl, top1=cost.top1, known="measured", source=source)
    book = literature()
    parts = []
    if scheme_name(candidate.quantization) != scheme_name(native_quantization(model)):
        parts.append(book.schemes[scheme_name(candidate.quantization)])
    if candidate.kv_dtype == "fp8":
        parts.append(book.kv_fp8)
    kl = sum(part.kl for part in parts)
    source = "; ".join(part.source for part in parts) or "the published weights as they are"
    return QualityEstimate(
        kl=kl,
        top1=1 - 0.101 * math.sqrt(kl / 0.0425),
        known="assumed",
        source=f"{source} (quality_literature.yaml {book.version})",
    )


@dataclass(frozen=True, slots=True)
class QualityScreen:
    """Rejects what would lose more quality than allowed."""

    model: ModelSpec
    limit: QualityLimit | None
    measured: MeasuredQuality | None = None

    def check(self, candidate: Candidate) -> Rejected | None:
        if self.limit is None:
            return None
        need, have, known = self.limit.limit, *self._worst(candidate)
        if have < need if self.limit.metric == "kl" else have > need:
            return None
        return Rejected(
            candidate_id=candidate.id,
            rung="quality",
            reason=f"quality outside {self.limit} ({known})",
            need=need,
            have=have,
            unit="nats per token" if self.limit.metric == "kl" else "share of tokens",
        )

    def _worst(self, candidate: Candidate) -> tuple[float, str]:
        """(the figure held against the limit, how it is known): of what was measured, the bad end of the interval."""
        assert self.limit is not None
        cost = measured_cost(candidate, self.model, self.measured)
        if cost is None:
            value: float = getattr(estimate(candidate, self.model), self.limit.metric)
            return value, "literature figure, assumed"
        return cost.kl_high if self.limit.metric == "kl" else cost.top1_low, "measured, end of the 95 % interval"
