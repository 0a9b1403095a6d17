"""Figures of each arm from its tokens: overall, by class, by position; and what they mean beside the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fwopt.quality.compare import Floats, PerToken, Places
from fwopt.quality.statistics import Bootstrap
from fwopt.quality.windows import Windows
from fwopt.spec.quality import ArmFigures, Estimate, Figures

_EDGES = (1, 16, 64, 256, 1024, 4096, 16384, 65536)


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one study's tokens."""

    windows: Windows
    places: Places
    reference: Floats
    """Surprise of each token in the reference."""
    bootstrap: Bootstrap

    def control(self, name: str, says: str, found: PerToken) -> ArmFigures:
        return self._arm(name, "control", says, found, None, "noise")

    def scheme(
        self,
        name: str,
        says: str,
        found: PerToken,
        controls: Mapping[str, PerToken],
        noise: Sequence[ArmFigures],
    ) -> ArmFigures:
        """The control that differs most is the noise: what lies within its interval cannot be told from it."""
        loudest = max(noise, key=lambda arm: arm.overall.kl.value)
        excess = self.bootstrap.mean(found.kl - controls[loudest.name].kl, self.places.window)
        arm = self._arm(name, "scheme", says, found, excess, "different")
        low, high = arm.overall.kl.low, max(_high(control) for control in noise)
        if low is not None and low <= high:
            return arm.model_copy(update={"verdict": "indistinguishable"})
        return arm

    def _arm(
        self,
        name: str,
        kind: Literal["control", "scheme"],
        says: str,
        found: PerToken,
        excess: Estimate | None,
        verdict: Literal["noise", "indistinguishable", "different"],
    ) -> ArmFigures:
        return ArmFigures(
            name=name,
            kind=kind,
            says=says,
            overall=self._figures(found, np.ones(len(found.kl), dtype=bool)),
            by_class={label: self._figures(found, where) for label, where in self._classes().items()},
            by_position={label: self._figures(found, where) for label, where in self._positions().items()},
            excess_kl=excess,
            verdict=verdict,
        )

    def _classes(self) -> dict[str, NDArray[np.bool_]]:
        of_token = np.array(self.windows.classes)[self.places.window]
        return {label: of_token == label for label in dict.fromkeys(self.windows.classes)}

    def _positions(self) -> dict[str, NDArray[np.bool_]]:
        position, found = self.places.position, {}
        for low, high in pairwise(_EDGES):
            where = (position >= low) & (position < high)
            if where.any():
                found[f"{low}-{high - 1}"] = where
        return found

    def _figures(self, found: PerToken, where: NDArray[np.bool_]) -> Figures:
        window = self.places.window[where]

        def mean(values: Floats) -> Estimate:
            return self.bootstrap.mean(values[where], window)

        ratio = mean(found.surprise - self.reference)
        return Figures(
            tokens=len(window),
            windows=len(np.unique(window)),
            kl=mean(found.kl),
            kl_p99=float(np.quantile(found.kl[where], 0.99)),
            top1=mean(found.top1),
            top5=mean(found.top5),
            perplexity_ratio=Estimate(
                value=float(np.exp(ratio.value)),
                low=None if ratio.low is None else float(np.exp(ratio.low)),
                high=None if ratio.high is None else float(np.exp(ratio.high)),
            ),
        )


def _high(arm: ArmFigures) -> float:
    return arm.overall.kl.value if arm.overall.kl.high is None else arm.overall.kl.high
