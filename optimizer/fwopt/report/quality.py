"""Figures of `fwopt quality` as a table for the terminal."""

from __future__ import annotations

from fwopt.report.table import table
from fwopt.spec.quality import ArmFigures, Estimate, Figures, QualityResults

_HEAD = ("", "KL, nats/token", "95 % interval", "top-1", "top-5", "perplexity", "")

_LIBRARIES = ("torch", "transformers", "compressed-tensors")


def render(results: QualityResults, path: str) -> str:
    """Controls first, then schemes, best first."""
    controls = [arm for arm in results.arms if arm.kind == "control"]
    schemes = sorted((arm for arm in results.arms if arm.kind == "scheme"), key=lambda arm: arm.overall.kl.value)
    tokens = controls[0].overall.tokens
    what = f"{tokens:,} tokens in {controls[0].overall.windows} windows of at most {results.settings.window}"
    lines = [
        f"{results.model} on {', '.join(results.text)}: {what}",
        f"reference in {results.settings.dtype}, perplexity {results.reference_perplexity:.3f}",
        "",
        *table([_HEAD, *(_row(arm) for arm in (*controls, *schemes))]),
        "",
    ]
    lines += [f"{item.name}: left out, {item.reason}" for item in results.left_out]
    for title, pick in (("class", "by_class"), ("tokens before", "by_position")):
        parts = list(getattr(controls[0], pick))
        if len(parts) > 1:
            rows = [(arm.name, *(_kl(getattr(arm, pick)[part]) for part in parts)) for arm in (*controls, *schemes)]
            lines += [f"KL by {title}", *table([("", *parts), *rows]), ""]
    lines.append(f"noise: what the unquantized model differs by from itself, computed otherwise ({controls[0].name}: "
                 f"{controls[0].says}; {controls[-1].name}: {controls[-1].says})")  # fmt: skip
    lines += [f"{arm.name}: computed with {_others(arm.computed_by, results.made_by)}" for arm in schemes
              if arm.computed_by is not None]  # fmt: skip
    versions = ", ".join(f"{name} {results.versions[name]}" for name in _LIBRARIES if name in results.versions)
    lines.append(f"seed {results.settings.seed}; {versions}; {results.machine}; {results.date}; {path}")
    return "\n".join(lines)


def _others(then: dict[str, str], now: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in then.items() if now.get(name) != value)


def _row(arm: ArmFigures) -> tuple[str, ...]:
    overall = arm.overall
    return (
        arm.name, _kl(overall), _interval(overall.kl), f"{overall.top1.value:.2%}", f"{overall.top5.value:.2%}",
        f"x{overall.perplexity_ratio.value:.4f}", _verdict(arm),
    )  # fmt: skip


def _verdict(arm: ArmFigures) -> str:
    if arm.verdict == "noise":
        return "the noise"
    if arm.verdict == "indistinguishable":
        return "indistinguishable from the same model computed otherwise"
    excess = arm.excess_kl
    return f"{excess.value:.2g} above the noise" if excess is not None else ""


def _kl(figures: Figures) -> str:
    return f"{figures.kl.value:.3g}"


def _interval(estimate: Estimate) -> str:
    return "too few windows" if estimate.low is None else f"{estimate.low:.3g} - {estimate.high:.3g}"
