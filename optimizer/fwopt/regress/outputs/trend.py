"""One HTML page of a store: every metric over its sessions, with its changes. No network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from markupsafe import Markup

from fwopt.regress.outputs import words
from fwopt.spec.comparison import Change, Series

WIDTH, HEIGHT, PAD = 640, 160, 34
_STYLE = (
    ".trend{max-width:740px}.trend svg{width:100%;height:auto}"
    ".trend polyline{fill:none;stroke:var(--base);stroke-width:1.5}"
)


def page(series: Sequence[Series]) -> str:
    css = resources.files("fwopt.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    body = Markup("").join(_section(s) for s in series)
    title = f"fwopt bench: {series[0].suite}" if series else "fwopt bench"
    changed = sum(len(s.changes) for s in series)
    return Markup(
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>{}</title><style>{}{}</style><main><h1>{}</h1><p class=lead>{} metrics, {} changes</p>{}</main></html>"
        "\n"
    ).format(title, Markup(css), Markup(_STYLE), title, len(series), changed, body)


def _section(s: Series) -> Markup:
    last = words.value(s.values[-1], s.unit) if s.values else "never measured"
    head = Markup(
        "<h2>{} <span class=mute>{}</span></h2><p class=under>{}: {} sessions, last {}; {} is better</p>"
    ).format(s.bench, s.metric, f"{s.suite} {s.key}", len(s.values), last, s.better)
    changes = Markup("").join(_change(c) for c in s.changes)
    return head + _chart(s) + (Markup("<ul>{}</ul>").format(changes) if changes else Markup(""))


def _change(c: Change) -> Markup:
    css = "bad" if c.effect > 0 else "good"
    return Markup('<li><span class="{}">{}</span> after {}, no later than {}</li>').format(
        css, words.signed(c.effect), c.after, c.up_to
    )


def _chart(s: Series) -> Markup:
    if len(s.values) < 2:
        return Markup("")
    low, high = min(s.values), max(s.values)
    span = high - low or high or 1.0
    step = (WIDTH - 2 * PAD) / (len(s.values) - 1)

    def place(i: int, v: float) -> tuple[float, float]:
        return PAD + i * step, HEIGHT - 20 - (v - low) / span * (HEIGHT - 50)

    points = [place(i, v) for i, v in enumerate(s.values)]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = Markup("").join(
        Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" class="{}"><title>{}: {}</title></circle>').format(
            x, y, 5 if promoted else 3, "chosen" if promoted else "front", commit, words.value(v, s.unit)
        )
        for (x, y), promoted, commit, v in zip(points, s.promoted, s.commits, s.values, strict=True)
    )
    rules = Markup("").join(
        Markup('<line x1="{0:.1f}" x2="{0:.1f}" y1="12" y2="{1}" class="limit"/>').format(
            place(s.commits.index(c.up_to), 0)[0] - step / 2, HEIGHT - 14
        )
        for c in s.changes
    )
    scale = Markup('<text x="{0}" y="12" class="tick">{1}</text><text x="{0}" y="{2}" class="tick">{3}</text>').format(
        PAD, words.value(high, s.unit), HEIGHT - 4, words.value(low, s.unit)
    )
    return Markup(
        '<div class="chart trend"><svg viewBox="0 0 {} {}" role="img">{}<polyline points="{}"/>{}{}</svg></div>'
    ).format(WIDTH, HEIGHT, rules, line, dots, scale)
