"""Events out of bytes cut anywhere; turns told apart from repetitions."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from fwopt.record.conversation import canonical
from fwopt.record.sse import Events

EVENTS = st.lists(
    st.sampled_from([b"data: {}", b"data:x", b": comment", b"event: e\ndata: a\ndata: b", b"id: 1"]), max_size=6
)


@given(EVENTS, st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]), st.lists(st.integers(0, 90)), st.booleans())
def test_events_are_the_same_however_the_bytes_are_cut(events, end, cuts, closed) -> None:
    stream = b"".join(event + end for event in events) + (b"" if closed else b"data: to be conti")
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader, found = Events(), []
    for start, stop in itertools.pairwise(edges):
        found += reader.feed(stream[start:stop])
    assert b"".join(raw for raw, _ in found) + reader.rest == stream
    datas = {b"data: {}": b"{}", b"data:x": b"x", b": comment": b"", b"id: 1": b""}
    assert [data for _, data in found] == [datas.get(event, b"a\nb") for event in events]


def test_an_answer_sent_back_is_the_answer() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": [2]}'}}
    given = {"role": "assistant", "content": " Yes.\n", "tool_calls": [call], "reasoning_content": "hm"}
    back = {
        "role": "assistant",
        "content": [{"type": "text", "text": "Yes."}],
        "tool_calls": [{"function": {"name": "f", "arguments": '{"a":[2],"b":1}'}}],
    }
    assert canonical(given) == canonical(back)
    assert canonical(given) != canonical(back | {"content": "No."})
    assert canonical({"role": "user", "content": None}) == canonical({"role": "user", "content": ""})
    images = [[{"type": "image_url", "image_url": {"url": f"data:{x}"}}] for x in "ab"]
    assert canonical({"role": "user", "content": images[0]}) != canonical({"role": "user", "content": images[1]})
