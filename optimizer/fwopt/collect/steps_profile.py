"""From a running engine to the `steps` table of a profile: questions, answers, rows, and what they rest on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fwopt import __version__
from fwopt.collect.engine_steps import Asking
from fwopt.collect.journal import Journal
from fwopt.collect.machine import describe, load_words, require_quiet, today, wait_until_quiet
from fwopt.collect.probes import Limits, Probe, Row, plan, rows_of
from fwopt.collect.stream import Prompter
from fwopt.errors import InputError
from fwopt.live.endpoint import Endpoint
from fwopt.perf.environment import Measured
from fwopt.perf.step_law import StepLaw, StepRows, fit
from fwopt.perf.steps import SUBJECT, TABLE, StepKey, measured_keys
from fwopt.perf.store import entries, open_profile
from fwopt.perf.write import NewTable, add_measurements
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import ModelSpec

SHARED_NOTE = (
    "client, HTTP front end and engine ran on one machine: what they take from one another is in the times, as it is "
    "when a service's front end runs beside its engine"
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: one model in one scheme under one engine on one device."""

    model: ModelSpec
    device: DeviceSpec
    engine: EngineSpec
    key: StepKey

    @property
    def what(self) -> str:
        """As it stands in `environment.json`."""
        return f"steps of {self.model.name} in {self.key.scheme} kv-{self.key.kv_dtype} tp{self.key.tp}"

    @property
    def columns(self) -> dict[str, str | int]:
        return {
            "model": self.model.config_digest,
            "scheme": self.key.scheme,
            "kv_dtype": self.key.kv_dtype,
            "tp": self.key.tp,
        }

    def known(self, out: Path) -> Measured | None:
        """An earlier measurement of the same subject in `out`."""
        for device, engine, version, folder in entries(out):
            if (device, engine, version) == (self.device.name, self.engine.name, self.engine.version):
                profile = open_profile(folder)
                if self.key in measured_keys(profile, self.model):
                    return next((m for m in profile.environment.measured if m.what == self.what), None)
        return None

    def journal_path(self, out: Path) -> Path:
        e, k = self.engine, self.key
        name = f"{self.device.name}-{e.name}-{e.version}-{self.model.config_digest}-{k.scheme}-{k.kv_dtype}-tp{k.tp}"
        return out / ".unfinished" / f"{name}.jsonl"


@dataclass(slots=True)
class StepsRun:
    """One run of `fwopt profile` over an engine's steps."""

    subject: Subject
    limits: Limits
    out: Path
    command: str = "unknown"
    """How the engine was started, for the record."""
    longest_prompt: int | None = None
    quick: bool = False
    resume: bool = False
    allow_busy: bool = False
    say: Callable[[str], None] = lambda text: None
    on_probe: Callable[[Probe, int, int], None] = lambda probe, at, total: None
    _noise: list[float] = field(default_factory=list)

    def questions(self) -> list[Probe]:
        return plan(self.limits, longest_prompt=self.longest_prompt, quick=self.quick)

    def before(self) -> None:
        """Refuse a busy machine; call before the engine is started."""
        require_quiet(self.allow_busy, self.say)

    def measure(self, endpoint: Endpoint) -> tuple[Path, StepLaw, list[Row]]:
        """Ask, and keep what came of it: (profile folder, the law that its rows follow, the rows)."""
        load_before = load_words()
        journal = Journal.open(self.subject.journal_path(self.out), self._head(), resume=self.resume)
        if len(journal):
            self.say(f"going on after {len(journal)} of {len(self.questions())} questions answered before")
        prompter = Prompter(self.subject.model.vocab_size, seed=len(journal))
        asking = Asking(endpoint, self.limits, prompter, journal, self.on_probe, self._quiet)
        rows = rows_of(asking.run(self.questions()), self.subject.columns)
        law = fit(step_rows(rows), self.subject.what)
        folder = self._keep(rows, load_before)
        journal.close()
        return folder, law, rows

    def _quiet(self) -> None:
        if self.allow_busy:
            return
        self._noise.append(wait_until_quiet(self.say))

    def _head(self) -> dict[str, Any]:
        limits = self.limits
        return {
            "subject": self.subject.what,
            "device": self.subject.device.name,
            "engine": f"{self.subject.engine.name}-{self.subject.engine.version}",
            "limits": [limits.max_num_seqs, limits.max_num_batched_tokens, limits.max_model_len],
            "command": self.command,
        }

    def _keep(self, rows: list[Row], load_before: str) -> Path:
        subject = self.subject
        noise = f"; at most {max(self._noise):.0%} of the cores busy with other work" if self._noise else ""
        measured = Measured(
            what=subject.what,
            date=today(),
            fwopt_version=__version__,
            machine=describe(),
            load=f"before: {load_before}; after: {load_words()}{noise}",
            command=self.command,
            notes=(SHARED_NOTE, *(("quick: one turn over every other size",) if self.quick else ())),
        )
        table = NewTable(rows, replaces=SUBJECT, kernels=(f"{subject.engine.name} {subject.engine.version}",))
        device, engine = subject.device, subject.engine
        return add_measurements(
            self.out, device.name, device.full_name, engine.name, engine.version, {TABLE: table}, measured
        )


def step_rows(rows: list[Row]) -> StepRows:
    """Rows as the fit reads them."""
    import numpy as np

    if not rows:
        raise InputError("the engine answered no question, so there is nothing to keep")
    return StepRows(*(np.asarray([row[name] for row in rows]) for name in StepRows.__slots__))
