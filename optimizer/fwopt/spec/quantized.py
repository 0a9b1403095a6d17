"""What `fwopt quantize` wrote, from what, and what it was measured to cost: `fwopt.json` in the checkpoint's folder."""

from __future__ import annotations

from typing import Literal

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.quality import ArmFigures


class WrittenFile(Frozen):
    name: str
    bytes: int
    sha256: str


class Study(Frozen):
    """Where the figures come from: one study of `fwopt quality`."""

    key: str
    """Hash of weights, tokenizer, text and settings."""
    text: tuple[str, ...]
    text_digest: str
    windows_digest: str
    """Of the tokens compared."""
    reference_perplexity: float
    figures: ArmFigures
    controls: tuple[ArmFigures, ...]
    """The unquantized model computed otherwise: the noise."""
    machine: str
    date: str
    versions: dict[str, str]


class GroupTime(Frozen):
    """One group of matrices in a mixture."""

    group: str
    """`FIRST-LAST.GROUP`"""
    scheme: str
    kl: float
    """Measured with this group alone rounded."""
    seconds: float
    """Of its products in one step of the workload."""
    provenance: str


class Mixture(Frozen):
    """An assignment of schemes to groups that minimises time under a limit of KL."""

    budget: float
    """Most KL, nats per token, on the text of the choice."""
    predicted_kl: float
    """Sum over groups."""
    measured_kl: float
    """Of the assembled model, on the text of the choice."""
    rounds: int
    """Assignments that were measured until one kept the budget."""
    seconds: float
    groups: tuple[GroupTime, ...]
    times: str
    """Where times come from."""
    steps: str = "steps given by hand"
    """Over which steps they are weighed, and how those are known."""
    uniform: dict[str, tuple[float, float]]
    """Scheme in every group -> (KL, seconds), measured and timed alike."""


class QuantizedCheckpoint(Frozen):
    """The card's content, for programs."""

    schema_version: int = SCHEMA_VERSION
    fwopt_version: str
    model: str
    scheme: str
    says: str
    """What is stored how."""
    written_by: str
    """Library and version."""
    source_config_digest: str
    source_weights_digest: str
    weights_digest: str
    """Of config.json and weights as written; of a GGUF, its file's SHA-256."""
    files: tuple[WrittenFile, ...]
    weight_bytes: int
    source_bytes: int
    format: Literal["compressed-tensors", "gguf"]
    checked: str
    """What was read back, and how it was compared."""
    study: Study | None
    """None: nothing was measured."""
    mixture: Mixture | None = None
    command: str
    versions: dict[str, str]
    date: str
