"""fwopt's own format: what is written is read back equal, and the published schema says what the reader accepts."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fwopt.errors import FwoptError, InputError
from fwopt.paths import data_folder
from fwopt.workload import read, scale_rate, write_own
from fwopt.workload.formats.own import WorkloadLine

IDS = st.integers(-5, 5) | st.text(min_size=1, max_size=3)
LINE = st.fixed_dictionaries(
    {
        "gap_s": st.floats(0, 1e6) | st.sampled_from([0.0, 1e-9, 1 / 3]),
        "prompt_tokens": st.integers(1, 2**31 - 1),
        "output_tokens": st.integers(1, 2**20),
    },
    optional={
        "max_tokens": st.integers(2**20, 2**31 - 1),
        "prefix_blocks": st.lists(st.integers(0, 3) | st.integers(2**63, 2**64 - 1) | st.just("FFff"), max_size=4),
        "session_id": IDS,
        "model": st.sampled_from(["a", "b", "é\n"]),
        "adapter": st.sampled_from(["x", "y"]),
        "tools": st.integers(0, 3),
        "parent": st.integers(0, 10),
    },
)


def written(path: Path, rows: list[dict[str, object]], block_tokens: int = 2) -> Path:
    arrival, lines = 0.0, [{"schema_version": 1, "block_tokens": block_tokens}]
    for i, row in enumerate(rows):
        arrival += row.pop("gap_s")
        parent = row.pop("parent", None)
        blocks = row.get("prefix_blocks", [])
        row["prefix_blocks"] = blocks[: -(-row["prompt_tokens"] // block_tokens)]
        lines.append({"arrival_s": arrival, "id": f"r{i}"} | row)
        if parent is not None and parent < i:
            lines[-1]["parent_id"] = f"r{parent}"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


@settings(max_examples=60, deadline=None)
@given(st.lists(LINE, min_size=1, max_size=12), st.sampled_from(["", ".gz", ".zst"]))
def test_write_then_read_is_identity(tmp_path_factory, rows, suffix) -> None:
    folder = tmp_path_factory.mktemp("own")
    first = read(written(folder / "a.jsonl", rows)).workload
    copy = folder / f"b.jsonl{suffix}"
    write_own(first, copy)
    again = read(copy).workload
    assert again.digest == first.digest
    assert again.name == first.name
    assert again.arrival_s.tolist() == first.arrival_s.tolist()
    assert again.block_ids.tolist() == first.block_ids.tolist()
    assert again.parent.tolist() == first.parent.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(LINE, min_size=2, max_size=10))
def test_ids_are_shared_exactly_as_far_as_hashes_agree_from_the_start(tmp_path_factory, rows) -> None:
    def agree(a: list, b: list) -> int:
        return next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    w = read(written(tmp_path_factory.mktemp("own") / "a.jsonl", rows)).workload
    ids = [w.block_ids[w.block_offsets[i] : w.block_offsets[i + 1]].tolist() for i in range(len(w))]
    raw = [[65535 if b == "FFff" else b for b in row["prefix_blocks"]] for row in rows]
    for i in range(len(rows)):
        for j in range(i):
            same_owner = all(rows[i].get(k) == rows[j].get(k) for k in ("model", "adapter"))
            assert agree(ids[i], ids[j]) == (agree(raw[i], raw[j]) if same_owner else 0)
            assert len(set(ids[i]) & set(ids[j])) == agree(ids[i], ids[j])


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*WorkloadLine.model_fields, "note"]),
        st.none() | st.booleans() | st.integers(-1, 9) | st.just(2**31) | st.sampled_from(["", "a", "0f"])
        | st.lists(st.integers(-1, 3) | st.sampled_from(["0f", "g", ""]), max_size=2),
    )
)  # fmt: skip
def test_reader_accepts_a_line_exactly_when_the_schema_does(tmp_path_factory, row) -> None:
    row = {"arrival_s": 0.5, "prompt_tokens": 99, "output_tokens": 1} | row
    row.pop("parent_id", None)  # needs another line
    try:
        jsonschema.validate(row, WorkloadLine.model_json_schema())
        valid = row.get("max_tokens") is None or row["max_tokens"] >= row["output_tokens"]
        valid = valid and len(row.get("prefix_blocks") or []) <= row["prompt_tokens"]
    except jsonschema.ValidationError:
        valid = False
    file = tmp_path_factory.mktemp("own") / "t.jsonl"
    file.write_text('{"schema_version": 1, "block_tokens": 1}\n' + json.dumps(row) + "\n")
    try:
        read(file)
    except FwoptError as error:
        assert not valid, error  # noqa: PT017
    else:
        assert valid


def test_shipped_traces_survive_conversion(tmp_path: Path) -> None:
    for name in ("azure-2023-conv.csv.gz", "mooncake-conversation.jsonl.gz"):
        w = read(data_folder("workloads") / name).workload
        write_own(w, tmp_path / name)
        assert read(tmp_path / name, format="fwopt").workload.digest == w.digest


def test_digest_follows_content_not_names(tmp_path: Path) -> None:
    rows = '{"arrival_s": %s, "prompt_tokens": 8, "output_tokens": %d, "session_id": "%s", "prefix_blocks": [%d]}\n'

    def digest(name: str, start: float, output: int, session: str, block: int) -> str:
        head = json.dumps({"schema_version": 1, "name": name, "block_tokens": 8}) + "\n"
        (tmp_path / name).write_text(
            head + rows % (start, 1, session, block) + rows % (start + 1, output, session, block)
        )
        return read(tmp_path / name).workload.digest

    first = digest("one", 0, 5, "a", 7)
    assert digest("two", 100, 5, "other", 2**63) == first, "names, time origin and hash values are not content"
    assert digest("three", 0, 6, "a", 7) != first


def test_equal_workloads_give_equal_bytes(tmp_path: Path) -> None:
    w = read(data_folder("workloads") / "azure-2023-code.csv.gz").workload
    for suffix in ("gz", "zst"):
        one, two = tmp_path / f"1.{suffix}", tmp_path / f"2.{suffix}"
        write_own(w, one)
        write_own(w, two)
        assert one.read_bytes() == two.read_bytes()


def test_nothing_is_left_behind_when_writing_fails(tmp_path: Path) -> None:
    w = read(data_folder("workloads") / "azure-2023-code.csv.gz").workload
    target = tmp_path / "out.jsonl"
    target.write_text("keep me")
    with pytest.raises(InputError, match="--force"):
        write_own(w, target)
    with pytest.raises(InputError, match="does not exist"):
        write_own(w, tmp_path / "no" / "out.jsonl")
    with pytest.raises(InputError, match="cannot be written"):
        write_own(w, tmp_path / ("n" * 250))  # the temporary name beside it is too long for the file system
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    assert target.read_text() == "keep me"


def test_scaling_the_rate_divides_every_gap() -> None:
    w = read(data_folder("workloads") / "azure-2023-code.csv.gz").workload
    fast = scale_rate(w, 4)
    assert np.array_equal(fast.arrival_s, w.arrival_s / 4)
    assert fast.digest != w.digest
    assert scale_rate(fast, 0.25).digest == w.digest
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="rate scale"):
            scale_rate(w, wrong)
