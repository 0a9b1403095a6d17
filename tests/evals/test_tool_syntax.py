"""Tool calls as servers parse them and as models write them."""

from __future__ import annotations

import pytest

from fwopt.evals.answers import answer_of
from fwopt.evals.tool_syntax import calls_in
from fwopt.spec.evals import Call

ROME = Call(name="weather", arguments={"city": "Rome"})
OSLO = Call(name="weather", arguments={"city": "Oslo"})
LLAMA = '{"name": "weather", "parameters": {"city": "Rome"}}'
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (HERMES, (ROME,)),
        (f"I look it up.\n{HERMES}\n" + HERMES.replace("Rome", "Oslo"), (ROME, OSLO)),
        (HERMES.removesuffix("</tool_call>"), (ROME,)),
        ("<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>", (ROME,)),
        ("<function=add><parameter=a>1</parameter><parameter=b>[2]</parameter></function>",
         (Call(name="add", arguments={"a": 1, "b": [2]}),)),
        (LLAMA, (ROME,)),
        ('<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}<|eom_id|>', (ROME,)),
        (f"{LLAMA}; {LLAMA.replace('Rome', 'Oslo')}", (ROME, OSLO)),
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]', (ROME,)),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Rome"}', (ROME,)),
        ('<tool_call>{"name": "weather", "arguments": {"city": </tool_call>', (Call(name="weather", arguments=None),)),
        ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>', (ROME,)),
        ("The weather in Rome is fine.", ()),
        ('{"city": "Rome"}', ()),
        ('{"name": "Rome"}', ()),
        ('Here: {"name": "weather", "parameters": {}}', ()),
        ("", ()),
    ],
)  # fmt: skip
def test_calls_in_text(text, calls):
    assert calls_in(text) == calls


def _answer(**message):
    return answer_of({"choices": [{"message": {"role": "assistant"} | message, "finish_reason": "stop"}]})


def test_what_the_server_parsed_comes_first():
    entries = [
        {"type": "function", "function": {"name": "weather", "arguments": text}}
        for text in ('{"city": "Rome"}', "{", "[]")
    ]
    found = _answer(content=None, tool_calls=entries)
    broken = Call(name="weather", arguments=None)
    assert found.tool_calls == (ROME, broken, broken)
    assert found.text == ""


def test_text_is_read_where_the_server_parsed_nothing():
    assert _answer(content=HERMES, tool_calls=[]).tool_calls == (ROME,)


def test_a_thought_is_no_part_of_the_answer():
    assert _answer(content="<think>\nIs it 3?\n</think>\n\n5").text == "5"


@pytest.mark.parametrize(
    "response", [{}, {"choices": []}, {"choices": [{}]}, [], {"choices": [{"message": {"tool_calls": [{}]}}]}]
)
def test_what_is_no_answer_is_said_to_be_none(response):
    with pytest.raises(ValueError, match="no OpenAI-compatible answer"):
        answer_of(response)
