"""Numbers keep their value and their honesty when they become text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fwopt.report import format as f
from fwopt.report.facts import price_text
from fwopt.spec.hardware import Price
from fwopt.spec.outcome import Distribution
from fwopt.spec.provenance import ProvenanceShares

SCALE = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.83, "1.83 s"),
        (0.0412, "41.2 ms"),
        (0.00085, "850 µs"),
        (0.9996, "1.00 s"),
        (0, "0 s"),
        (183.2, "183 s"),
        (12_345.0, "12,345 s"),
        (None, "inf (rejected)"),
    ],
)
def test_seconds(value, text):
    assert f.seconds(value) == text


@given(st.floats(1e-7, 1e6))
def test_seconds_keep_three_digits(value):
    number, unit = f.seconds(value).split(" ")
    assert float(number.replace(",", "")) * SCALE[unit] == pytest.approx(value, rel=6e-3)


@given(st.floats(0, 1))
def test_percent_says_none_and_all_only_when_exact(share):
    text = f.percent(share)
    assert (text == "0%") == (share == 0)
    assert (text == "100%") == (share == 1)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.62, "62%"), (0.08, "8%"), (0.034, "3.4%"), (0.0004, "<0.1%"), (0.9999, ">99.9%"), (1.19, "119%")],
)
def test_percent(share, text):
    assert f.percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1423, "$0.142"), (4.5, "$4.50"), (6570.4, "$6,570"), (0, "$0"), (-12.5, "-$12.50"), (99.7, "$100")],
)
def test_usd(value, text):
    assert f.usd(value) == text


def test_listed_seconds_share_one_unit_and_keep_infinity():
    assert f.seconds_listed([3.24, 7.2, 9.1]) == "3.24 / 7.20 / 9.10 s"
    assert f.seconds_listed([0.0141, 0.03, None]) == "14.1 / 30.0 / inf ms"
    assert f.seconds_listed([None, None]) == "inf / inf"


@given(st.lists(st.floats(0.001, 1), min_size=4, max_size=4))
def test_provenance_names_every_kind_present_largest_first(values):
    total = sum(values)
    m, i, b, a = (v / total for v in values)
    text = f.provenance(ProvenanceShares(measured=m, interpolated=i, bound=b, assumed=a))
    assert {w.split(" ")[1] for w in text.split(", ")} == {"measured", "interpolated", "bound", "assumed"}
    shown = [float(re.sub(r"[<>%]", "", w.split(" ")[0])) for w in text.split(", ")]
    assert shown == sorted(shown, reverse=True)


def test_quantities_keep_their_unit():
    assert f.quantity(171_798_691_840, "bytes") == "160 GiB"
    assert f.quantity(0.061, "s") == "61.0 ms"
    assert f.quantity(9, "GPUs") == "9 GPUs"
    assert f.quantity(None, "GPUs") == "-"


def test_change_is_said_in_words():
    assert f.change(0.6, 1.0) == "40% less"
    assert f.change(1.5, 1.0) == "50% more"
    assert f.change(1.0, 1.0) == "the same"
    assert f.change(1.0, None) is None
    assert f.change(1.0, 0.0) is None


def test_names_cannot_reach_the_terminal():
    assert f.plain("a\x1b[31mb\nc") == "a?[31mb?c"


def test_a_latency_that_no_answer_has_is_not_called_infinite():
    """Answers of one token have no gap; where nothing was answered everything is infinite."""
    none = Distribution(mean_s=None, p50_s=None, p90_s=None, p95_s=None, p99_s=None, max_s=None)
    assert f.spread(none, 400) == ["-"] * 6
    assert f.spread(none, 0) == [f.INFINITE] * 6
    refused = none.model_copy(update={"mean_s": 0.1, "p50_s": 0.1})
    assert f.spread(refused, 9) == ["100 ms", "100 ms", *[f.INFINITE] * 4]


@pytest.mark.parametrize(
    ("dates", "text"),
    [
        ("2026-09-20; 2026-02; 2026-09-25", "2026-02 to 2026-09-25"),
        ("2026-09-20", "2026-09-20"),
        ("2026-02; 2026-09-25; long-standing list price", "2026-02 to 2026-09-25 and long-standing list price"),
        ("2024; long-standing list price", "2024 and long-standing list price"),
        ("long-standing list price", "long-standing list price"),
    ],
)
def test_a_span_of_dates_ends_with_a_date(dates, text):
    price = Price(usd_per_gpu_hour=1.55, basis="median on-demand", dates=dates, source="test")
    assert price_text(price) == f"$1.55 per GPU-hour (median on-demand, {text}; --price overrides)"
