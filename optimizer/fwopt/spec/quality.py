"""What `fwopt quality` found: schemes beside the unquantized model, on one text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.reading import read_back


class Estimate(Frozen):
    """A mean with its 95 % interval over windows of text."""

    value: float
    low: float | None
    """None: too few windows."""
    high: float | None


class Figures(Frozen):
    """An arm beside the reference, over the same tokens."""

    tokens: int
    windows: int
    kl: Estimate
    """KL(reference || arm), nats per token."""
    kl_p99: float
    """99th percentile over tokens."""
    top1: Estimate
    """Share of tokens whose likeliest next token is the reference's."""
    top5: Estimate
    """Share of the reference's five likeliest tokens that are among the arm's five."""
    perplexity_ratio: Estimate
    """The arm's perplexity over the reference's."""


class ArmFigures(Frozen):
    """One arm."""

    name: str
    kind: Literal["control", "scheme"]
    """`control`: the unquantized model computed otherwise; what it differs by is noise."""
    says: str
    """What is stored or computed how."""
    overall: Figures
    by_class: dict[str, Figures]
    by_position: dict[str, Figures]
    """By the number of tokens before, `16-63`."""
    excess_kl: Estimate | None
    """KL less that of the control, token by token; None for controls."""
    verdict: Literal["noise", "indistinguishable", "different"]
    """`indistinguishable`: from the unquantized model computed otherwise."""
    computed_by: dict[str, str] | None = None
    """Versions, threads and machine, where others than the study's."""


class LeftOut(Frozen):
    """A scheme without figures."""

    name: str
    reason: str


class QualitySettings(Frozen):
    """What the figures depend on, beside weights and text."""

    window: int = 512
    """Tokens of a window."""
    max_tokens: int = 16384
    seed: int = 0
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Of activations and unquantized weights; the head works in float32."""


class QualityResults(Frozen):
    """`results.json` of one study: a model, a text, settings."""

    schema_version: int = SCHEMA_VERSION
    fwopt_version: str
    key: str
    """Hash of weights, text and settings."""
    model: str
    config_digest: str
    """Of config.json, as in a ModelSpec."""
    weights_digest: str
    text: tuple[str, ...]
    """Files, in order."""
    text_digest: str
    windows_digest: str
    """Of the tokens compared."""
    settings: QualitySettings
    reference_perplexity: float
    arms: tuple[ArmFigures, ...]
    left_out: tuple[LeftOut, ...] = ()
    versions: dict[str, str]
    machine: str
    threads: int
    date: str
    """Of the last addition."""

    @property
    def made_by(self) -> dict[str, str]:
        """Versions, threads and machine of the last addition."""
        return self.versions | {"threads": str(self.threads), "machine": self.machine}

    def scheme_costs(self) -> dict[str, SchemeCost]:
        """What a search needs to know."""
        return {
            arm.name: SchemeCost(
                kl=arm.overall.kl.value,
                kl_high=arm.overall.kl.value if arm.overall.kl.high is None else arm.overall.kl.high,
                top1=arm.overall.top1.value,
                top1_low=arm.overall.top1.value if arm.overall.top1.low is None else arm.overall.top1.low,
            )
            for arm in self.arms
            if arm.kind == "scheme"
        }

    def arm(self, name: str) -> ArmFigures | None:
        return next((arm for arm in self.arms if arm.name == name), None)


class SchemeCost(Frozen):
    """One scheme beside the unquantized model."""

    kl: float
    kl_high: float
    """Upper end of its interval: what a limit is held against."""
    top1: float
    top1_low: float


class MeasuredQuality(Frozen):
    """What `fwopt quality` found of one model, as a search uses it."""

    file: str
    key: str
    """Of the study."""
    text: tuple[str, ...]
    tokens: int
    schemes: dict[str, SchemeCost]

    @classmethod
    def of(cls, results: QualityResults, file: Path) -> Self:
        tokens = max((arm.overall.tokens for arm in results.arms), default=0)
        schemes = results.scheme_costs()
        return cls(file=str(file), key=results.key, text=results.text, tokens=tokens, schemes=schemes)


class Measuring(Frozen):
    """What quality is measured on during a search."""

    model: str
    """As studies are named."""
    folder: str
    """With weights and tokenizer."""
    files: tuple[str, ...]
    traces: tuple[str, ...]
    settings: QualitySettings
    text_digest: str


class SchemeVerdict(Frozen):
    """What a search learnt of one scheme's quality, or why it needed not."""

    name: str
    status: Literal["measured", "failed", "not needed", "not measured"]
    """`failed`: measuring it did not work, so nothing with it may be chosen; `not measured`: the search was stopped
    before."""
    cost: SchemeCost | None = None
    says: str
    """For a reader: the candidate that made it worth measuring, what went wrong, or what is better."""


class RunQuality(Frozen):
    """`quality.json` of a run: quality measured while it searched."""

    schema_version: int = SCHEMA_VERSION
    measured: MeasuredQuality | None
    failed: dict[str, str]
    """Scheme -> why it could not be measured."""
    asked_by: dict[str, str]
    """Scheme -> the candidate that led when it was measured."""


QualityResults.model_rebuild()


def read_results(path: Path) -> QualityResults:
    return read_back(path, QualityResults, "result of `fwopt quality`", "remove it and measure again")
