"""Graders: what all of them keep, and what each of them tells apart."""

from __future__ import annotations

from typing import Any

import pytest

from fwopt.errors import InputError
from fwopt.evals.answers import Answer
from fwopt.evals.graders import GRADERS
from fwopt.spec.evals import Call

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}
ADD = {"type": "function", "function": {"name": "add", "parameters": {}}}
TOOLS = [WEATHER, ADD]


def call(name: str, **arguments: Any) -> Call:
    return Call(name=name, arguments=arguments)


def is_right(kind: str, answer: str | list[Call], expected: Any, **options: Any) -> bool:
    grader = GRADERS[kind](**options)
    grader.check(expected, TOOLS)
    given = Answer(answer) if isinstance(answer, str) else Answer("", tuple(answer))
    return grader.grade(given, expected).score == 1


RIGHT = {
    "exact": ({}, "Paris", Answer("Paris")),
    "regex": ({}, "Par", Answer("Paris")),
    "numeric": ({}, 5, Answer("It is 5.")),
    "json-schema": ({}, {"type": "object"}, Answer("{}")),
    "tool-call": ({}, {"name": "add", "arguments": {"a": 1}}, Answer("", (call("add", a=1),))),
    "custom": ({"function": "operator:is_not"}, None, Answer("x")),
}
NONSENSE = {
    "exact": 5,
    "regex": "(",
    "numeric": "five",
    "json-schema": {"type": "nothing"},
    "tool-call": {"name": "no_such_tool"},
}
ODD = [
    Answer(""),
    Answer("\x00\ud7ff {[\"'"),
    Answer("1e999"),
    Answer("9" * 5000),
    Answer("", (Call(name="add", arguments=None),)),
]


OWN = sorted(GRADERS.keys() - {"custom"})
"""Those that fwopt decides; what a function of the user's own accepts is the user's."""


