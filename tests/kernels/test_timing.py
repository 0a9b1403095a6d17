"""Measuring variants in a process that they may crash, hang or leave useless."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fwopt_kernels.apart import Child, Fault, ask_all
from fwopt_kernels.contract import Variant, variant
from fwopt_kernels.elsewhere import Elsewhere
from fwopt_kernels.registry import OPERATORS
from fwopt_kernels.timing import Question, Timing, bench, measure, time_calls

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

FINE, CRASHES, HANGS, FAILS, ERRS = (variant(4, 1, WAY=way) for way in range(5))


def question(chosen: Variant | None) -> Question:
    return Question("planted:DOUBLING", "fp32", (("rows", 1000),), chosen, "cpu", effort_s=0.01)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child[Question, Timing]]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    one = bench(timeout_s=3)
    yield one
    one.close()


def test_what_a_variant_does_wrong_costs_one_line_each_and_the_next_is_measured(
    child: Child[Question, Timing],
) -> None:
    said = {}
    for chosen in (FINE, CRASHES, FINE, HANGS, FAILS, ERRS, FINE, None):
        answer = child.ask(question(chosen))
        if chosen in (FINE, None):
            assert isinstance(answer, Timing), answer
            assert 0 < answer.p20_s <= answer.p50_s <= answer.p80_s
            assert answer.samples >= 5
        else:
            assert isinstance(answer, Fault)
            assert "\n" not in answer.reason
            said[chosen] = answer.reason
    assert said[CRASHES] == "the process died of SIGSEGV"
    assert said[HANGS] == "no answer within 3 s"
    assert said[FAILS] == "RuntimeError: out of resources: shared memory"
    assert said[ERRS].startswith("WrongResultError: out: 1,000 of 1,000 values off")


def test_all_questions_are_answered_whoever_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    asked = [question(chosen) for chosen in (CRASHES, FINE, CRASHES, ERRS, FINE)]
    answers = list(ask_all(measure, asked, workers=2, timeout_s=30))
    assert sorted(repr(q) for q, _ in answers) == sorted(map(repr, asked))
    assert [isinstance(a, Timing) for q, a in answers if q.variant == FINE] == [True, True]
    assert all(isinstance(a, Fault) for q, a in answers if q.variant != FINE)


def test_a_child_under_another_python_has_the_packages_named_and_dies_like_any_other() -> None:
    planted = (("PYTHONPATH", str(Path(__file__).parent)),)  # besides `fwopt_kernels`, which is not on that path
    child = bench(timeout_s=30, elsewhere=Elsewhere(sys.executable, environment=planted))
    try:
        answers = [child.ask(question(chosen)) for chosen in (FINE, CRASHES, FINE, ERRS)]
    finally:
        child.close()
    assert isinstance(answers[0], Timing), answers[0]
    assert isinstance(answers[2], Timing)
    assert answers[1] == Fault("the process died of SIGSEGV")
    assert isinstance(answers[3], Fault)
    assert answers[3].reason.startswith("WrongResultError: out: 1,000 of 1,000 values off")


def test_real_operators_on_a_processor() -> None:
    """The torch fallback of each, through the same path as a GPU's variants."""
    shapes = {
        "rms_norm": {"rows": 4, "columns": 256},
        "silu_mul": {"rows": 4, "columns": 256},
        "rope_cache": {
            "tokens": 4, "heads": 4, "kv_heads": 2, "head_dim": 64, "rotary_dim": 64, "block_size": 16,
        },
    }  # fmt: skip
    for name, shape in shapes.items():
        timing = measure(Question(OPERATORS[name], "bf16", tuple(shape.items()), None, "cpu", effort_s=0.0))
        assert timing.p50_s > 0
        assert timing.copies > 1


def test_copies_rotate() -> None:
    seen: list[int] = []
    time_calls([lambda: seen.append(0), lambda: seen.append(1)], "cpu", 0.0)
    assert seen == [0, 1] * (len(seen) // 2)
    assert len(seen) >= 2 * 6
