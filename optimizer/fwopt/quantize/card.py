"""README.md of a written checkpoint: the same content as its fwopt.json, for people."""

from __future__ import annotations

from fwopt.spec.quality import ArmFigures, Estimate
from fwopt.spec.quantized import Mixture, QuantizedCheckpoint, Study


def render(made: QuantizedCheckpoint) -> str:
    size = (
        f"{made.weight_bytes / 1e6:,.1f} MB of weights, {made.weight_bytes / made.source_bytes:.0%} of the unquantized "
        f"{made.source_bytes / 1e6:,.1f} MB."
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(made.versions.items()))
    lines = [
        "---", f"base_model: {made.model}", f"library_name: {_LIBRARY[made.format]}",
        "tags:", f"- {made.format}", f"- {made.scheme}", "- fwopt", "---", "",
        f"# {made.model}, {made.scheme}", "", f"{_sentence(made.says)} Written by {made.written_by}.", "",
        size, "",
        "## What it costs", "", *_cost(made.study), *_mixture(made.mixture),
        "## How this is known", "", f"* {made.checked}",
        f"* unquantized weights `{made.source_weights_digest}`, their config.json `{made.source_config_digest}`",
        *_chain(made.study), f"* these weights `{made.weights_digest}`", "",
        "```", made.command, "```", "",
        f"fwopt {made.fwopt_version}, {made.date}; {versions}.",
        "Files and their SHA-256 are in `fwopt.json`. " + _SERVE[made.format], "",
    ]  # fmt: skip
    return "\n".join(lines)


_LIBRARY = {"compressed-tensors": "transformers", "gguf": "gguf"}
_SERVE = {
    "compressed-tensors": "`vllm serve FOLDER` reads the scheme from config.json.",
    "gguf": "`llama-server -m FILE` serves it.",
}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _cost(study: Study | None) -> list[str]:
    if study is None:
        return ["Not measured. `fwopt quality` does, given text.", ""]
    overall = study.figures.overall
    head = (
        f"Beside the unquantized model, teacher-forced on {overall.tokens:,} tokens in {overall.windows} windows of "
        f"{', '.join(study.text)}; 95 % intervals over windows. Controls are the unquantized model computed otherwise: "
        "the noise."
    )
    rows = [_row(arm) for arm in (study.figures, *study.controls)]
    table = ["| | KL, nats/token | top-1 | top-5 | perplexity |", "|---|---|---|---|---|", *rows]
    return [
        head,
        "",
        *table,
        "",
        f"{_verdict(study.figures)} Unquantized perplexity: {study.reference_perplexity:.3f}.",
        "",
    ]


def _row(arm: ArmFigures) -> str:
    f = arm.overall
    return (
        f"| {arm.name} | {_spread(f.kl, '.3g')} | {_spread(f.top1, '.2%')} | {_spread(f.top5, '.2%')} "
        f"| x{_spread(f.perplexity_ratio, '.4f')} |"
    )


def _spread(estimate: Estimate, form: str) -> str:
    value = format(estimate.value, form)
    return value if estimate.low is None else f"{value} ({estimate.low:{form}} - {estimate.high:{form}})"


def _verdict(arm: ArmFigures) -> str:
    if arm.verdict == "indistinguishable":
        return "It cannot be told from the unquantized model computed otherwise."
    return f"KL above the noise: {_spread(arm.excess_kl, '.3g')}." if arm.excess_kl is not None else ""


def _mixture(mixture: Mixture | None) -> list[str]:
    if mixture is None:
        return []
    rows = [f"| {g.group} | {g.scheme} | {g.kl:.3g} | {g.seconds * 1e6:.1f} | {g.provenance} |" for g in mixture.groups]
    uniform = [f"| {name} everywhere | {kl:.3g} | {s * 1e3:.3f} |" for name, (kl, s) in mixture.uniform.items()]
    how = (
        f"Least time with KL of at most {mixture.budget:g} (sum over groups {mixture.predicted_kl:.3g}, measured "
        f"{mixture.measured_kl:.3g}, round {mixture.rounds}). Times: {mixture.times}; weighed over {mixture.steps}."
    )
    return [
        "## The mixture", "", how, "",
        "| | KL, nats/token | products of a step, ms |", "|---|---|---|",
        f"| **this mixture** | {mixture.measured_kl:.3g} | {mixture.seconds * 1e3:.3f} |", *uniform, "",
        "| layers and matrices | scheme | KL alone | us a step | known |", "|---|---|---|---|---|", *rows, "",
    ]  # fmt: skip


def _chain(study: Study | None) -> list[str]:
    if study is None:
        return []
    how = f"text `{study.text_digest}`, tokens compared `{study.windows_digest}`, study `{study.key}`"
    return [f"* {how}, measured {study.date} on {study.machine}"]
