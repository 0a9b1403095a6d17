"""What `fwopt quality` found: schemes beside the unquantized model, on one text."""

from __future__ import annotations

from typing import Literal

from fwopt.spec.base import SCHEMA_VERSION, Frozen


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


class LeftOut(Frozen):
    """A scheme without figures."""

    name: str
    reason: str


class QualitySettings(Frozen):
    """What the figures depend on, beside weights and text."""

    window: int
    """Tokens of a window."""
    max_tokens: int
    seed: int
    dtype: Literal["bf16", "fp32"]
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

    def arm(self, name: str) -> ArmFigures | None:
        return next((arm for arm in self.arms if arm.name == name), None)
