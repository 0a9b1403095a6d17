"""Parts of a workload keep what they are made of: lengths, gaps, prefix sharing, parents."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.errors import InputError
from fwopt.workload import Workload, read, write_own
from fwopt.workload.select import cut_context, parse_range, window


def _workload(folder: Path) -> Workload:
    rows: list[dict[str, object]] = [{"schema_version": 1, "block_tokens": 16}]
    blocks = [[7, 8, 9], [1, 2], [7, 8, 5], [1, 2, 3, 4], [7, 8, 9, 6]]
    for i, ids in enumerate(blocks):
        rows.append(
            {
                "id": f"r{i}",
                "arrival_s": 10.0 + i,
                "prompt_tokens": 16 * len(ids),
                "output_tokens": 5 * (i + 1),
                "prefix_blocks": ids,
                "session_id": f"s{i % 2}",
                "parent_id": f"r{i - 2}" if i >= 2 else None,
            }
        )
    file = folder / "w.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(file).workload


def _shared(w: Workload, a: int, b: int) -> int:
    """Leading blocks that two requests have in common."""
    x, y = (w.block_ids[w.block_offsets[i] : w.block_offsets[i + 1]] for i in (a, b))
    n = min(len(x), len(y))
    return int(np.argmin(np.append(x[:n] == y[:n], False)))


def test_window_keeps_gaps_sharing_and_parents_inside(tmp_path: Path) -> None:
    whole = _workload(tmp_path)
    part = window(whole, 1, 5)
    assert part.arrival_s.tolist() == [0, 1, 2, 3]
    assert part.output_tokens.tolist() == [10, 15, 20, 25]
    assert part.parent.tolist() == [-1, -1, 0, 1], "the parent left out becomes none"
    assert _shared(part, 0, 2) == _shared(whole, 1, 3) == 2
    assert _shared(part, 1, 3) == _shared(whole, 2, 4) == 2
    assert window(whole, 0, 5) is whole


def test_a_written_part_reads_back_with_the_same_digest(tmp_path: Path) -> None:
    part = window(_workload(tmp_path), 1, 4)
    write_own(part, tmp_path / "part.jsonl.gz")
    assert read(tmp_path / "part.jsonl.gz").workload.digest == part.digest


@settings(max_examples=50, deadline=None)
@given(most=st.integers(2, 200))
def test_cut_requests_fit_and_share_what_is_left(tmp_path_factory: pytest.TempPathFactory, most: int) -> None:
    whole = _workload(tmp_path_factory.mktemp("w"))
    cut = cut_context(whole, most)
    assert (cut.prompt_tokens + cut.output_tokens <= most).all()
    assert (cut.prompt_tokens >= 1).all()
    assert (cut.output_tokens >= 1).all()
    assert (np.diff(cut.block_offsets) <= -(-cut.prompt_tokens // 16)).all()
    untouched = (cut.prompt_tokens == whole.prompt_tokens) & (cut.output_tokens == whole.output_tokens)
    assert (untouched == (whole.prompt_tokens + np.minimum(whole.output_tokens, most // 2) <= most)
            & (whole.output_tokens <= most // 2)).all()  # fmt: skip
    for a, b in ((0, 2), (1, 3), (0, 4)):
        left = min(int(np.diff(cut.block_offsets)[i]) for i in (a, b))
        assert _shared(cut, a, b) == min(_shared(whole, a, b), left)


@pytest.mark.parametrize("text", ["5", "a:b", "-1:3", "3:3", "9:12", "1:2:3"])
def test_bad_range_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match="requests"):
        parse_range(text, 9)


def test_range_forms() -> None:
    assert parse_range("2:", 9) == (2, 9)
    assert parse_range(":4", 9) == (0, 4)
    assert parse_range("0:1000", 9) == (0, 9)
