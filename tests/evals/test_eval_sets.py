"""Bad lines of an eval set are named, with their number and the rule, before anything is asked."""

from __future__ import annotations

import re

import pytest

from fwopt.errors import InputError
from fwopt.evals.items import read_eval_set, read_eval_sets

GOOD = {"prompt": "2 + 3", "expected": 5, "grader": "numeric"}
TOOL = {"type": "function", "function": {"name": "add"}}
SET = "set.jsonl:2: "
BAD = {
    "no grader": ({"prompt": "x", "expected": "y"}, SET + "grader: missing; write one of exact, regex"),
    "an unknown grader": (GOOD | {"grader": "numerc"}, SET + "unknown grader 'numerc'; nearest: numeric"),
    "a grader without kind": (GOOD | {"grader": {}}, SET + "unknown grader 'None'"),
    "an unknown option": (GOOD | {"grader": {"kind": "exact", "case": 1}}, SET + "grader.case: unknown"),
    "a bad option": (GOOD | {"grader": {"kind": "numeric", "absolute": -1}}, SET + "grader.absolute: must be"),
    "a bad pattern": (GOOD | {"grader": "regex", "expected": "(a"}, SET + "expected: is no regular expression"),
    "a bad schema": (GOOD | {"grader": "json-schema", "expected": {"type": "x"}}, SET + "expected: is no JSON Schema"),
    "nothing expected": ({"prompt": "x", "grader": "exact"}, SET + "expected: exact needs a text"),
    "a number that is text": (GOOD | {"expected": "5"}, SET + "expected: numeric needs a finite number, got '5'"),
    "no prompt": ({"expected": 5, "grader": "numeric"}, SET + "a line has either a prompt or messages"),
    "an empty prompt": (GOOD | {"prompt": ""}, SET + "prompt: String should have at least 1 character"),
    "an unknown field": (GOOD | {"answer": 5}, SET + "answer: unknown"),
    "no JSON": ("{", SET + "is no JSON"),
    "no object": ("[1]", SET + "must be an object, for example"),
    "a tool that is not there": (
        GOOD | {"grader": "tool-call", "tools": [TOOL], "expected": {"name": "sub"}},
        SET + "expected: sub is none of the line's tools (add)",
    ),
    "an unknown rule": (
        GOOD | {"grader": "tool-call", "tools": [TOOL], "expected": {"name": "add", "arguments": {"a": {"$like": 1}}}},
        SET + "expected: unknown rule $like; known: $any",
    ),
    "a function that is not there": (
        GOOD | {"grader": {"kind": "custom", "function": "json:nothing"}},
        SET + "grader: json has no function nothing",
    ),
    "the same id again": (GOOD | {"id": "1"}, SET + "id: line 1 has the same, got '1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_one_clear_line(case, write):
    line, message = BAD[case]
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_eval_set(write([GOOD, line]))
    assert "\n" not in str(caught.value)


def test_an_empty_set_says_what_a_line_is(write):
    with pytest.raises(InputError, match=r'holds no item; a line is for example \{"prompt"'):
        read_eval_set(write([""]))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read"):
        read_eval_set(tmp_path / "none.jsonl")


def test_sets_of_the_same_name_would_mix(write, tmp_path):
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="two eval sets are called 'set'"):
        read_eval_sets([write([GOOD]), write([GOOD], "other/set.jsonl")])


def test_a_grader_beside_the_set_is_found(write, tmp_path):
    (tmp_path / "beside_the_set.py").write_text("def check(answer, expected): return True\n")
    item = GOOD | {"grader": {"kind": "custom", "function": "beside_the_set:check"}}
    assert read_eval_set(write([item])).items[0].grader.kind == "custom"


def test_a_draw_is_the_same_for_the_same_seed(write):
    whole = read_eval_set(write([GOOD | {"id": f"i{i}"} for i in range(50)]))
    first, again, other = whole.drawn(10, 1), whole.drawn(10, 1), whole.drawn(10, 2)
    assert [item.id for item in first.items] == [item.id for item in again.items]
    assert first.digest != other.digest
    assert len(first.items) == 10
    assert whole.drawn(None, 1) is whole
