"""What a precision costs in quality, from literature until it is measured; always labelled `assumed`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fwopt.search.schemes import scheme_name
from fwopt.spec.base import Frozen
from fwopt.spec.candidate import Candidate
from fwopt.spec.model import ModelSpec
from fwopt.spec.objective import QualityLimit
from fwopt.spec.outcome import Rejected
from fwopt.spec.plan import QualityEstimate
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


def estimate(candidate: Candidate, model: ModelSpec) -> QualityEstimate:
    """Against the published weights: a checkpoint served as it is published loses nothing by its precision."""
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

    def check(self, candidate: Candidate) -> Rejected | None:
        if self.limit is None:
            return None
        found = estimate(candidate, self.model)
        need, have = self.limit.limit, getattr(found, self.limit.metric)
        if have < need if self.limit.metric == "kl" else have > need:
            return None
        return Rejected(
            candidate_id=candidate.id,
            rung="quality",
            reason=f"quality outside {self.limit} (literature figure, assumed)",
            need=need,
            have=have,
            unit="nats per token" if self.limit.metric == "kl" else "share of tokens",
        )
