"""`environment.json`: where the operator times of one profile come from, and what was left out."""

from __future__ import annotations

from fwopt.spec.base import SCHEMA_VERSION, Frozen


class Dropped(Frozen):
    """Source rows that were not taken over."""

    rows: int
    reason: str


class TableEnvironment(Frozen):
    """One operator's table."""

    rows: int
    sources: tuple[str, ...]
    """Paths relative to the imported folder."""
    kernels: tuple[str, ...]
    """Kernel names as the source gives them."""
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()


class Measured(Frozen):
    """One run of `fwopt profile`: what, when and under which conditions."""

    what: str
    """For example `steps of SmolLM2-135M in bf16 kv-bf16 tp1`; measuring the same again replaces it."""
    date: str
    fwopt_version: str
    machine: dict[str, str]
    """Processor, cores, memory, driver, clocks, library versions, threads."""
    load: str
    """What else ran: load averages before and after, other processes of note."""
    command: str
    """How the engine was started."""
    notes: tuple[str, ...] = ()


class Environment(Frozen):
    """How one profile was made."""

    schema_version: int = SCHEMA_VERSION
    device: str
    """Catalogue name, for example `h200`."""
    device_full_name: str
    """As the source's driver reports it."""
    engine: str
    engine_version: str
    source: str
    """Package or repository and version."""
    licence: str
    importer_version: int
    tables: dict[str, TableEnvironment]
    notes: tuple[str, ...] = ()
    measured: tuple[Measured, ...] = ()
    """Empty: imported from elsewhere."""
