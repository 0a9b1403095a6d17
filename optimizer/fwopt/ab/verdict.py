"""One verdict from several checks.

B holds only if every check holds: each has 95 % by itself, and all of them together no less, for the weakest decides.
B is worse if any check says so: chances of a false alarm add up, so their p-values are corrected (Holm 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fwopt.spec.ab import AbSet, AbVerdict, Failures, LatencyFigure
from fwopt.spec.evals import CONFIDENCE


@dataclass(frozen=True, slots=True)
class Judged:
    """Checks whose verdicts hold together, and the one on B."""

    latency: tuple[LatencyFigure, ...]
    sets: tuple[AbSet, ...]
    verdict: AbVerdict
    reasons: tuple[str, ...]


def judge_all(
    latency: Sequence[LatencyFigure], sets: Sequence[AbSet], failed: Failures | None, problems: Sequence[str]
) -> Judged:
    p_values = [figure.p_value for figure in latency] + [found.paired.p_value for found in sets]
    p_values += [failed.p_value] if failed is not None else []
    kept = holm(p_values)
    confirmed = tuple(
        figure if not problems and (figure.verdict != "slower" or keep) else _undecided(figure)
        for figure, keep in zip(latency, kept, strict=False)
    )
    judged = tuple(
        found if found.paired.verdict != "worse" or keep else _unsure(found)
        for found, keep in zip(sets, kept[len(latency) :], strict=False)
    )
    worse = [f"slower: {figure.metric}" for figure in confirmed if figure.verdict == "slower"]
    worse += [f"worse: {found.set}" for found in judged if found.paired.verdict == "worse"]
    unsure = [f"undecided: {figure.metric}" for figure in confirmed if figure.verdict == "undecided" and not problems]
    unsure += [f"undecided: {found.set}" for found in judged if found.paired.verdict == "undecided"]
    if failed is not None and failed.b > failed.a:
        words = f"{failed.b} of {failed.requests} requests failed on B, {failed.a} on A"
        (worse if kept[-1] else unsure).append(words)
    if problems:
        more = f"; and {len(problems) - 1} more problems" if len(problems) > 1 else ""
        unsure.append(f"latencies cannot be believed: {problems[0]}{more}")
    verdict: AbVerdict = "worse" if worse else "undecided" if unsure else "holds"
    return Judged(confirmed, judged, verdict, tuple(worse or unsure))


def _undecided(figure: LatencyFigure) -> LatencyFigure:
    return figure.model_copy(update={"verdict": "undecided"})


def _unsure(found: AbSet) -> AbSet:
    return found.model_copy(update={"paired": found.paired.model_copy(update={"verdict": "undecided"})})


def holm(p_values: Sequence[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which hypotheses fall, at most `level` of the time a true one among them."""
    kept = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[i] > level / (len(p_values) - rank):
            break
        kept[i] = True
    return kept
