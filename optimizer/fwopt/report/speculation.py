"""Figures of `fwopt speculation` as a table for the terminal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from fwopt.report.table import table
from fwopt.spec.quality import Estimate
from fwopt.spec.speculation import Acceptance, SpeculationResults

_HEAD = ("", "tokens a step", "95 % interval", "acceptance length", "steps with a draft", "accepted at 1, 2, ...")
_REPLIES = {
    "recorded": "replies as recorded",
    "generated": "replies that the model itself generates, greedily",
}


def render(results: SpeculationResults, names: Sequence[str], path: str) -> str:
    """The drafters named, best first."""
    shown = sorted(
        (a for a in results.drafters if a.drafter.name in names), key=lambda a: -a.overall.tokens_per_step.value
    )
    first = shown[0].overall
    lines = [
        f"{results.model} on {', '.join(results.text)}: {first.replies} {_REPLIES[results.settings.replies]}",
        "",
        *table([_HEAD, *(_row(a) for a in shown)]),
        "",
    ]
    classes = list(shown[0].by_class)
    if len(classes) > 1:
        rows = [(a.drafter.name, *(_by_class(a, label) for label in classes)) for a in shown]
        lines += ["tokens a step by class", *table([("", *classes), *rows]), ""]
    lines += [
        "acceptance length: 1 + accepted tokens a draft, over steps with a draft, as vLLM counts it",
        "a step also costs more: its verification, and the drafter. To plan with that:",
        f"  fwopt tune TRACE ... --speculation {shlex.quote(path)}",
        f"for vLLM: --speculative-config '{json.dumps(shown[0].drafter.vllm())}'",
        f"seed {results.settings.seed}; {results.machine}; {results.date}; {path}",
    ]
    return "\n".join(lines)


def _row(found: Acceptance) -> tuple[str, ...]:
    overall = found.overall
    length = "no draft" if overall.acceptance_length is None else f"{overall.acceptance_length.value:.3f}"
    places = ", ".join(f"{rate.value:.3f}" for rate in overall.by_position)
    return (
        found.drafter.name, f"{overall.tokens_per_step.value:.3f}", _interval(overall.tokens_per_step), length,
        f"{overall.drafts / overall.steps:.1%}", places,
    )  # fmt: skip


def _by_class(found: Acceptance, label: str) -> str:
    part = found.by_class.get(label)
    return "-" if part is None else f"{part.tokens_per_step.value:.3f}"


def _interval(estimate: Estimate) -> str:
    return "too few replies" if estimate.low is None else f"{estimate.low:.3f} - {estimate.high:.3f}"
