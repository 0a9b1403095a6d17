"""The least change that this machine can tell, from A/A runs: one arm measured as both."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import special

from fwopt.regress.estimate import Effect
from fwopt.regress.sequential import levels
from fwopt.spec.bench import Rules

POWER = 0.9
"""Chance that equal arms pass at the last look, were the noise known exactly."""
NOISE_CONFIDENCE = 0.8
"""The noise is taken at its upper limit of this confidence: it was itself measured on few blocks."""


def from_noise(noise: Effect, rules: Rules) -> float:
    """Minimum effect, in log units, at which equal arms pass with `POWER` by the last look.

    A pass needs the effect's upper limit below the minimum effect; equal arms of standard error s reach that with
    probability `POWER` when the minimum effect is (z of the pass + z of the power) x s.
    """
    above = math.sqrt(noise.freedom / float(special.chdtri(noise.freedom, NOISE_CONFIDENCE)))
    at_end = noise.error * above * math.sqrt(noise.units / rules.max_blocks)
    z = float(special.ndtri(1 - levels(rules, rules.alpha_pass)[-1]) + special.ndtri(POWER))
    return min(max(z * at_end, math.log1p(rules.floor)), math.log1p(rules.ceiling))


def stated(values: Sequence[float | None]) -> float | None:
    """The first that is stated, in log units."""
    found = next((value for value in values if value is not None), None)
    return None if found is None else math.log1p(found)
