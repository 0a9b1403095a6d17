"""`fwopt evals` as a user runs it, on servers whose answers are known."""

from __future__ import annotations

import gzip
import json

import pytest

from fwopt.errors import FwoptError, InputError
from fwopt.evals.files import read_answers

from .conftest import adds, fails_below, run, sums


def files(folder, pattern):
    return sorted(folder.glob(pattern))


def test_one_server_alone_gets_no_verdict(start, write, tmp_path):
    done = run(write(sums(20)), "--url", start(fails_below(5)).url, "--out", tmp_path)
    assert done.exit_code == 0
    assert "15 of 20 right (75.0%)" in done.stdout
    assert "add --against" in done.stdout


def test_the_same_answers_on_enough_items_pass(start, write, tmp_path):
    servers = "--url", start(adds).url, "--against", start(adds).url
    done = run(write(sums(100)), *servers, "--margin", "4pp", "--out", tmp_path)
    assert done.exit_code == 0, done.stdout
    assert "not worse than 4 pp with 95 % confidence (difference -3.70 pp to +3.70 pp)" in done.stdout


def test_damage_fails_and_is_counted_item_by_item(start, write, tmp_path):
    good, bad = start(adds), start(fails_below(30))
    done = run(write(sums(100)), "--url", bad.url, "--against", good.url, "--out", tmp_path, "--json")
    assert done.exit_code == 1
    (found,) = json.loads(done.stdout[done.stdout.index("[\n") :])
    assert found["overall"]["only_reference"] == 30
    assert found["overall"]["verdict"] == "worse"
    assert [body["temperature"] for body in good.seen] == [0] * 100
    answers = [read_answers(path) for path in files(tmp_path, "set/*.answers.jsonl.gz")]
    assert {found.header.served.url for found in answers} == {good.url, bad.url}
    assert all(found.graded["1"].raw["choices"] for found in answers)


def test_answers_of_an_earlier_run_are_a_reference(start, write, tmp_path):
    items = write(sums(100))
    run(items, "--url", start(adds).url, "--out", tmp_path / "before")
    (kept,) = files(tmp_path / "before", "set/*.gz")
    done = run(items, "--url", start(adds).url, "--against", kept, "--margin", "4pp", "--out", tmp_path / "now")
    assert "not worse" in done.stdout
    with pytest.raises(InputError, match=r"holds answers to other items .* name the same file, --limit and --seed"):
        run(items, "--url", start(adds).url, "--against", kept, "--limit", 50, "--out", tmp_path / "now")


def test_undecided_fails_and_says_how_many_more(start, write, tmp_path):
    url = start(adds).url
    done = run(write(sums(20)), "--url", url, "--against", url, "--margin", "1pp", "--out", tmp_path)
    assert done.exit_code == 1
    assert "undecided whether it is within 1 pp" in done.stdout
    assert "more items like these would decide" in done.stdout


def test_an_error_counts_as_wrong_and_is_shown(start, write, tmp_path):
    def reply(asked, body):
        return (400, "context is full") if asked.startswith("3 ") else adds(asked, body)

    done = run(write(sums(10)), "--url", start(reply).url, "--out", tmp_path)
    assert "9 of 10 right" in done.stdout
    assert "1 items were answered with an error and count as wrong: HTTP 400" in done.stdout
    assert "context is full" in done.stdout


def test_a_server_that_goes_away_leaves_what_was_answered(start, write, tmp_path, monkeypatch):
    monkeypatch.setattr("fwopt.evals.asking._WAITS_S", ())
    items, served = write(sums(10)), 0

    def reply(asked, body):
        nonlocal served
        served += 1
        if served == 5:
            server.shutdown_soon()
        return adds(asked, body)

    server = start(reply)
    server.shutdown_soon = server.socket.close
    with pytest.raises(FwoptError, match=r"no longer answers .* after [45] of 10 answers .* go on with --resume"):
        run(items, "--url", server.url, "--out", tmp_path)
    assert len(files(tmp_path, "set/*.partial")) == 1


