"""A set of tuned kernel variants: what a deployment of the reference engine runs with, by name and content."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from fwopt.spec.base import SCHEMA_VERSION, Frozen

SetDigest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
"""`KernelSet.digest`."""


class KernelChoice(Frozen):
    """The variant that an operator runs at one size, and nearest to it."""

    operator: str
    format: str
    shape: dict[str, int]
    variant: str
    """The variant's id, or `torch`: the operator's torch fallback."""


class KernelSet(Frozen):
    """What `fwopt kernels tune` found on one device; holds on that device, with that Triton, for those sources."""

    schema_version: int = SCHEMA_VERSION
    device: str
    """Catalogue name."""
    device_full_name: str
    """As the driver reports it."""
    triton: str
    sources: dict[str, str]
    """Operator -> hash of what its kernel was compiled from."""
    choices: tuple[KernelChoice, ...]

    @property
    def digest(self) -> str:
        """By which a candidate names it."""
        return self.content_hash()
