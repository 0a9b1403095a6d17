"""Does an operator compute what its float64 reference says? The gate before any timing, and the tests' one check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fwopt_kernels.contract import Expected, Operator, Variant
from fwopt_kernels.registry import load

FEWEST = 256
"""Values that a mean error is taken over at least."""


def differences(
    target: str | Operator[Any],
    format: str,
    shape: Mapping[str, int],
    *,
    variant: Variant | None,
    seed: int,
    padding: int = 0,
    device: str = "cpu",
) -> list[str]:
    """One line per output that lies outside its tolerance or holds NaN; empty when all is right.

    `variant` None runs the torch fallback. `target` is an operator or its `module:attribute`.
    """
    operator = load(target) if isinstance(target, str) else target
    case = operator.case(format, shape, seed, padding=padding, device=device)
    reference = operator.reference(case)
    if variant is None:
        operator.fallback(case)
    else:
        operator.run(case, variant)
    return faults(case.results(), reference)


def faults(results: Mapping[str, Any], reference: Mapping[str, Expected]) -> list[str]:
    """One line per output of a call that lies outside its tolerance or holds NaN."""
    if results.keys() != reference.keys():
        return [f"outputs are {sorted(results)}, the reference has {sorted(reference)}"]
    lines = [_difference(name, results[name], reference[name]) for name in reference]
    return [line for line in lines if line]


def _difference(name: str, got: Any, want: Expected) -> str:
    if got.shape != want.values.shape:
        return f"{name}: shape {tuple(got.shape)} instead of {tuple(want.values.shape)}"
    error = got - want.values
    tolerance = want.atol + want.rtol * want.values.abs()
    wrong = ~(error.abs() <= tolerance)
    if not bool(wrong.any()):
        return _bias(name, error, want)
    first = int(wrong.flatten().nonzero()[0, 0])
    values = f"{float(got.flatten()[first]):.6g} instead of {float(want.values.flatten()[first]):.6g}"
    return f"{name}: {int(wrong.sum()):,} of {wrong.numel():,} values off, the first at {first}: {values}"


def _bias(name: str, error: Any, want: Expected) -> str:
    """Rounding errs to both sides, cutting only towards zero: the mean relative error tells them apart.

    Asked of values whose tolerance is mostly relative, and only of enough of them that chance cannot decide.
    """
    plain = want.rtol * want.values.abs() > 4 * want.atol
    if int(plain.sum()) < FEWEST:
        return ""
    mean = float((error / want.values)[plain].mean())
    if abs(mean) <= want.rtol / 8:
        return ""
    return f"{name}: {mean:+.2%} off in the mean, more than rounding leaves"
