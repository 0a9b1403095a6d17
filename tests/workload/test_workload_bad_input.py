"""Bad traces: one clear line that names file, line, field, rule and value; nothing dropped in silence."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.errors import FwoptError, InputError, TraceError
from fwopt.workload import read
from fwopt.workload.registry import FORMATS

GOOD = '{"arrival_s": 1.0, "prompt_tokens": 5, "output_tokens": 2}\n'
HEADER = '{"schema_version": 1, "block_tokens": 16}\n'
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n"


def line(**fields: object) -> str:
    return json.dumps({"arrival_s": 1.0, "prompt_tokens": 5, "output_tokens": 2} | fields) + "\n"


BAD = {
    # name: (content, line in the message, words in the message)
    "empty": ("", None, "at least one request"),
    "only a header": (HEADER, None, "at least one request"),
    "only a csv header": ("TIMESTAMP,ContextTokens,GeneratedTokens\n", None, "at least one request"),
    "negative tokens": (GOOD + line(prompt_tokens=-3), 2, "prompt_tokens: must be a whole number from 1"),
    "zero output": (GOOD + line(output_tokens=0), 2, "refused or failed"),
    "bool tokens": (GOOD + line(prompt_tokens=True), 2, "got True"),
    "float tokens": (GOOD + line(prompt_tokens=5.0), 2, "got 5.0"),
    "huge tokens": (GOOD + line(prompt_tokens=2**31), 2, "2147483647"),
    "text tokens": (GOOD + line(prompt_tokens="5"), 2, "prompt_tokens"),
    "missing field": (GOOD + '{"arrival_s": 2.0, "prompt_tokens": 5}\n', 2, "output_tokens"),
    "NaN arrival": (GOOD + line(arrival_s=float("nan")), 2, "arrival_s: must be a finite number, got nan"),
    "NaN tokens": (GOOD + line(prompt_tokens=float("nan")), 2, "prompt_tokens: must be a finite number"),
    "infinite arrival": (GOOD + line(arrival_s=float("inf")), 2, "arrival_s"),
    "negative arrival": (line(arrival_s=-1.0), 1, "not below zero"),
    "bool arrival": (line(arrival_s=True), 1, "must be a number"),
    "out of order": (GOOD + line(arrival_s=0.5), 2, "arrival_s: must not decrease"),
    "cut line": (GOOD + '{"arrival_s": 2.0, "prompt_to', 2, "must be one JSON object"),
    "not an object": (GOOD + "[1, 2]\n", 2, "must be one JSON object"),
    "unknown field": (GOOD + line(promt_tokens=4), 2, "did you mean prompt_tokens"),
    "limit below output": (line(max_tokens=1), 1, "at least the output tokens"),
    "blocks without size": (line(prefix_blocks=[1]), 1, "needs block_tokens"),
    "too many blocks": (HEADER + line(prefix_blocks=[1, 2]), 2, "at most one block"),
    "bool block": (HEADER + line(prefix_blocks=[True]), 2, "entry 0"),
    "negative block": (HEADER + line(prefix_blocks=[-1]), 2, "between 0 and"),
    "no hex block": (HEADER + line(prefix_blocks=["0x1f"]), 2, "hexadecimal"),
    "blocks no list": (HEADER + line(prefix_blocks={"a": 1}), 2, "must be a list"),
    "unknown parent": (line(parent_id="x"), 1, "id of an earlier request"),
    "repeated id": (line(id=1) + line(id=1), 2, "must be unique"),
    "bool session": (line(session_id=True), 1, "session_id"),
    "empty model": (line(model=""), 1, "model"),
    "negative tools": (line(tools=-1), 1, "tools"),
    "newer schema": ('{"schema_version": 2}\n' + GOOD, 1, "schema_version: must be 1"),
    "unknown header field": ('{"schema_version": 1, "unit": "s"}\n' + GOOD, 1, "no header field"),
    "unknown text": ("hello\nworld\n", 1, "must be one of fwopt, mooncake"),
    "an array": ('[{"messages": [], "usage": {}}, {"messages": []}]', 1, "JSON object a line; `jq -c '.[]'` makes"),
    "an array of many lines": ('[\n {\n "messages": []\n }\n]\n', 1, "got 'an array'"),
    "unknown csv": ("a,b,c\n1,2,3\n", 1, "CSV with a, b, c"),
    "azure without a column": ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.68,374\n", 1, "column 'GeneratedTokens'"),
    "azure short row": (AZURE + "2023-11-16 18:15:47.68,374\n", 3, "must have 3 columns"),
    "azure NaN": (AZURE + "2023-11-16 18:15:47.68,nan,3\n", 3, "ContextTokens: must be a whole number"),
    "azure negative": (AZURE + "2023-11-16 18:15:47.68,-4,3\n", 3, "ContextTokens"),
    "azure time": (AZURE + "yesterday,4,3\n", 3, "TIMESTAMP: must be a time like"),
    "azure day": (AZURE + "2023-11-31 18:15:47.68,4,3\n", 3, "TIMESTAMP"),
    "azure order": (AZURE + "2023-11-15 18:15:47.68,4,3\n", 3, "TIMESTAMP: must not decrease"),
    "servegen half token": ("arrival_s,input_tokens,output_tokens\n0.0,160.5,3\n", 2, "input_tokens"),
    "burstgpt failure": ("Timestamp,Model,Request tokens,Response tokens\n5,GPT-4,3,0\n", 2, "Response tokens"),
    "mooncake float time": (
        '{"timestamp": 1.5, "input_length": 5, "output_length": 1, "hash_ids": [1]}\n', 1, "timestamp: must be"),
    "openai without usage": ('{"messages": [], "created": 5}\n', 1, "usage: must hold prompt_tokens"),
    "openai without time": ('{"messages": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}\n', 1, "created"),
    "openai many answers": ('{"created": 1, "n": 3, "usage": {}}\n', 1, "n: must be 1"),
    "unprintable field": (line(**{"a\nb": 1}), 1, "'a\\nb': is no field"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_one_line_says_where_and_why(tmp_path: Path, name: str) -> None:
    content, at, words = BAD[name]
    file = tmp_path / "t.jsonl"
    file.write_text(content)
    forced = "mooncake" if name.startswith("mooncake") else None
    with pytest.raises(TraceError) as caught:
        read(file, format=forced)
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"{file}:{at}: " if at else f"{file}: ")
    assert "\n" not in message


def test_files_that_are_no_text(tmp_path: Path) -> None:
    cases = {
        "binary": (b"\x89PNG\r\n\x1a\n\0\0\0", "must be text"),
        "utf-16": (GOOD.encode("utf-16"), "must be UTF-8"),
        "latin-1": (GOOD.encode() + line(model="x").replace("x", "é").encode("latin-1"), ":2: encoding: must be UTF-8"),
        "cut gzip": (gzip.compress(GOOD.encode() * 500)[:-9], "whole gzip"),
        "cut zstd": (zstandard.ZstdCompressor().compress(GOOD.encode() * 500)[:-2], "whole zstd"),
        "empty gzip": (gzip.compress(b""), "at least one request"),
        "broken gzip": (gzip.compress(GOOD.encode())[:10] + b"garbage" * 20, "intact gzip"),
    }
    for name, (content, words) in cases.items():
        file = tmp_path / name
        file.write_bytes(content)
        for skip_bad in (False, True):
            if name == "latin-1" and skip_bad:
                continue
            with pytest.raises(TraceError, match=words):
                read(file, skip_bad=skip_bad)


def test_a_long_line_is_refused_not_swallowed(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(GOOD + line(model="m" * 10_000_000) + GOOD)
    with pytest.raises(TraceError, match=r":2: line: must be at most 8388608 bytes"):
        read(file)
    alone = tmp_path / "alone.jsonl"
    alone.write_text("x" * 10_000_000)
    with pytest.raises(TraceError, match=r":1: line: must be at most 8388608 bytes"):
        read(alone)
    found = read(file, skip_bad=True)
    assert (len(found.workload), found.skipped_count, found.skipped[0].line) == (2, 1, 2)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such trace"):
        read(tmp_path / "nothing.jsonl")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


def test_skip_bad_counts_by_rule_and_keeps_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(GOOD + line(prompt_tokens=-1) + line(prompt_tokens=0) + "{oops\n" + line(arrival_s=2.0))
    found = read(file, skip_bad=True)
    assert found.workload.arrival_s.tolist() == [0.0, 1.0]
    assert (found.lines, found.skipped_count) == (5, 3)
    assert list(found.skipped_by_rule.values()) == [2, 1]
    assert [error.line for error in found.skipped] == [2, 3, 4]


def test_skip_bad_never_returns_nothing(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(line(prompt_tokens=-1) * 3)
    with pytest.raises(TraceError, match="3 bad lines and no good one, first: "):
        read(file, skip_bad=True)


def test_a_bad_span_spoils_only_itself(tmp_path: Path) -> None:
    def span(tokens: int) -> dict[str, object]:
        values = {"gen_ai.usage.prompt_tokens": tokens, "gen_ai.usage.completion_tokens": 1}
        attributes = [{"key": key, "value": {"intValue": value}} for key, value in values.items()]
        return {"startTimeUnixNano": "5", "attributes": attributes}

    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span(4), span(-1), span(6)]}]}]}))
    found = read(file, skip_bad=True)
    assert found.workload.prompt_tokens.tolist() == [4, 6]
    assert found.skipped_count == 1


def test_messages_do_not_quote_prompts(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    lines = [
        '{"messages": [{"content": "my secret"}], "created": 1}',
        '{"messages": ["my secret"',
        '{"messages": "secret"}',
    ]
    for text in lines:
        file.write_text(text + "\n")
        with pytest.raises(TraceError) as caught:
            read(file, format="openai")
        assert "secret" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**66) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    "schema_version arrival_s prompt_tokens output_tokens prefix_blocks session_id parent_id id model tools max_tokens "
    "timestamp input_length output_length hash_ids request response body messages prompt usage created n user choices "
    "resourceSpans scopeSpans spans attributes".split()
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(FIELDS, VALUES, max_size=6), min_size=1, max_size=4), st.sampled_from(sorted(FORMATS)))
def test_any_json_is_read_or_refused_never_a_crash(tmp_path_factory, rows, format) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for skip_bad in (False, True):
        with contextlib.suppress(FwoptError):
            read(file, format=format, skip_bad=skip_bad)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from([None, *sorted(FORMATS)]))
def test_any_bytes_are_refused_never_a_crash(tmp_path_factory, content, format) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "t"
    file.write_bytes(content)
    with pytest.raises(FwoptError):
        read(file, format=format)
