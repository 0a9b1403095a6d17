"""A mixture: what each group costs alone, what it saves, the exact choice, and the assembled model measured."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fwopt.atomic import written_whole
from fwopt.errors import NothingFitsError
from fwopt.quality.schemes import Scheme
from fwopt.quality.study import Request, place
from fwopt.quantize.assign import Option, assign, total
from fwopt.quantize.bands import Band, mixture
from fwopt.quantize.times import Times
from fwopt.quantize.write import Tell
from fwopt.spec.quantized import GroupTime, Mixture

_AS_IT_IS = "bf16"
KEPT = "mixing.json"
"""KL of groups and mixtures, in the study's folder."""
ROUNDS = 5
_CLOSE = 0.9
"""A mixture that uses this share of the budget is not improved further."""


@dataclass(slots=True)
class Mixer:
    """Chooses on one text; the model that comes out is measured on another."""

    request: Request
    """The text of the choice."""
    bands: Sequence[Band]
    schemes: Sequence[Scheme]
    times: Times
    tell: Tell
    _kl: dict[str, float] = field(default_factory=dict)
    """Arm -> mean KL: names of mixtures carry their content, so what was measured before holds."""

    def choose(self, budget: float) -> tuple[Scheme, Mixture]:
        """Least time; the sum over groups is corrected by what the assembled model shows."""
        options, limit = self.options(), budget
        best: tuple[dict[str, Option], float] | None = None
        rounds = 0
        while rounds < ROUNDS:
            rounds += 1
            chosen = assign(options, limit)
            measured = self.measure([self.scheme(chosen)])[0]
            if measured <= budget and (best is None or total(chosen)[1] < total(best[0])[1]):
                best = chosen, measured
            if _CLOSE * budget <= measured <= budget or not any(o.scheme != _AS_IT_IS for o in chosen.values()):
                break
            limit *= (budget / measured) * (0.98 if measured > budget else 1.0)
        if best is None:
            raise NothingFitsError(f"no mixture kept KL {budget:g} in {ROUNDS} rounds; raise --max-kl, or lower --band")
        return self.scheme(best[0]), self._describe(*best, budget, rounds)

    def options(self) -> list[Option]:
        """Every scheme for every group, measured with that group alone rounded."""
        alone = {(b.name, s.name): mixture(self._only(b, s), self.bands) for b in self.bands for s in self.schemes}
        kls = dict(zip(alone, self.measure(list(alone.values())), strict=True))
        found = []
        for band in self.bands:
            found.append(Option(band.name, _AS_IT_IS, 0.0, self._seconds(band, None)))
            found += [Option(band.name, s.name, kls[band.name, s.name], self._seconds(band, s)) for s in self.schemes]
        return found

    def scheme(self, chosen: Mapping[str, Option]) -> Scheme:
        by_name = {scheme.name: scheme for scheme in self.schemes}
        return mixture({name: by_name.get(option.scheme) for name, option in chosen.items()}, self.bands)

    def uniform(self) -> dict[str, tuple[float, float]]:
        """Scheme -> (KL, seconds) with every group in it."""
        plans = [mixture(dict.fromkeys((b.name for b in self.bands), scheme), self.bands) for scheme in self.schemes]
        kls = self.measure(plans)
        found = {_AS_IT_IS: (0.0, sum(self._seconds(band, None) for band in self.bands))}
        for scheme, kl in zip(self.schemes, kls, strict=True):
            found[scheme.name] = kl, sum(self._seconds(band, scheme) for band in self.bands)
        return found

    def measure(self, schemes: Sequence[Scheme]) -> list[float]:
        """Mean KL of each, once."""
        kept = place(self.request, self.tell) / KEPT
        if not self._kl and kept.is_file():
            self._kl = json.loads(kept.read_text(encoding="utf-8"))
        missing = {scheme.name: scheme for scheme in schemes if scheme.name not in self._kl}
        if missing:
            self._kl |= measure(self.request, list(missing.values()), self.tell)
            with written_whole(kept) as path:
                path.write_text(json.dumps(self._kl, indent=1), encoding="utf-8")
        return [self._kl[scheme.name] for scheme in schemes]

    def _only(self, band: Band, scheme: Scheme) -> dict[str, Scheme | None]:
        return {other.name: scheme if other is band else None for other in self.bands}

    def _seconds(self, band: Band, scheme: Scheme | None) -> float:
        return sum(self.times.seconds(scheme.name if scheme else _AS_IT_IS, product) for product in band.products)

    def _describe(self, chosen: Mapping[str, Option], measured: float, budget: float, rounds: int) -> Mixture:
        predicted, seconds = total(chosen)
        groups = tuple(
            GroupTime(group=o.group, scheme=o.scheme, kl=o.kl, seconds=o.seconds, provenance=self.times.provenance)
            for o in chosen.values()
        )
        return Mixture(
            budget=budget, predicted_kl=predicted, measured_kl=measured, rounds=rounds, seconds=seconds, groups=groups,
            times=self.times.says, steps=self.times.steps, uniform=self.uniform(),
        )  # fmt: skip


def measure(request: Request, schemes: Sequence[Scheme], tell: Tell) -> dict[str, float]:
    """Mean KL by name. An arm whose first layers are the reference's starts where it differs."""
    import torch

    from fwopt.quality.arms import Arm
    from fwopt.quality.compare import compare
    from fwopt.quality.model import StreamedModel
    from fwopt.quality.states import States
    from fwopt.quality.study import REFERENCE, read_windows
    from fwopt.quality.walk import Walk

    model = StreamedModel(request.folder, torch.bfloat16)
    windows = read_windows(request, model.config.vocab_size, tell)
    arms = [Arm(REFERENCE), *(Arm(s.name, scheme=s, starts=_first_layer(s)) for s in schemes)]
    with _scratch(request.home) as folder:
        states = States(folder, len(windows.tokens), model.config.hidden_size, torch.bfloat16)
        walk = Walk(model, windows, states, model.stored_dtype())
        walk.run(arms, tell)
        alive = [arm.name for arm in arms[1:] if arm.name not in walk.failed]
        found, _ = compare(model, windows, states, REFERENCE, alive, tell)
    return {s.name: float(found[s.name].kl.mean()) if s.name in found else float("inf") for s in schemes}


def _first_layer(scheme: Scheme) -> int:
    return min((int(key.partition(".")[0]) for key in scheme.parts or ()), default=0)


@contextmanager
def _scratch(home: Path) -> Iterator[Path]:
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mixing-", dir=home) as folder:
        yield Path(folder)
