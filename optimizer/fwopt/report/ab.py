"""`fwopt ab` as text: for the terminal, and as Markdown."""

from __future__ import annotations

from fwopt.errors import plain
from fwopt.report.evals import points, sentence
from fwopt.report.tables import aligned
from fwopt.spec.ab import AbResult, LatencyFigure
from fwopt.spec.evals import Served

_HEADLINE = {
    "holds": "B holds: not worse than A, with 95 % confidence",
    "worse": "B is worse than A",
    "undecided": "undecided",
}
_LATENCY_HEAD = ("", "A p50", "B p50", "A p95", "B p95", "B / A", "95 % interval", "")
_SET_HEAD = ("", "items", "A", "B", "difference", "95 % interval", "only A right", "only B", "")


def headline(found: AbResult) -> str:
    reasons = f" ({'; '.join(found.reasons)})" if found.reasons else ""
    return _HEADLINE[found.verdict] + reasons


def render(found: AbResult, folder: str) -> str:
    lines = [headline(found), f"  A  {_who(found.a)}", f"  B  {_who(found.b)}", ""]
    if found.latency:
        lines += [*aligned([_LATENCY_HEAD, *map(_latency_row, found.latency)]), ""]
    if found.sets:
        lines += [*aligned([_SET_HEAD, *_set_rows(found)]), ""]
    return "\n".join([*lines, *_details(found), folder])


def markdown(found: AbResult) -> str:
    lines = [
        f"# {headline(found)}",
        "",
        f"- A: {_who(found.a)}",
        f"- B: {_who(found.b)}",
        f"- {found.started_at}, {found.seconds:.0f} s, fwopt {found.fwopt_version}, seed {found.settings.seed}",
        "",
    ]
    if found.latency:
        lines += ["## Latency", "", *_markdown_table([_LATENCY_HEAD, *map(_latency_row, found.latency)]), ""]
    if found.sets:
        lines += ["## Quality", "", *_markdown_table([_SET_HEAD, *_set_rows(found)]), ""]
    return "\n".join([*lines, *(f"- {line}" for line in _details(found))]) + "\n"


def _who(served: Served) -> str:
    engine = f" ({served.engine}{f' {served.version}' if served.version else ''})" if served.engine else ""
    return plain(f"{served.model} at {served.url}{engine}")


def _latency_row(figure: LatencyFigure) -> tuple[str, ...]:
    times = (figure.a_p50_s, figure.b_p50_s, figure.a_p95_s, figure.b_p95_s)
    ratio = figure.ratio
    return (
        figure.metric, *(f"{value * 1e3:.4g} ms" for value in times), f"x{ratio.value:.3f}",
        f"{ratio.low:.3f} - {ratio.high:.3f}", figure.verdict,
    )  # fmt: skip


def _set_rows(found: AbResult) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for compared in found.sets:
        p = compared.paired
        interval = f"{points(p.difference.low)} to {points(p.difference.high)}"
        rows.append((
            compared.set, str(p.items), f"{p.reference:.1%}", f"{p.score:.1%}", points(p.difference.value), interval,
            str(p.only_reference), str(p.only_this), p.verdict,
        ))  # fmt: skip
    return rows


def _details(found: AbResult) -> list[str]:
    settings = found.settings
    lines = [f"{compared.set}: {sentence(compared.paired, settings.margin)}" for compared in found.sets]
    lines += [
        f"{figure.metric}: about {figure.more_requests:,} more requests like these would decide"
        for figure in found.latency
        if figure.verdict == "undecided" and figure.more_requests is not None
    ]
    if found.latency:
        lines.append(
            f"latency: {found.latency[0].requests} requests of {found.workload} on both, in {settings.blocks} blocks "
            f"alternating in drawn order; a growth of up to {settings.slowdown:.0%} passes"
        )
    failed = found.failures
    if failed is not None and failed.a + failed.b:
        lines.append(f"of {failed.requests} requests A did not finish {failed.a}, B {failed.b}")
    errors = [(c.set, c.a_errors, c.b_errors) for c in found.sets if c.a_errors + c.b_errors]
    lines += [f"{name}: A answered {a} items with an error, B {b}; they count as wrong" for name, a, b in errors]
    return [*lines, *found.problems[1:3]]


def _markdown_table(rows: list[tuple[str, ...]]) -> list[str]:
    head, *rest = rows
    return [_line(head), _line(("---",) * len(head)), *map(_line, rest)]


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
