"""Stored results: which may be compared, what sessions of other days prove, when a figure changed for good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fwopt.errors import InputError
from fwopt.regress.changepoints import change_points
from fwopt.regress.compare import compare
from fwopt.regress.history import histories
from fwopt.regress.kinship import ForeignError
from fwopt.regress.store import baseline_for, listed, promote, save
from fwopt.spec.bench import Rules
from fwopt.spec.bench_result import Result

from .conftest import KEY, Make, bench, result, run

STATED = Rules(min_effect=0.03)


def day(number: int, level: float = 1.0, *, probes: float = 1e-3, seed: int | None = None, **more: object) -> Result:
    """A session of one arm."""
    rng = np.random.default_rng(number if seed is None else seed)
    runs = [run(i // 4, i, (level * np.exp(rng.normal(0, 0.005, 5))).tolist()) for i in range(40)]
    made = f"2026-11-{number:02d}T10:00:00+00:00"
    values = {"session": f"day{number}", "commit": f"c{number:03d}", "made_at": made, "probes": (probes,) * 4} | more
    return result([bench(runs)], **values)


def changed(head: Result, **key: str) -> Result:
    benches = tuple(b.model_copy(update={"key": KEY.model_copy(update=key)}) for b in head.benches)
    return head.model_copy(update={"benches": benches})


@pytest.mark.parametrize("field", ["hardware", "workload", "engine", "model", "config"])
def test_a_baseline_of_something_else_is_refused_with_the_reason(field: str) -> None:
    with pytest.raises(ForeignError, match=f"base has {field} '{getattr(KEY, field)}', head 'other'"):
        compare(day(1), changed(day(2), **{field: "other"}), STATED)


def test_what_the_test_is_of_may_differ_but_never_hardware_or_requests() -> None:
    head = changed(day(2), engine="vllm 0.25.0")
    assert compare(day(1), head, STATED, across=["engine"]).verdict == "inconclusive"
    for field in ("hardware", "workload"):
        with pytest.raises(InputError, match="cannot be compared"):
            compare(day(1), head, STATED, across=[field])
    with pytest.raises(InputError, match="got 'colour'"):
        compare(day(1), head, STATED, across=["colour"])


def test_two_builds_measured_together_may_be_of_two_engines(interleaved: Make) -> None:
    base, head = interleaved()
    assert compare(base, changed(head, engine="vllm 0.25.0", config="other"), STATED).verdict == "pass"
    with pytest.raises(ForeignError, match="workload"):
        compare(base, changed(head, workload="other"), STATED)


def test_an_old_baseline_and_another_suite_are_refused() -> None:
    old = day(1, made_at="2026-01-01T00:00:00+00:00")
    with pytest.raises(ForeignError, match="305 days before head, at most 180"):
        compare(old, day(2), STATED)
    with pytest.raises(ForeignError, match="another version of suite"):
        compare(day(1), day(2, suite_digest="e"), STATED)


def test_one_session_against_another_proves_nothing() -> None:
    for level in (1.0, 1.5):
        found = compare(day(1), day(2, level), STATED)
        assert found.verdict == "inconclusive"
        assert "another session" in found.metrics[0].reason


HISTORY = [day(n, 1 + 0.004 * (n % 3)) for n in range(1, 11)]


def test_a_history_of_sessions_proves_what_lies_beyond_its_spread() -> None:
    def against(head: Result) -> str:
        return compare(HISTORY[-1], head, STATED, history=HISTORY).verdict

    assert against(day(20, 1.004)) == "pass"
    assert against(day(20, 1.2)) == "fail"


def test_a_machine_that_changed_is_not_a_build_that_changed() -> None:
    found = compare(HISTORY[-1], day(20, 1.2, probes=1.2e-3), STATED, history=HISTORY)
    assert found.verdict == "inconclusive"
    assert "the machine itself was 20.0% slower" in found.metrics[0].reason


def test_a_change_far_beyond_that_of_the_machine_is_the_builds() -> None:
    slow = compare(HISTORY[-1], day(20, 1.5, probes=1.06e-3), STATED, history=HISTORY)
    assert slow.verdict == "fail"
    assert "6.0% slower (probes)" in slow.metrics[0].reason
    near = compare(HISTORY[-1], day(20, 1.15, probes=1.06e-3), STATED, history=HISTORY)
    assert near.verdict == "inconclusive"
    fast = compare(HISTORY[-1], day(20, 0.6, probes=1.06e-3), STATED, history=HISTORY)
    assert fast.verdict == "pass"


def test_drift_inside_a_session_is_not_a_build_that_changed() -> None:
    head = day(20, 1.1)
    runs = [
        r.model_copy(update={"samples": {"wall": tuple(v * (1 + 0.01 * i) for v in r.samples["wall"])}})
        for i, r in enumerate(head.benches[0].runs)
    ]
    found = compare(HISTORY[-1], head.model_copy(update={"benches": (bench(runs),)}), STATED, history=HISTORY)
    assert found.verdict == "inconclusive"
    assert "drifted" in found.metrics[0].reason


def test_a_store_without_results_and_a_suite_it_does_not_hold_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no baselines"):
        listed(tmp_path)
    save(day(1), tmp_path)
    name = day(1).suite
    assert len(listed(tmp_path)) == len(listed(tmp_path, name)) == 1
    for wrong in (f"{name}s", "*"):
        with pytest.raises(InputError, match=f"unknown suite '.*'; .*: {name}; .* save one"):
            listed(tmp_path, wrong)


def test_a_store_keeps_promotes_and_finds(tmp_path: Path) -> None:
    paths = [save(r, tmp_path) for r in HISTORY]
    with pytest.raises(InputError, match="is promoted"):
        baseline_for(day(20), tmp_path, STATED, ())
    promote(paths[-2], tmp_path)
    base, history = baseline_for(day(20), tmp_path, STATED, ())
    assert base == HISTORY[-2]
    assert history == HISTORY[:-1]
    assert [s.promoted for s in listed(tmp_path)] == [False] * 8 + [True, False]
    with pytest.raises(ForeignError, match="no baseline fits: bench 'b': base has hardware"):
        baseline_for(changed(day(20), hardware="other"), tmp_path, STATED, ())
    with pytest.raises(InputError, match="there already"):
        save(HISTORY[0], tmp_path)


def test_history_before_a_change_says_nothing_of_the_level_after_it(tmp_path: Path) -> None:
    slower = [day(n, 2.0 if n > 6 else 1.0) for n in range(1, 16)]
    for r in slower:
        promote(save(r, tmp_path), tmp_path)
    _, history = baseline_for(day(20, 2.0), tmp_path, STATED, ())
    assert history == slower[6:]


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "another file": lambda text: "{}",
    "a sample in words": lambda text: text.replace('"wall":[', '"wall":["fast",', 1),
    "a negative sample": lambda text: text.replace('"wall":[', '"wall":[-1.0,', 1),
    "not a number": lambda text: text.replace('"wall":[', '"wall":[NaN,', 1),
    "from the future": lambda text: text.replace('"schema_version": 1', '"schema_version": 99'),
    "no time": lambda text: text.replace("2026-11-01T10:00:00+00:00", "yesterday"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_corrupt_baseline_is_an_error_never_a_pass(name: str, tmp_path: Path) -> None:
    path = save(HISTORY[0], tmp_path)
    promote(path, tmp_path)
    path.write_text(DAMAGE[name](path.read_text()))
    with pytest.raises(InputError):
        baseline_for(day(20), tmp_path, STATED, ())


def test_a_result_without_samples_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        save(result([bench([])]), tmp_path)


def test_a_change_is_found_with_the_commits_it_lies_between(tmp_path: Path) -> None:
    for n in range(1, 21):
        save(day(n, 1.1 if n >= 13 else 1.0), tmp_path)
    (series,) = histories(listed(tmp_path))
    (change,) = series.changes
    assert (change.after, change.up_to) == ("c012", "c013")
    assert change.effect == pytest.approx(0.1, abs=0.01)


def test_noise_has_no_changes_and_a_noisy_change_has_a_range() -> None:
    rng = np.random.default_rng(1)
    quiet = sum(bool(change_points(np.exp(rng.normal(0, 0.05, 30)).tolist(), least=0.01, seed=s)) for s in range(40))
    assert quiet <= 3
    values = np.exp(rng.normal(0, 0.05, 30)) * np.where(np.arange(30) >= 14, 1.15, 1.0)
    (found,) = change_points(values.tolist(), least=0.01)
    assert found.first <= 14 <= found.last
    assert found.change == pytest.approx(np.log(1.15), abs=0.05)


def test_two_changes_are_two() -> None:
    values = [1.0] * 8 + [1.2] * 8 + [1.1] * 8
    noisy = (np.asarray(values) * np.exp(np.random.default_rng(2).normal(0, 0.004, 24))).tolist()
    assert [c.at for c in change_points(noisy, least=0.01)] == [8, 16]


def spoilt(session: Result, which: slice) -> Result:
    """Some runs were spoilt by the client: their samples are ten times too long."""
    runs = list(session.benches[0].runs)
    runs[which] = [
        r.model_copy(update={"problem": "lag", "samples": {"wall": tuple(10 * v for v in r.samples["wall"])}})
        for r in runs[which]
    ]
    return session.model_copy(update={"benches": (session.benches[0].model_copy(update={"runs": tuple(runs)}),)})


def test_runs_that_the_client_spoilt_do_not_count_between_sessions() -> None:
    head = day(20, 1.004)
    without = head.model_copy(update={"benches": (bench(head.benches[0].runs[24:]),)})
    wanted = compare(HISTORY[-1], without, STATED, history=HISTORY).metrics[0]
    found = compare(HISTORY[-1], spoilt(head, slice(24)), STATED, history=HISTORY).metrics[0]
    assert (found.verdict, found.effect) == ("pass", wanted.effect)


@pytest.mark.parametrize("samples", [True, False], ids=["spoilt", "none"])
def test_a_session_that_measured_nothing_is_no_part_of_the_history(samples: bool) -> None:
    dead = spoilt(day(5), slice(None))
    if not samples:
        runs = [r.model_copy(update={"samples": {}}) for r in dead.benches[0].runs]
        dead = dead.model_copy(update={"benches": (bench(runs),)})
    head, plain = day(20, 1.2), [*HISTORY[:4], *HISTORY[5:]]
    wanted = compare(HISTORY[-1], head, STATED, history=plain).metrics[0]
    assert compare(HISTORY[-1], head, STATED, history=[*plain[:4], dead, *plain[4:]]).metrics[0] == wanted
    few = compare(HISTORY[-1], head, STATED, history=[dead, *HISTORY[-4:]])
    assert "4 of 5 sessions" in few.metrics[0].reason


def test_sessions_of_another_version_of_the_suite_are_no_history(tmp_path: Path) -> None:
    for r in [day(n, 3.0, suite_digest="old") for n in range(1, 7)]:
        save(r, tmp_path)
    new = [day(n) for n in range(7, 9)]
    for r in new:
        promote(save(r, tmp_path), tmp_path)
    assert baseline_for(day(20), tmp_path, STATED, ()) == (new[-1], new)


def test_another_version_of_the_suite_is_no_change_of_the_code(tmp_path: Path) -> None:
    for r in [*(day(n, 3.0, suite_digest="old") for n in range(1, 9)), *(day(n) for n in range(9, 17))]:
        save(r, tmp_path)
    found = histories(listed(tmp_path))
    assert [(len(s.values), s.changes) for s in found] == [(8, ()), (8, ())]