@pytest.mark.parametrize("kind", sorted(GRADERS))
def test_a_right_answer_is_right_every_time(kind):
    options, expected, answer = RIGHT[kind]
    grader = GRADERS[kind](**options)
    grader.check(expected, TOOLS)
    assert grader.kind == kind
    assert [grader.grade(answer, expected).score for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("answer", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("kind", OWN)
def test_odd_answers_are_wrong_with_a_reason(kind, answer):
    grade = GRADERS[kind](**RIGHT[kind][0]).grade(answer, RIGHT[kind][1])
    assert grade.score == 0
    assert grade.why
    assert len(grade.why) <= 160


@pytest.mark.parametrize("kind", OWN)
def test_an_expectation_that_makes_no_sense_is_refused(kind):
    with pytest.raises(ValueError, match=r"."):
        GRADERS[kind](**RIGHT[kind][0]).check(NONSENSE[kind], TOOLS)


def test_exact_forgives_space_and_case_only_where_told():
    assert is_right("exact", " Paris\n", "Paris")
    assert is_right("exact", "b", ["a", "b"])
    assert not is_right("exact", "paris", "Paris")
    assert is_right("exact", "paris", "Paris", ignore_case=True)
    assert not is_right("exact", "Paris.", "Paris")


def test_regex_finds_a_part_or_the_whole():
    assert is_right("regex", "It is Paris.", r"\bParis\b")
    assert not is_right("regex", "It is Paris.", "Paris", whole=True)


@pytest.mark.parametrize(
    ("text", "expected", "options", "right"),
    [
        ("2 + 3 = 5", 5, {}, True),
        ("5, because 2 + 3", 5, {}, False),
        ("5, because 2 + 3", 5, {"pick": "first"}, True),
        ("2 and 5", 5, {"pick": "only"}, False),
        ("It costs $1,234.50.", 1234.5, {}, True),
        ("about 3.14", 3.14159, {}, False),
        ("about 3.14", 3.14159, {"absolute": 0.01}, True),
        ("about 3.14", 3.14159, {"relative": 0.001}, True),
        ("−7", -7, {}, True),
        ("version x5", 5, {}, False),
        ("1e3", 1000, {}, True),
    ],
)
def test_numeric(text, expected, options, right):
    assert is_right("numeric", text, expected, **options) is right


def test_json_schema_names_what_does_not_fit():
    schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
    assert is_right("json-schema", '```json\n{"age": 3}\n```', schema)
    assert not is_right("json-schema", '```json\n{"age": 3}\n```', schema, fenced=False)
    assert GRADERS["json-schema"]().grade(Answer('{"age": "x"}'), schema).why == "age: 'x' is not of type 'integer'"


ONE = {"name": "weather", "arguments": {"city": "Rome"}}
TWO = [{"name": "add", "arguments": {"a": 1, "b": 2}}, {"name": "add", "arguments": {"a": 3, "b": 4}}]


@pytest.mark.parametrize(
    ("calls", "expected", "options", "right"),
    [
        ([call("weather", city="Rome")], ONE, {}, True),
        ([call("weather", city="Oslo")], ONE, {}, False),
        ([call("weather", city="Rome", unit="C")], ONE, {}, False),
        ([call("weather", city="Rome", unit="C")], ONE, {"arguments": "given"}, True),
        ([call("weather")], ONE, {"arguments": "given"}, False),
        ([call("weather", town="x")], ONE, {"arguments": "ignore"}, True),
        ([call("add")], ONE, {"arguments": "ignore"}, False),
        ([], ONE, {}, False),
        ([], [], {}, True),
        ([call("weather", city="Rome")], [], {}, False),
        ([call("add", a=1.0, b=2), call("add", a=3, b=4)], TWO, {}, True),
        ([call("add", a=3, b=4), call("add", a=1, b=2)], TWO, {}, True),
        ([call("add", a=3, b=4), call("add", a=1, b=2)], TWO, {"ordered": True}, False),
        ([call("add", a=1, b=2)], TWO, {}, False),
        ([call("add", a=1, b=2)] * 2, TWO, {}, False),
        ([call("add", a=True, b=2), call("add", a=3, b=4)], TWO, {}, False),
        ([Call(name="weather", arguments=None)], ONE, {}, False),
    ],
)
def test_tool_calls(calls, expected, options, right):
    assert is_right("tool-call", calls, expected, **options) is right


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"$regex": "^Ro"}, "Rome", "Oslo"),
        ({"$ignore_case": "rome"}, "ROME", "Oslo"),
        ({"$any": ["Rome", {"$regex": "^Vat"}]}, "Vatican", "Oslo"),
        ({"$near": [3.14, 0.01]}, 3.1415, "3.14"),
        ({"$set": ["a", "b"]}, ["b", "a"], ["a", "a"]),
        ({"$anything": True}, None, ...),
        ({"deep": [{"$regex": "x"}]}, {"deep": ["axb"]}, {"deep": []}),
    ],
)
def test_rules_stand_in_for_arguments(rule, good, bad):
    expected = {"name": "weather", "arguments": {"city": rule}}
    assert is_right("tool-call", [call("weather", city=good)], expected)
    assert not is_right("tool-call", [call("weather", **({} if bad is ... else {"city": bad}))], expected)


def test_several_calls_find_the_pairing_that_fits_them_all():
    """The first call fits both expectations, the second only one: taking them in turn would fail."""
    wide, narrow = {"$regex": "."}, "Rome"
    expected = [{"name": "weather", "arguments": {"city": city}} for city in (wide, narrow)]
    assert is_right("tool-call", [call("weather", city="Rome"), call("weather", city="Oslo")], expected)


def test_a_function_of_the_users_own_decides(tmp_path, monkeypatch):
    (tmp_path / "own_grader.py").write_text(
        "def long(answer, expected): return len(answer['text']) >= expected\n"
        "def half(answer, expected): return 0.5\n"
        "def broken(answer, expected): return answer['nothing']\n"
        "def wild(answer, expected): return 7\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def grade(name):
        return GRADERS["custom"](function=f"own_grader:{name}").grade(Answer("four"), 3)

    assert (grade("long").score, grade("half").score) == (1, 0.5)
    with pytest.raises(InputError, match="own_grader:broken fails: KeyError"):
        grade("broken")
    with pytest.raises(InputError, match=r"must return a bool or a score from 0 to 1, got 7"):
        grade("wild")
