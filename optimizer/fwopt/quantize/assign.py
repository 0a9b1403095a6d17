"""Which scheme each group gets: the exact least time whose KL, summed over groups, keeps a limit."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fwopt.errors import InputError, NothingFitsError


@dataclass(frozen=True, slots=True)
class Option:
    """One scheme for one group."""

    group: str
    scheme: str
    kl: float
    seconds: float


def assign(options: Sequence[Option], limit: float) -> dict[str, Option]:
    """Group -> its option. A binary linear program, solved to optimality by HiGHS."""
    solver = _solver()
    import highspy

    by_group: dict[str, list[int]] = {}
    for at, option in enumerate(options):
        by_group.setdefault(option.group, []).append(at)
        solver.addVar(0.0, 1.0)
        solver.changeColIntegrality(at, highspy.HighsVarType.kInteger)
        solver.changeColCost(at, option.seconds * _MICRO)
    for members in by_group.values():
        solver.addRow(1.0, 1.0, len(members), members, [1.0] * len(members))
    kl = [max(option.kl, 0.0) * _MICRO for option in options]
    solver.addRow(-highspy.kHighsInf, limit * _MICRO, len(options), list(range(len(options))), kl)
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        least = sum(min(options[at].kl for at in members) for members in by_group.values())
        raise NothingFitsError(f"no mixture keeps KL {limit:g}: the best one has {least:.3g}; raise --max-kl")
    values = solver.getSolution().col_value
    return {option.group: option for option, value in zip(options, values, strict=True) if value > 0.5}


_MICRO = 1e6
"""Microseconds and millionths of a nat: the solver's tolerances are absolute."""


def _solver() -> Any:
    try:
        import highspy
    except ImportError:
        raise InputError("--scheme mixed needs a solver; pip install 'fwopt[quantize]'") from None
    with _stdout_closed():  # it greets while it is made, before it can be told not to
        solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("mip_rel_gap", 0.0)
    return solver


@contextmanager
def _stdout_closed() -> Iterator[None]:
    """What libraries print past Python goes nowhere: stdout belongs to results."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def total(chosen: Mapping[str, Option]) -> tuple[float, float]:
    """(KL, seconds)."""
    return sum(o.kl for o in chosen.values()), sum(o.seconds for o in chosen.values())