def test_a_stopped_run_goes_on_where_it_was(start, write, tmp_path):
    items, server = write(sums(10)), start(adds)
    run(items, "--url", server.url, "--out", tmp_path)
    (whole,) = files(tmp_path, "set/*.gz")
    lines = gzip.decompress(whole.read_bytes()).splitlines(keepends=True)
    torn = b"".join(map(gzip.compress, lines[:5])) + gzip.compress(lines[5])[:-12]
    whole.with_name(whole.name + ".partial").write_bytes(torn)
    whole.unlink()
    done = run(items, "--url", server.url, "--out", tmp_path, "--resume")
    assert "10 of 10 right" in done.stdout
    assert len(server.seen) == 16, "the four whole answers were kept"
    assert [path.name for path in files(tmp_path, "set/*")] == [whole.name]


def test_without_resume_everything_is_asked_again(start, write, tmp_path):
    items, server = write(sums(3)), start(adds)
    for _ in range(2):
        run(items, "--url", server.url, "--out", tmp_path)
    assert len(server.seen) == 6
    assert len(files(tmp_path, "set/*.gz")) == 2


def test_tools_are_described_where_the_server_parses_none(start, write, tmp_path):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    item = {
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "1 + 2"}], "tools": [tool],
        "expected": {"name": "add", "arguments": {"a": 1, "b": 2}}, "grader": "tool-call",
    }  # fmt: skip
    server = start(lambda asked, body: '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>')
    done = run(write([item]), "--url", server.url, "--tools", "prompt", "--out", tmp_path)
    assert "1 of 1 right" in done.stdout
    assert "tools" not in server.seen[0]
    assert server.seen[0]["messages"][0]["content"].startswith("Be short.")
    assert '"name":"add"' in server.seen[0]["messages"][0]["content"]
    run(write([item]), "--url", server.url, "--out", tmp_path)
    assert server.seen[1]["tools"] == [tool]


def test_several_requests_in_flight_answer_every_item_once(start, write, tmp_path):
    server = start(adds)
    done = run(write(sums(40)), "--url", server.url, "--concurrency", 8, "--out", tmp_path)
    assert "40 of 40 right" in done.stdout
    assert sorted(int(body["messages"][0]["content"].split()[0]) for body in server.seen) == list(range(40))


REFUSED = {
    "a margin without unit": (("--margin", "1"), "--margin '1': write percentage points, for example 0.5pp"),
    "a scheme of no model": (("--scheme", "fp8"), "--scheme and --of go together"),
    "an unknown scheme": (("--scheme", "fp9", "--of", "Qwen/Qwen3-8B"), "unknown scheme 'fp9'; nearest: fp8"),
    "an unknown API": (("--api", "chatty"), "--api: must be 'chat' or 'completions', got 'chatty'"),
    "an unknown place of tools": (("--tools", "x"), "--tools: must be 'server' or 'prompt', got 'x'"),
    "a reference that is no file": (("--against", "nowhere.gz"), "nowhere.gz: cannot be read"),
    "a reference that is something else": (("--against", "SET"), "is no gzip of JSON lines"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_refused_before_anything_is_asked(case, start, write, tmp_path):
    server, items = start(adds), write(sums(3))
    arguments, message = REFUSED[case]
    with pytest.raises(FwoptError, match=message.replace("(", r"\(")):
        run(items, "--url", server.url, "--out", tmp_path, *(items if a == "SET" else a for a in arguments))
    assert not server.seen


def test_messages_do_not_fit_the_completions_api(start, write, tmp_path):
    item = {"id": "a", "messages": [{"role": "user", "content": "x"}], "expected": "x", "grader": "exact"}
    with pytest.raises(InputError, match="item a has messages, which the completions API does not take"):
        run(write([item]), "--url", start(adds).url, "--api", "completions", "--out", tmp_path)


def test_a_bad_line_is_named_although_no_server_is_there(write, tmp_path):
    with pytest.raises(InputError, match=r"set\.jsonl:1: grader: missing"):
        run(write([{"prompt": "x"}]), "--url", "http://127.0.0.1:9", "--out", tmp_path)
