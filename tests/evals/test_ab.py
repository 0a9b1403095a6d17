"""`fwopt ab` on servers whose speed and answers are known, and its verdicts on drawn numbers."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fwopt.ab.latency import Block, latencies, sign_flips
from fwopt.ab.order import labels, rounds
from fwopt.ab.verdict import holm, judge_all
from fwopt.cli.ab import ab
from fwopt.errors import InputError
from fwopt.evals.items import EvalItem, EvalSet
from fwopt.evals.statistics import paired
from fwopt.live import Replay
from fwopt.metrics.records import FINISHED, GAP_EDGES_S, UNREACHABLE, Records
from fwopt.spec.ab import AbResult, AbSet

from .answering import answering

APP = typer.Typer()
APP.command()(ab)


def run(*arguments):
    result = CliRunner(env={"COLUMNS": "120"}).invoke(APP, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def records(e2e_s, ttft_s=None, tokens=11, status=None):
    n = len(e2e_s)
    e2e, start = np.asarray(e2e_s, float), np.zeros(n)
    first = e2e * 0.2 if ttft_s is None else np.asarray(ttft_s, float)
    state = np.full(n, FINISHED, np.int8) if status is None else np.asarray(status, np.int8)
    return Records(
        arrival_s=start, scheduled_s=start, first_token_s=first, finish_s=e2e, prompt_tokens=np.full(n, 9, np.int32),
        output_tokens=np.full(n, tokens, np.int32), cached_tokens=np.zeros(n, np.int32), status=state,
        replica=np.zeros(n, np.int16), preemptions=np.zeros(n, np.int32), itl_edges_s=GAP_EDGES_S,
        itl_counts=np.zeros(len(GAP_EDGES_S) - 1),
    )  # fmt: skip


def drawn(generator, *, slower, blocks=12, size=20):
    """Requests that differ tenfold, servers whose blocks drift by 2 % and whose requests jitter by 5 %."""
    found = []
    for _ in range(blocks):
        base = generator.lognormal(0, 0.8, size)
        a, b = (base * np.exp(generator.normal(0, 0.02) + generator.normal(0, 0.05, size)) for _ in "ab")
        found.append(Block(records(a), records(b * (1 + slower))))
    return found


def latency_verdict(generator, slower):
    figures = latencies(drawn(generator, slower=slower), slowdown=0.05, seed=0)
    return judge_all(figures, [], None, []).verdict


def test_servers_that_are_alike_are_not_flagged():
    generator = np.random.default_rng(1)
    verdicts = [latency_verdict(generator, 0.0) for _ in range(200)]
    assert verdicts.count("worse") <= 10
    assert verdicts.count("holds") >= 150, "and the comparison is fine enough to say so"


def test_a_planted_slowdown_is_caught():
    generator = np.random.default_rng(2)
    verdicts = [latency_verdict(generator, 0.10) for _ in range(200)]
    assert verdicts.count("holds") == 0
    assert verdicts.count("worse") >= 190


def test_latency_and_quality_together_flag_no_harmless_change_too_often():
    """Five checks at once: without a correction false alarms would add up."""
    generator, flagged = np.random.default_rng(3), 0
    for _ in range(200):
        sets = []
        for name in ("one", "two"):
            before, chance = (generator.random(300) < 0.7).astype(float), generator.random(300)
            after = np.where(chance < 0.03, 0.0, np.where(chance > 0.93, 1.0, before))
            compared = paired(before, after, margin=0.01)
            sets.append(AbSet(set=name, digest="d", paired=compared, a_errors=0, b_errors=0))
        figures = latencies(drawn(generator, slower=0.0), slowdown=0.05, seed=0)
        flagged += judge_all(figures, sets, None, []).verdict == "worse"
    assert flagged <= 10


def test_slow_requests_are_compared_with_themselves():
    """B is 20 % slower on every request; unpaired, their spread would hide it."""
    generator = np.random.default_rng(4)
    ttft, tpot, e2e = latencies(drawn(generator, slower=0.2), slowdown=0.05, seed=0)
    for figure in (ttft, tpot, e2e):
        assert figure.verdict == "slower"
        assert figure.ratio.low < 1.2 < figure.ratio.high or abs(figure.ratio.value - 1.2) < 0.03
    assert e2e.requests == 240


def test_requests_that_fail_on_b_alone_speak_against_it():
    from fwopt.ab.latency import failures

    good = [records([1.0] * 20)] * 8
    bad = [records([1.0] * 20, status=[UNREACHABLE] * 2 + [FINISHED] * 18)] * 8
    found = failures([Block(a, b) for a, b in zip(good, bad, strict=True)])
    assert (found.a, found.b) == (0, 16)
    judged = judge_all([], [], found, [])
    assert judged.verdict == "worse"
    assert judged.reasons == ("16 of 160 requests failed on B, 0 on A",)
    assert judge_all([], [], failures([Block(b, a) for a, b in zip(good, bad, strict=True)]), []).verdict == "holds"


def test_latencies_of_a_client_that_could_not_keep_up_decide_nothing():
    figures = latencies(drawn(np.random.default_rng(5), slower=0.5), slowdown=0.05, seed=0)
    judged = judge_all(figures, [], None, ["block 1, X: client lag", "block 1, Y: client lag"])
    assert judged.verdict == "undecided"
    assert judged.reasons == ("latencies cannot be believed: block 1, X: client lag; and 1 more problems",)
    assert {figure.verdict for figure in judged.latency} == {"undecided"}


def test_holm_holds_the_smallest_to_the_strictest():
    assert holm([0.04, 0.01, 0.03]) == [False, True, False]
    assert holm([0.02, 0.01, 0.04]) == [True, True, True]
    assert holm([]) == []


def test_signs_of_few_blocks_are_all_flipped():
    assert sign_flips(np.array([1.0] * 8), 0) == 2 / 2**8
    assert sign_flips(np.array([1.0, -1.0] * 4), 0) == 1
    assert sign_flips(np.array([1.0] * 40), 0) < 1e-3


def test_the_order_is_drawn_balanced_and_the_same_for_a_seed():
    items = tuple(EvalItem(id=f"i{i}", prompt="x", expected="y", grader="exact") for i in range(41))
    plan = rounds(12, [EvalSet("s", items)], 7)
    assert plan == rounds(12, [EvalSet("s", items)], 7)
    assert plan != rounds(12, [EvalSet("s", items)], 8)
    assert sum(part.order[0] == "a" for part in plan) == 6
    asked = [(item.name, order) for part in plan for _, item, order in part.items]
    assert sorted(name for name, _ in asked) == sorted(item.name for item in items)
    assert sum(order[0] == "a" for _, order in asked) in (20, 21)
    assert {labels(seed)["a"] for seed in range(20)} == {"X", "Y"}


@pytest.fixture
def inputs(tmp_path):
    items, trace = tmp_path / "sums.jsonl", tmp_path / "trace.jsonl"
    lines = [{"prompt": f"{i} + 1", "expected": i + 1, "grader": "numeric"} for i in range(100)]
    items.write_text("".join(json.dumps(line) + "\n" for line in lines))
    requests = [{"arrival_s": i * 0.01, "prompt_tokens": 20, "output_tokens": 4} for i in range(32)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in requests))
    return items, trace


def adds(asked, body):
    return f"{int(asked.split()[0]) + 1}"


def test_both_at_once_end_in_one_verdict_and_its_files(inputs, tmp_path):
    items, trace = inputs
    with answering(adds, 0.001) as a, answering(lambda asked, body: "no idea", 0.02) as b:
        out = tmp_path / "ab"
        done = run(a.url, b.url, "--evals", items, "--workload", trace, "--requests", 32, "--blocks", 8,
                   "--closed", 2, "--limit", 20, "--out", out)  # fmt: skip
        asked = [body for body in a.seen + b.seen if not body.get("stream")]
        streamed = [body for body in a.seen if body.get("stream")]
    assert done.exit_code == 1
    assert done.stdout.startswith("B is worse than A (")
    found = AbResult.model_validate_json((out / "ab.json").read_text())
    assert found.verdict == "worse"
    assert "worse: sums" in found.reasons
    assert found.a.url == a.url
    assert len(asked) == 40
    assert len(streamed) == 32 + 4, "each request once, and one block to warm up"
    assert len({str(body["prompt"]) for body in streamed}) == 36, "no prompt is sent twice: caches stay cold"
    rows = [json.loads(line) for line in gzip.decompress((out / "answers.jsonl.gz").read_bytes()).splitlines()]
    by_label = {row["label"]: row["answer"]["score"] for row in rows}
    assert {found.labels[label]: score for label, score in by_label.items()} == {"a": 1, "b": 0}
    assert a.url not in str(rows), "blind: nothing in the answers tells who gave them"
    assert (out / "ab.md").read_text().startswith("# B is worse than A")
    replays = sorted((out / "replays").iterdir())
    assert len(replays) == 16
    assert Replay.load(replays[0]).header.requests == 4


def test_the_same_server_twice_is_not_worse_in_quality(inputs, tmp_path):
    with answering(adds) as server:
        done = run(server.url, server.url, "--evals", inputs[0], "--margin", "4pp", "--out", tmp_path / "ab", "--json")
    assert done.exit_code == 0
    found = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert (found["verdict"], found["latency"], found["failures"]) == ("holds", [], None)


REFUSED = {
    "nothing to compare on": ((), "compares on something: add --evals FILE, --workload TRACE, or both"),
    "fewer requests than blocks": (("--workload", "TRACE", "--requests", "8"), "8 are fewer than --blocks 12"),
    "a slowdown without unit": (("--evals", "ITEMS", "--max-slowdown", "5"), "--max-slowdown '5': write a share"),
    "a folder that is there": (("--evals", "ITEMS", "--out", "TMP"), "exists; choose another --out"),
    "a trace that is too short": (("--workload", "TRACE", "--blocks", "40"), "has 32 requests, fewer than --blocks 40"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused(case, inputs, tmp_path):
    arguments, message = REFUSED[case]
    names = {"ITEMS": inputs[0], "TRACE": inputs[1], "TMP": tmp_path}
    with answering(adds) as server, pytest.raises(InputError, match=message):
        run(server.url, server.url, *(names.get(a, a) for a in arguments))
