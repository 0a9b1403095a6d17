"""JUnit XML, a test case a metric. An inconclusive metric is a skipped test: neither shown nor denied."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from fwopt.regress.outputs import words
from fwopt.spec.comparison import Comparison, MetricVerdict


def junit(c: Comparison) -> str:
    """Validates against Jenkins' junit-4.xsd, where `skipped` has a text and no attributes."""
    failures, skipped = (sum(m.verdict == v for m in c.metrics) for v in ("fail", "inconclusive"))
    nothing = not c.metrics
    tests = str(max(1, len(c.metrics)))
    counts = {"tests": tests, "failures": str(failures + nothing), "errors": "0"}
    root = Element("testsuites", {"name": "fwopt bench", **counts})
    suite = SubElement(root, "testsuite", {"name": _clean(c.suite), **counts, "skipped": str(skipped)})
    properties = SubElement(suite, "properties")
    for name, text in (("verdict", c.verdict), ("design", c.design), ("base", c.base), ("head", c.head)):
        SubElement(properties, "property", {"name": name, "value": _clean(text)})
    for m in c.metrics:
        _case(suite, m, c)
    if nothing:
        case = SubElement(suite, "testcase", {"name": "samples", "classname": _clean(c.suite)})
        SubElement(case, "failure", {"type": "fail", "message": "nothing was measured"})
    if c.notes:
        SubElement(suite, "system-out").text = _clean("\n".join(c.notes))
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _case(suite: Element, m: MetricVerdict, c: Comparison) -> None:
    case = SubElement(suite, "testcase", {"name": m.metric, "classname": _clean(f"{c.suite}.{m.bench}")})
    message = _clean(f"{words.change(m)}: {m.reason}")
    if m.verdict == "fail":
        moved = "\n".join(words.part(p) for p in c.explanation.get(m.bench, ()))
        SubElement(case, "failure", {"type": "fail", "message": message}).text = _clean(moved) or None
    elif m.verdict == "inconclusive":
        SubElement(case, "skipped").text = message
    SubElement(case, "system-out").text = _clean(
        f"base {words.value(m.base, m.unit)}, head {words.value(m.head, m.unit)}, {message}; minimum effect "
        f"{words.least(m)}, {m.blocks} blocks"
    )


def _clean(text: str) -> str:
    """Without what XML cannot carry: a command's last words may hold any control character."""
    return "".join(ch if ch in "\t\n" or (ch >= " " and ch.isprintable()) else "?" for ch in text)
