"""One file, no network, escaped, every link resolves, every number leads to its evidence."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from fwopt.report.html import render
from fwopt.spec.candidate import Candidate

VOID = {"meta", "input", "br"}


class Page(HTMLParser):
    """Tags, ids, links; raises on bad nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.cells: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self._link: str | None = None
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.add(tag)
        self.handlers += [name for name in found if name.startswith("on")]
        if found.get("id"):
            self.ids.append(found["id"])
        self.loads += [found[name] for name in ("src", "srcset", "data", "action", "poster") if name in found]
        if "href" in found:
            (self.links if tag == "a" else self.loads).append(found["href"])
        if tag == "a":
            self._link = found.get("href")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag
        if tag == "a":
            self._link = None

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.words.append(data)
            self.cells.append((data.strip(), self._link))

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture
def page(sample) -> Page:
    return Page(render(sample.plan(), sample.trials()))


def variants(sample):
    plan = sample.plan()
    free = type(sample)(price=None)
    yield plan, sample.trials()
    yield plan, []
    yield sample.infeasible()
    yield plan.model_copy(update={"status": "interrupted"}), sample.trials()[:3]
    yield plan.model_copy(update={"chosen": None, "baseline": None, "runners_up": (), "pareto": (), "unmeasured": (),
                                  "rejected": (), "evaluated": 0, "status": "interrupted"}), []  # fmt: skip
    yield free.plan(), free.trials()
    yield plan.model_copy(update={"baseline": None}), sample.trials()
    yield plan.model_copy(update={"chosen": plan.baseline}), sample.trials()


def test_the_first_screen_says_what_it_saves_on_what_assumptions(page):
    head = page.text.partition("Promised, against the limits")[0]
    for promised in ("2 x H200 instead of 4: $6,570 a month less", "$0.103", "42% less", "1.31x", "730 h",
                     "$4.50 per GPU-hour", "median on-demand", "simulated", "minimize"):  # fmt: skip
        assert promised in head, promised


def test_every_promised_part_is_there(page):
    for promised in ("27% below", "Trade-off", "Best found", "As good or better, but not measured", "Settings",
                     "62% interpolated", "All trials", "9a0b6c1d2e3f4a5b", "c0ffee1234567890", "fwopt tune TRACE",
                     "literature median over 7 models", "need 160 GiB, have 129 GiB", "docs/metrics.md"):  # fmt: skip
        assert promised in page.text, promised
    assert "svg" in page.tags


def test_nothing_is_loaded_and_every_link_resolves(sample):
    for plan, trials in variants(sample):
        text = render(plan, trials)
        page = Page(text)
        assert page.loads == []
        assert page.handlers == []
        assert not page.tags & {"img", "iframe", "link", "object", "embed", "base", "form"}
        assert not re.search(r"url\(|@import|https?://", text)
        assert {link for link in page.links if not link.startswith("#")} == set()
        assert {link[1:] for link in page.links} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))


def test_a_number_leads_to_its_evidence_and_on_to_the_pinned_profile(sample):
    text = render(sample.plan(), sample.trials())
    page = Page(text)
    links = {value: link for value, link in page.cells if link and value}
    assert links["36.3 ms, 27% below"] == "#evidence-chosen"
    assert links["32.7 ms, 35% below"] == "#evidence-baseline"
    assert links["$0.178"] == "#price"
    card = text.partition('id="evidence-chosen"')[2].partition('id="evidence-baseline"')[0]
    assert 'href="#inputs"' in card
    assert "c0ffee1234567890" in text.partition('id="inputs"')[2]


def test_hostile_names_are_escaped(hostile):
    text = render(hostile.plan(), hostile.trials())
    page = Page(text)
    assert text.count("<script>") == 1
    assert "img" not in page.tags
    assert page.handlers == []
    assert "\x1b" not in text
    assert "<script>alert(1)</script>" in page.text


def test_infinite_latencies_and_missing_prices_are_said(sample):
    plan, trials = sample.infeasible()
    first, *rest = plan.nearest_miss.evaluation.slos
    slos = (first.model_copy(update={"value_s": None}), *rest)
    evaluation = plan.nearest_miss.evaluation.model_copy(update={"slos": slos})
    near = plan.nearest_miss.model_copy(update={"evaluation": evaluation})
    assert "inf (rejected)" in Page(render(plan.model_copy(update={"nearest_miss": near}), trials)).text
    free = type(sample)(price=None)
    text = Page(render(free.plan(), free.trials())).text
    assert "No price was given" in text
    assert not re.search(r"\$\d", text)


def test_thousands_of_trials_stay_small_and_the_rest_is_counted(sample):
    trials = sample.trials()
    many = []
    for i in range(5000):
        t = trials[i % len(trials)]
        content = t.candidate.model_dump()
        content["batching"]["max_num_seqs"] = 10_000 + i
        candidate = Candidate(**content)
        many.append(t.model_copy(update={"number": i, "candidate": candidate}))
    text = render(sample.plan(), many)
    assert len(text.encode()) < 300_000
    assert "4,700 more lie in trials.jsonl" in text
    page = Page(text)
    assert {link[1:] for link in page.links} <= set(page.ids)


def test_same_plan_same_bytes(sample):
    assert render(sample.plan(), sample.trials()) == render(sample.plan(), sample.trials())
