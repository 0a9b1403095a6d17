"""What other programs read, and what a person reads when a metric fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lxml import etree

from fwopt.engine.records import StepRecord
from fwopt.regress.compare import compare
from fwopt.regress.explain import explain
from fwopt.regress.outputs.exports import bencher_metric_format, github_action_benchmark
from fwopt.regress.outputs.junit import junit
from fwopt.regress.outputs.markdown import markdown
from fwopt.regress.outputs.trend import page
from fwopt.regress.samplers.steps import sum_parts
from fwopt.spec.bench import Rules
from fwopt.spec.comparison import Change, Comparison, Series
from fwopt.spec.step import StepShape

from .conftest import Make, bench, result, run

STATED = Rules(min_effect=0.03)


@pytest.fixture(scope="module")
def junit_schema() -> etree.XMLSchema:
    return etree.XMLSchema(etree.parse(Path(__file__).parent / "data" / "junit-4.xsd"))


@pytest.fixture
def failed(interleaved: Make) -> Comparison:
    """One metric that fails, with parts; one that passes; one without samples and with nasty last words."""
    (slow_base, slow_head), (same_base, same_head) = interleaved(slower=0.2), interleaved(seed=3)
    parts = ({"operator:decode": 0.8, "cpu gap:schedule": 0.1}, {"operator:decode": 0.99, "cpu gap:schedule": 0.11})
    slow = [
        bench([r.model_copy(update={"parts": p}) for r in arm.benches[0].runs], name="slow")
        for arm, p in zip((slow_base, slow_head), parts, strict=True)
    ]
    same = [arm.benches[0].model_copy(update={"name": "same"}) for arm in (same_base, same_head)]
    dead = bench([run(0, 0, [], problem="exit status 1: \x1b[31m<boom> & | \x00")], name="dead")
    alive = bench([run(0, 1, [1.0])], name="dead")
    base, head = result([slow[0], same[0], alive], "base"), result([slow[1], same[1], dead])
    return compare(base, head, STATED)


def test_junit_has_a_case_a_metric_and_is_valid(failed: Comparison, junit_schema: etree.XMLSchema) -> None:
    root = etree.fromstring(junit(failed).encode())
    junit_schema.assertValid(root)
    cases = {case.get("classname"): [child.tag for child in case] for case in root.iter("testcase")}
    assert cases["nightly.slow"][0] == cases["nightly.dead"][0] == "failure"
    assert cases["nightly.same"] == ["system-out"]
    suite = root.find("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "2", "0")
    assert "operator:decode" in root.find(".//failure").text


def test_junit_of_nothing_is_a_failure(junit_schema: etree.XMLSchema) -> None:
    root = etree.fromstring(junit(compare(result([], "base"), result([]), STATED)).encode())
    junit_schema.assertValid(root)
    assert len(root.findall(".//failure")) == 1


def test_an_inconclusive_metric_is_a_skipped_test(interleaved: Make, junit_schema: etree.XMLSchema) -> None:
    root = etree.fromstring(junit(compare(*interleaved(blocks=3), STATED)).encode())
    junit_schema.assertValid(root)
    assert "3 blocks of both arms, 6 needed" in root.find(".//skipped").text


def test_the_summary_draws_every_interval_and_names_what_moved(failed: Comparison) -> None:
    text = markdown(failed)
    assert text.startswith("## ❌ fwopt bench: fail: nightly")
    assert "operator:decode +190 ms (95% of the change)" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1
    assert "\x1b" not in junit(failed)


def test_exports_hold_heads_values(failed: Comparison) -> None:
    slow = next(m for m in failed.metrics if m.bench == "slow")
    rows = {row["name"]: row for row in json.loads(github_action_benchmark(failed))}
    assert rows["nightly/slow/wall:p50"]["value"] == slow.head
    assert "nightly/dead/wall:p50" not in rows
    measures = json.loads(bencher_metric_format(failed))["nightly/slow"]["wall-p50"]
    assert measures["lower_value"] <= measures["value"] <= measures["upper_value"]


def test_the_trend_page_needs_no_network_and_names_the_change() -> None:
    change = Change(after="c1", up_to="c2<script>", commits=("c2",), effect=0.1, p=0.001)
    series = Series(
        suite="nightly", key="k", bench="b", metric="wall:p50", unit="s", better="lower", commits=("c1", "c2<script>"),
        made_at=("a", "b"), values=(1.0, 1.1), promoted=(True, False), changes=(change,),
    )  # fmt: skip
    text = page([series])
    assert "+10.0%" in text
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org", "")


def step(at: float, *, forward: float, schedule: float, prompt: int, waiting: int = 0) -> StepRecord:
    chunks = ((0, prompt),) if prompt else ()
    return StepRecord(
        start_s=at, schedule_s=schedule, prepare_s=0.001, forward_s=forward, sample_s=0.001, output_s=0.001,
        device_s=None, shape=StepShape(decodes=4, context_tokens=400, chunks=chunks, completed=len(chunks)),
        captured=None, running=4, waiting=waiting, blocks_used=10, preemptions=0,
    )  # fmt: skip


def steps(**what: float) -> dict[str, float]:
    found = []
    for i in range(20):
        at = i * 0.2
        found.append(step(at, **{"forward": 0.1, "schedule": 0.002, "prompt": 100 if i % 4 == 0 else 0} | what))  # type: ignore[arg-type]
    return sum_parts(found)


PLANTED = {
    "operator": {"forward": 0.12},
    "cpu gap": {"schedule": 0.03},
    "queueing": {"waiting": 5},
}


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_cause_is_the_first_that_is_named(kind: str) -> None:
    parts = explain([run(0, 0, [1.0], parts=steps())], [run(0, 1, [1.0], parts=steps(**PLANTED[kind]))])
    assert parts[0].kind == kind
    assert parts[0].share > 0.5


def test_a_lost_prefix_cache_is_told_from_slow_operators() -> None:
    before = {"operator:prefill": 1.0, "operator:decode": 3.0, "tokens:prefill": 100.0}
    slow = before | {"operator:prefill": 2.0}
    for after, kind in ((slow | {"tokens:prefill": 200.0}, "cache"), (slow, "operator")):
        parts = explain([run(0, 0, [1.0], parts=before)], [run(0, 1, [1.0], parts=after)])
        assert [p.kind for p in parts] == [kind]
