"""Figures of `fwopt evals` as text."""

from __future__ import annotations

from fwopt.errors import plain
from fwopt.report.tables import aligned
from fwopt.spec.evals import EvalComparison, EvalsHeader, Graded, Paired

_SHOWN = 5


def points(share: float) -> str:
    """Percentage points."""
    return f"{share * 100:+.2f} pp"


def who(header: EvalsHeader) -> str:
    served = header.served
    engine = f" ({served.engine}{f' {served.version}' if served.version else ''})" if served.engine else ""
    return plain(f"{header.scheme + ': ' if header.scheme else ''}{served.model} at {served.url}{engine}")


def render_answers(header: EvalsHeader, graded: dict[str, Graded], path: str) -> str:
    """One server by itself: no verdict, for there is nothing to hold it against."""
    found = list(graded.values())
    right = sum(answer.score for answer in found)
    lines = [
        f"{header.set} on {who(header)}",
        f"{right:g} of {len(found)} right ({right / len(found):.1%}); a number alone says little: add --against",
        *_missed(found),
    ]
    errors = [answer for answer in found if answer.error is not None]
    if errors:
        lines.append(
            f"{len(errors)} items were answered with an error and count as wrong: {plain(errors[0].error or '')}"
        )
    return "\n".join([*lines, path])


def _missed(found: list[Graded]) -> list[str]:
    missed = [answer for answer in found if answer.score < 1 and answer.error is None]
    lines = [plain(f"  item {answer.id}: {answer.why or f'score {answer.score:g}'}") for answer in missed[:_SHOWN]]
    more = len(missed) - len(lines)
    return [*lines, f"  and {more} more, in the file"] if more > 0 else lines


def sentence(found: Paired, margin: float) -> str:
    """The verdict with its confidence."""
    low, high = points(found.difference.low), points(found.difference.high)
    if found.verdict == "not worse":
        return f"not worse than {margin * 100:g} pp with 95 % confidence (difference {low} to {high})"
    if found.verdict == "worse":
        return f"worse: {points(found.difference.value)} (95 %: {low} to {high}, p = {found.p_value:.2g})"
    if found.more_items is None:
        further = "no foreseeable number of items decides: the difference lies at the margin"
    else:
        further = f"about {found.more_items:,} more items like these would decide"
    return f"undecided whether it is within {margin * 100:g} pp (95 %: {low} to {high}); {further}"


def render_comparison(found: EvalComparison, path: str) -> str:
    lines = [
        f"{found.set}: {found.overall.items} items",
        f"  reference  {who(found.reference)}",
        f"  this       {who(found.this)}",
        "",
        *aligned([_HEAD, _row("all", found.overall), *(_row(group, p) for group, p in found.by_group.items())]),
        "",
        sentence(found.overall, found.margin),
    ]
    for what, errors in (("reference", found.reference_errors), ("this", found.this_errors)):
        if errors:
            lines.append(f"{what}: {errors} items were answered with an error and count as wrong")
    lines.append(f"{found.overall.method} interval over items; exact McNemar p = {found.overall.p_value:.3g}; {path}")
    return "\n".join(lines)


_HEAD = ("", "items", "reference", "this", "difference", "95 % interval", "only reference right", "only this")


def _row(name: str, found: Paired) -> tuple[str, ...]:
    difference = found.difference
    return (
        plain(name), str(found.items), f"{found.reference:.1%}", f"{found.score:.1%}", points(difference.value),
        f"{points(difference.low)} to {points(difference.high)}", str(found.only_reference), str(found.only_this),
    )  # fmt: skip
