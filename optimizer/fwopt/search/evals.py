"""Task evals as a gate: a scheme passes a limit on an eval set only by what `fwopt evals` measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fwopt.search.quality import measured_name
from fwopt.spec.candidate import Candidate
from fwopt.spec.evals import EvalFigure, MeasuredEvals, read_comparison
from fwopt.spec.model import ModelSpec
from fwopt.spec.objective import EvalsLimit
from fwopt.spec.outcome import Rejected

if TYPE_CHECKING:
    from fwopt.search.run_folder import RunInputs


def find_evals(model: ModelSpec, home: Path) -> MeasuredEvals | None:
    """The newest comparison of each scheme on each set below `home`, of those that name this model."""
    found: dict[str, dict[str, tuple[str, EvalFigure]]] = {}
    for file in sorted(home.glob("*/*.against.json")):
        comparison = read_comparison(file)
        this, difference = comparison.this, comparison.overall.difference
        if this.scheme is None or this.config_digest != model.config_digest:
            continue
        figure = EvalFigure(
            value=difference.value, low=difference.low, items=comparison.overall.items, file=str(file.absolute())
        )
        schemes = found.setdefault(comparison.set, {})
        if this.scheme not in schemes or this.started_at >= schemes[this.scheme][0]:
            schemes[this.scheme] = this.started_at, figure
    if not found:
        return None
    return MeasuredEvals(sets={name: {s: figure for s, (_, figure) in of.items()} for name, of in found.items()})


@dataclass(frozen=True, slots=True)
class EvalsScreen:
    """Rejects what was measured to lose too much, and what was not measured: unlike for KL there is no literature to
    stand in. What serves the published weights as they are loses nothing."""

    model: ModelSpec
    limits: tuple[EvalsLimit, ...]
    measured: MeasuredEvals | None = None

    @classmethod
    def of(cls, inputs: RunInputs) -> EvalsScreen:
        return cls(inputs.model, inputs.objective.max_evals_drop, inputs.evals)

    def check(self, candidate: Candidate) -> Rejected | None:
        name = measured_name(candidate, self.model)
        if not name:
            return None
        return next((fell for limit in self.limits if (fell := self._check(candidate, limit, name))), None)

    def figure(self, limit: EvalsLimit, name: str) -> EvalFigure | None:
        return self.measured.sets.get(limit.set, {}).get(name) if self.measured else None

    def _check(self, candidate: Candidate, limit: EvalsLimit, name: str) -> Rejected | None:
        found = self.figure(limit, name)
        if found is None:
            how = f"`fwopt evals {limit.set}.jsonl --url … --against … --scheme {name} --of {self.model.name}`"
            reason = f"quality unknown: {name} was not measured on evals:{limit.set}; {how}"
            return Rejected(candidate_id=candidate.id, rung="quality", reason=reason)
        if found.low >= -limit.drop:
            return None
        return Rejected(
            candidate_id=candidate.id,
            rung="quality",
            reason=f"quality outside {limit} (measured, end of the 95 % interval)",
            need=-limit.drop,
            have=found.low,
            unit="difference of mean scores",
        )

    def notes(self, chosen: Candidate | None) -> list[str]:
        """What the limits rest on."""
        name = measured_name(chosen, self.model) if chosen is not None else ""
        lines = []
        for limit in self.limits:
            known = self.measured.sets.get(limit.set, {}) if self.measured else {}
            found = self.figure(limit, name)
            if found is not None:
                lines.append(
                    f"{limit}: {name} measured {found.value * 100:+.2f} pp, at worst {found.low * 100:+.2f} pp "
                    f"(95 %), on {found.items} items ({found.file})"
                )
            measured = f"measured of {', '.join(sorted(known))}" if known else "measured of no scheme of this model"
            lines.append(
                f"{limit} is {measured}; other schemes are left out as unknown until `fwopt evals` measured them"
            )
        return lines
