"""Recordings in the own format: order of completion, blocks of text, requests left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fwopt.errors import TraceError
from fwopt.workload import read, statistics, write_own

HEADER = {"schema_version": 1, "order": "completion", "block_bytes": 64}


def written(path: Path, *rows: dict, header: dict = HEADER) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    return path


def row(arrival: float, **more: object) -> dict:
    return {"arrival_s": arrival, "prompt_tokens": 50, "output_tokens": 5, **more}


def test_lines_in_order_of_completion_become_requests_in_order_of_arrival(tmp_path) -> None:
    file = written(tmp_path / "t.jsonl", row(3, id="c"), row(1, id="a"), row(4, parent_id="a"), row(2, parent_id="a"))
    workload = read(file).workload
    assert workload.arrival_s.tolist() == [0, 1, 2, 3]
    assert workload.parent.tolist() == [-1, 0, -1, 0]
    write_own(workload, tmp_path / "copy.jsonl")
    assert read(tmp_path / "copy.jsonl").workload.digest == workload.digest
    with pytest.raises(TraceError, match="must not decrease"):
        read(written(tmp_path / "u.jsonl", row(3), row(1), header={"schema_version": 1}))


def test_rotated_files_put_one_behind_the_other_are_one_recording(tmp_path) -> None:
    parts = [written(tmp_path / f"{i}.jsonl", row(i, id=f"r{i}"), row(i + 0.5)) for i in (2, 1)]
    whole = tmp_path / "whole.jsonl"
    whole.write_text("".join(part.read_text() for part in parts))
    assert read(whole).workload.arrival_s.tolist() == [0, 0.5, 1, 1.5]
    other = written(tmp_path / "other.jsonl", row(9), header=HEADER | {"block_bytes": 32})
    whole.write_text(parts[0].read_text() + other.read_text())
    with pytest.raises(TraceError, match=r"whole.jsonl:4: schema_version: begins a recording of another kind"):
        read(whole)
    plain = written(tmp_path / "plain.jsonl", row(1), {"schema_version": 1}, header={"schema_version": 1})
    with pytest.raises(TraceError, match="stands in the first line only"):
        read(plain)


def test_blocks_of_text_become_as_many_tokens_as_they_are_on_average(tmp_path) -> None:
    rows = [row(i, prompt_bytes=400, prefix_blocks=[1, 2, 3, 4, 5, 6]) for i in range(3)]
    result = read(written(tmp_path / "t.jsonl", *rows, row(9, prompt_bytes=70, prefix_blocks=[1])))
    assert result.workload.block_tokens == round(64 * 200 / 1270)
    assert "shares are estimates" in result.notes[-1]
    assert result.workload.block_offsets.tolist() == [0, 5, 10, 15, 16]  # 50 tokens hold five blocks of ten


def test_requests_that_are_no_load_are_counted_and_left_out(tmp_path) -> None:
    left = {"left_out": "refused", "arrival_s": 1, "end_s": 0.1, "status": 429, "api": "chat", "model": "m"}
    gone = left | {"left_out": "disconnected"}
    result = read(written(tmp_path / "t.jsonl", left, row(1, cut="client", estimated=["output_tokens"]), left, gone))
    assert len(result.workload) == 1
    assert result.notes == (
        "requests recorded as no load to plan for: 3 (refused with 429 2, disconnected 1)",
        "replies broken off by the client, planned for as far as they came: 1",
        "requests with token counts that are estimates: 1",
    )


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (row(1, cut="nobody"), "cut: must be one of client, upstream, recorder"),
        (row(1, status=99), "status: must be an HTTP status"),
        (row(1, first_token_s=-1), "first_token_s: must be a finite number"),
        (row(1, estimated=["arrival_s"]), "estimated: must list some of prompt_tokens, output_tokens"),
        (row(1, text="secret words"), "text: must be an object, got 'str'"),
        ({"left_out": "bored", "arrival_s": 1}, "left_out: must be one of refused"),
        ({"left_out": "refused", "arrival_s": 1, "note": 1}, "note: is no field of a request that was left out"),
    ],
    ids=str,
)
def test_bad_fields_are_one_line(tmp_path, bad, why) -> None:
    with pytest.raises(TraceError, match=":2: ") as caught:
        read(written(tmp_path / "t.jsonl", bad, row(2)))
    assert why in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"block_bytes": 0}, "block_bytes: must be a whole number"),
        ({"block_bytes": 64, "block_tokens": 16}, "block_bytes: takes the place of block_tokens"),
        ({"order": "random"}, "order: must be arrival or completion"),
    ],
    ids=str,
)
def test_bad_headers(tmp_path, header, why) -> None:
    with pytest.raises(TraceError, match=":1: ") as caught:
        read(written(tmp_path / "t.jsonl", row(1), header={"schema_version": 1} | header))
    assert why in str(caught.value)


def test_prompts_beside_images_do_not_stretch_the_blocks_of_others(tmp_path) -> None:
    """A block of text is 16 tokens here; averaged over prompts of 200 bytes and 1,500 tokens it seemed 38."""
    shared = list(range(31))
    rows = []
    for at in range(20):
        own = list(range(100 * (at + 1), 100 * (at + 1) + 31))
        rows.append(row(at, prompt_tokens=1000, prompt_bytes=4000, prefix_blocks=[*shared, *own]))
        rows.append(row(at, prompt_tokens=1500, prompt_bytes=200, prefix_blocks=[f"abc{at}", f"abd{at}", f"abe{at}"]))
    found = read(written(tmp_path / "t.jsonl", *rows))
    prefix = statistics(found.workload).prefix
    assert prefix is not None
    assert (prefix.block_tokens, prefix.informed_share) == (16, 0.5)
    assert prefix.hit_share == pytest.approx(19 * 31 * 16 / (20 * 2500))
    assert any("bytes of text (redacted, cut, images): 20;" in note for note in found.notes)
