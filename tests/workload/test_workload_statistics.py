"""Statistics against hand-made workloads whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.workload import Workload, read, statistics
from fwopt.workload.inspection import remarks
from fwopt.workload.render import duration, sparkline


def made(folder: Path, arrivals: list[float], block_tokens: int | None = None, **fields: list[object]) -> Workload:
    rows: list[dict[str, object]] = [{"schema_version": 1, "block_tokens": block_tokens}]
    for i, arrival in enumerate(arrivals):
        row = {"arrival_s": arrival, "prompt_tokens": 100, "output_tokens": 10}
        rows.append(row | {name: values[i] for name, values in fields.items()})
    file = folder / "made.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(file).workload


def test_even_arrivals(tmp_path: Path) -> None:
    s = statistics(made(tmp_path, [0.5 * i for i in range(1200)]))
    assert s.rate.mean_per_s == pytest.approx(2, rel=0.01)
    assert s.rate.gap_cv == pytest.approx(0, abs=1e-9)
    assert s.rate.series_per_s[:-1] == pytest.approx([2.0] * (len(s.rate.series_per_s) - 1))
    assert {p.requests_per_s for p in s.rate.peaks} == {2.0}
    assert s.grain.tick_s == 0.5
    assert not s.grain.coarse, "a tick with one request each makes no queue"
    assert s.concurrency is not None
    assert s.concurrency.mean == pytest.approx(2 * 10 * 0.05, rel=0.01)


def test_poisson_arrivals_look_poisson(tmp_path: Path) -> None:
    gaps = np.random.default_rng(3).exponential(0.1, 20_000)
    s = statistics(made(tmp_path, np.cumsum(gaps).tolist()))
    assert s.rate.gap_cv == pytest.approx(1, abs=0.03)
    assert all(d.index == pytest.approx(1, abs=0.35) for d in s.rate.dispersion)
    assert s.grain.tick_s is None


def test_peak_is_found_off_the_grid(tmp_path: Path) -> None:
    arrivals = sorted([float(i) for i in range(300)] + [59.6 + 0.01 * i for i in range(80)])
    peak = statistics(made(tmp_path, arrivals)).rate.peaks[0]
    assert peak.window_s == 1.0
    assert peak.requests_per_s == 81  # the burst and the request at 60 s
    assert peak.start_s == pytest.approx(59.6)


def test_drifting_tick_is_seen_and_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    ticks = np.cumsum(3 + rng.integers(-1, 2, 200) * 1e-3)
    s = statistics(made(tmp_path, np.repeat(ticks, rng.integers(1, 9, 200)).tolist()))
    assert s.grain.tick_s == pytest.approx(3, abs=2e-3)
    assert s.grain.coarse
    assert "a TTFT tail may be the tick, not the server" in " ".join(remarks(s))


def test_whole_second_stamps_are_a_tick(tmp_path: Path) -> None:
    arrivals = np.sort(np.floor(np.random.default_rng(2).uniform(0, 5000, 900))).tolist()
    assert statistics(made(tmp_path, arrivals)).grain.tick_s == 1.0


def test_one_request_and_one_moment(tmp_path: Path) -> None:
    for arrivals in ([7.0], [7.0, 7.0, 7.0]):
        s = statistics(made(tmp_path, arrivals))
        assert s.duration_s == 0
        assert s.rate.mean_per_s is None
        assert s.rate.peaks == ()
        assert s.concurrency is None


def test_prefix_sharing_counts_leading_blocks_of_earlier_requests(tmp_path: Path) -> None:
    blocks = [[1, 2, 3], [1, 2, 4], [9, 2, 3], []]
    p = statistics(made(tmp_path, [0, 1, 2, 3], 40, prefix_blocks=blocks)).prefix
    assert p is not None
    assert p.hit_share == 80 / 400, "two blocks of the second request; [9, 2, 3] begins differently"
    assert p.hit_requests_share == 0.25
    assert p.informed_share == 0.75
    assert p.unique_blocks == 7
    assert p.working_set_tokens == 100 + 20 + 100, "the third block of 100 tokens holds 20"


def test_a_repeated_prompt_hits_whole_its_partial_block_included(tmp_path: Path) -> None:
    p = statistics(made(tmp_path, [0, 1], 40, prefix_blocks=[[1, 2, 3]] * 2)).prefix
    assert p is not None
    assert p.hit_share == 0.5


def test_models_do_not_share_prefixes(tmp_path: Path) -> None:
    s = statistics(made(tmp_path, [0, 1, 2], 50, prefix_blocks=[[1, 2]] * 3, model=["a", "b", "b"]))
    assert s.prefix is not None
    assert s.prefix.hit_share == pytest.approx(1 / 3)
    assert [(m.name, m.requests) for m in s.models] == [("b", 2), ("a", 1)]


def test_sessions(tmp_path: Path) -> None:
    sessions = ["x", "y", "x", "x"]
    s = statistics(made(tmp_path, [0, 1, 2, 3], session_id=sessions, id=[1, 2, 3, 4], parent_id=[None, None, 1, 3]))
    assert s.sessions is not None
    assert (s.sessions.sessions, s.sessions.turns_max, s.sessions.continued_share) == (2, 3, 0.5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=60))
def test_series_conserves_requests(tmp_path_factory, arrivals) -> None:
    w = made(tmp_path_factory.mktemp("s"), sorted(arrivals))
    rate = statistics(w).rate
    if w.duration_s > 0:
        widths = np.full(len(rate.series_per_s), rate.series_window_s, np.float64)
        widths[-1] = w.duration_s - rate.series_window_s * (len(widths) - 1)
        assert float(np.dot(rate.series_per_s, widths)) == pytest.approx(len(w))
        assert len(rate.series_per_s) <= 61


def test_a_gap_below_any_clock_is_no_tick(tmp_path: Path) -> None:
    assert statistics(made(tmp_path, [0.0, 2.2e-313, *map(float, range(1, 40))])).grain.tick_s == 1.0


def test_small_renderings() -> None:
    assert sparkline((0.0, 1.0, 8.0)) == "·▂█"
    assert [duration(x) for x in (0.25, 59, 61, 3600, 90_000)] == [
        "0.25 s",
        "59 s",
        "1 min 01 s",
        "1 h 00 min",
        "1 d 01 h",
    ]


def test_dispersion_is_variance_over_mean_of_counts_in_whole_windows(tmp_path: Path) -> None:
    arrivals = np.sort(np.random.default_rng(7).uniform(0, 2000.4, 300))
    w = made(tmp_path, arrivals.tolist())
    for found in statistics(w).rate.dispersion:
        counts = np.histogram(w.arrival_s, np.arange(int(w.duration_s / found.window_s) + 1) * found.window_s)[0]
        assert found.index == pytest.approx(counts.var(ddof=1) / counts.mean())


@pytest.mark.parametrize("unit", [1e3, 1e6, 1e9])
def test_an_hour_stamped_in_the_wrong_unit_is_described_at_a_glance(tmp_path: Path, unit: float) -> None:
    w = made(tmp_path, [unit * 36 * i for i in range(101)])
    rate = statistics(w).rate
    assert len(rate.series_per_s) <= 60
    assert float(np.sum(rate.series_per_s)) * rate.series_window_s == pytest.approx(len(w), rel=0.05)
    assert rate.dispersion[0].index == pytest.approx(1, abs=1e-4), "windows hold one request or none"
