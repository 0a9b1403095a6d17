"""What `fwopt speculation` found: how much of what a drafter proposes the model would have said itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from fwopt.spec.base import SCHEMA_VERSION, Frozen
from fwopt.spec.model import ModelSpec
from fwopt.spec.quality import Estimate
from fwopt.spec.reading import read_back


class NgramDrafter(Frozen):
    """Prompt lookup: what followed the last occurrence of the same few tokens, as vLLM's `ngram` method."""

    kind: Literal["ngram"] = "ngram"
    tokens: PositiveInt = 5
    """Proposed in a step at most: vLLM's `num_speculative_tokens`."""
    lookup_min: PositiveInt = 2
    """Tokens that must repeat: vLLM's `prompt_lookup_min`."""
    lookup_max: PositiveInt = 4

    @model_validator(mode="after")
    def _ordered(self) -> NgramDrafter:
        if self.lookup_min > self.lookup_max:
            raise ValueError(f"lookup_min {self.lookup_min} must not exceed lookup_max {self.lookup_max}")
        return self

    @property
    def name(self) -> str:
        return f"ngram{self.tokens}:{self.lookup_min}-{self.lookup_max}"

    def vllm(self) -> dict[str, Any]:
        """Value of `--speculative-config`."""
        return {
            "method": "ngram",
            "num_speculative_tokens": self.tokens,
            "prompt_lookup_min": self.lookup_min,
            "prompt_lookup_max": self.lookup_max,
        }


class ModelDrafter(Frozen):
    """A smaller model of the same vocabulary that writes ahead greedily, as vLLM's `draft_model` method."""

    kind: Literal["draft"] = "draft"
    model: str
    """Folder or cached Hugging Face id, as given."""
    tokens: PositiveInt = 5
    """Proposed in every step: vLLM's `num_speculative_tokens`."""

    @property
    def name(self) -> str:
        return f"draft{self.tokens}:{Path(self.model).name}"

    def vllm(self) -> dict[str, Any]:
        """Value of `--speculative-config`."""
        return {"method": "draft_model", "model": self.model, "num_speculative_tokens": self.tokens}


def read_vllm(said: Mapping[str, Any]) -> NgramDrafter | ModelDrafter | None:
    """The drafter of a `--speculative-config`; None where it is of another method, or says more than a drafter holds.

    As vLLM's `SpeculativeConfig`: a lookup of 5 tokens where no length is given, the other length where one is."""
    tokens, method = said.get("num_speculative_tokens"), said.get("method")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        return None
    if method == "ngram" and not said.keys() - NgramDrafter().vllm().keys():
        least, most = said.get("prompt_lookup_min"), said.get("prompt_lookup_max")
        least, most = least or most or 5, most or least or 5
        return NgramDrafter(tokens=tokens, lookup_min=least, lookup_max=most) if 0 < least <= most else None
    if method == "draft_model" and said.keys() == {"method", "model", "num_speculative_tokens"}:
        return ModelDrafter(model=str(said["model"]), tokens=tokens)
    return None


Drafter = Annotated[NgramDrafter | ModelDrafter, Field(discriminator="kind")]


class AcceptanceFigures(Frozen):
    """Over decode steps: those that give the second and later tokens of a reply."""

    replies: int
    steps: int
    drafts: int
    """Steps with at least one proposed token: what vLLM counts as `num_drafts`."""
    draft_tokens: int
    accepted_tokens: int
    acceptance_length: Estimate | None
    """1 + accepted tokens per draft, vLLM's mean acceptance length: of steps with a draft alone. None: no drafts."""
    by_position: tuple[Estimate, ...]
    """Of the drafts, the share whose token at this place and all before it were accepted: vLLM's per-position rate."""
    tokens_per_step: Estimate
    """Over all steps, those without a draft included: what a reply's steps shrink by."""
    steps_by_tokens: tuple[int, ...]
    """How many steps gave 1, 2, … tokens."""


class StepsTaken(Frozen):
    """The decode steps that replies were divided into, reply after reply: what the simulator lets requests go by."""

    lengths: tuple[PositiveInt, ...]
    """Steps of each reply; replies of one token have none and are left out."""
    proposed: tuple[int, ...]
    """Of each step."""
    accepted: tuple[int, ...]

    @model_validator(mode="after")
    def _whole(self) -> StepsTaken:
        if not self.lengths or not sum(self.lengths) == len(self.proposed) == len(self.accepted):
            raise ValueError("steps must be as many as the lengths of their replies add up to, and at least one")
        return self


class Acceptance(Frozen):
    """One drafter."""

    drafter: Drafter
    weights_digest: str | None
    """Of a draft model."""
    overall: AcceptanceFigures
    by_class: dict[str, AcceptanceFigures]
    steps: StepsTaken


class SpeculationSettings(Frozen):
    """What the figures depend on, beside weights and text."""

    replies: Literal["recorded", "generated"]
    """`recorded`: what the trace's model answered; `generated`: what the model at hand answers, greedily."""
    prompt_tokens: PositiveInt = 256
    """Of a plain text, read before the model goes on."""
    reply_tokens: PositiveInt = 128
    """At most."""
    max_replies: PositiveInt = 64
    seed: int = 0


class SpeculationResults(Frozen):
    """`results.json` of one study: a model's replies, and drafters for them."""

    schema_version: int = SCHEMA_VERSION
    fwopt_version: str
    key: str
    """Hash of weights, tokenizer, text and settings."""
    model: str
    config_digest: str
    weights_digest: str | None
    """None: recorded replies need no weights."""
    text: tuple[str, ...]
    text_digest: str
    replies_digest: str
    """Of the tokens of all replies."""
    settings: SpeculationSettings
    drafters: tuple[Acceptance, ...]
    versions: dict[str, str]
    machine: str
    date: str

    def find(self, drafter: NgramDrafter | ModelDrafter, weights_digest: str | None) -> Acceptance | None:
        return next((a for a in self.drafters if a.drafter == drafter and a.weights_digest == weights_digest), None)


class KnownDrafters(Frozen):
    """Drafters that a search may choose from, with what they achieved on replies."""

    results: SpeculationResults
    models: dict[str, ModelSpec]
    """Of the draft models, by the name that candidates have for them."""

    def measured(self, drafter: NgramDrafter | ModelDrafter) -> Acceptance | None:
        return next((a for a in self.results.drafters if a.drafter == drafter), None)

    def draft_model(self, drafter: NgramDrafter | ModelDrafter | None) -> ModelSpec | None:
        return self.models[drafter.model] if drafter is not None and drafter.kind == "draft" else None


def read_speculation(path: Path) -> SpeculationResults:
    return read_back(path, SpeculationResults, "result of `fwopt speculation`", "remove it and measure again")
