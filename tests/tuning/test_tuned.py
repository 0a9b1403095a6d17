"""Tuned times in the profile store: read back, and refused when they no longer hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fwopt.errors import UnmeasuredError
from fwopt.perf.store import entries, open_profile
from fwopt.tuning.family import Row
from fwopt.tuning.tuned import StaleError, Tuned, keep
from fwopt_kernels.aot import sources
from fwopt_kernels.choice import Choices
from fwopt_kernels.host import Host
from fwopt_kernels.registry import OPERATORS, load

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

HOST = Host("cuda", "NVIDIA H200", "sm_90", "3.6.0", "2.11.0")
VARIANTS = load(OPERATORS["rms_norm"]).space("bf16").variants()


def row(rows: int, at: int, seconds: float, chosen: bool) -> Row:
    shape = (("rows", rows), ("columns", 4096))
    return Row("bf16", shape, VARIANTS[at].id, at == 0, chosen, 10.0, seconds, seconds, seconds, 9)


def kept(root: Path, rows: list[Row], *, hashed: str | None = None) -> Path:
    known = hashed or sources(OPERATORS["rms_norm"])
    return keep(root, "h200", HOST, {"rms_norm": rows}, {"rms_norm": known}, when="2026-01-01 00:00 UTC", machine={},
                load="", command="test")  # fmt: skip


def test_the_nearest_tuned_size_decides(tmp_path: Path) -> None:
    folder = kept(tmp_path, [row(1, 0, 3e-6, False), row(1, 2, 2e-6, True), row(64, 0, 4e-6, True)])
    assert folder == tmp_path / "h200" / "kernels-3.6.0"
    tuned = Tuned.open(tmp_path, "h200", HOST)
    assert tuned.best("rms_norm", "bf16", {"rows": 5, "columns": 4096}) == VARIANTS[2]
    assert tuned.best("rms_norm", "bf16", {"rows": 5000, "columns": 4096}) == VARIANTS[0]
    choices = Choices(tuned.choices("rms_norm"))
    assert choices.best("rms_norm", "bf16", rows=5, columns=4096) == VARIANTS[2]
    assert choices.best("rms_norm", "fp8-row", rows=5, columns=4096) is None
    assert choices.best("silu_mul", "bf16", rows=5, columns=4096) is None
    with pytest.raises(ValueError, match="rms_norm: a shape consists of rows, columns, got rows"):
        choices.best("rms_norm", "bf16", rows=5)
    with pytest.raises(UnmeasuredError, match="nothing was tuned in format fp8-row"):
        tuned.best("rms_norm", "fp8-row", {"rows": 5, "columns": 4096})


def test_it_is_an_entry_of_the_profile_store(tmp_path: Path) -> None:
    folder = kept(tmp_path, [row(1, 0, 3e-6, True)])
    assert list(entries(tmp_path)) == [("h200", "kernels", "3.6.0", folder)]
    assert open_profile(folder).columns("rms_norm")["p50_s"].tolist() == [3e-6]


def test_a_new_run_replaces_the_shapes_it_measured(tmp_path: Path) -> None:
    kept(tmp_path, [row(1, 0, 3e-6, True), row(64, 0, 4e-6, True)])
    folder = kept(tmp_path, [row(1, 1, 1e-6, True)])
    columns = open_profile(folder).columns("rms_norm")
    assert sorted(zip(columns["rows"].tolist(), columns["p50_s"].tolist(), strict=True)) == [(1, 1e-6), (64, 4e-6)]


def test_what_no_longer_holds_is_refused_with_the_reason(tmp_path: Path) -> None:
    kept(tmp_path, [row(1, 0, 3e-6, True)])
    with pytest.raises(StaleError, match=r"tuned with Triton 3\.6\.0, here is 3\.9\.0"):
        Tuned.open(tmp_path, "h200", replace(HOST, triton="3.9.0"))
    with pytest.raises(StaleError, match="tuned on NVIDIA H200, here is NVIDIA H200 NVL"):
        Tuned.open(tmp_path, "h200", replace(HOST, name="NVIDIA H200 NVL"))
    with pytest.raises(UnmeasuredError, match="no kernels were tuned on h100"):
        Tuned.open(tmp_path, "h100", HOST)
    kept(tmp_path, [row(1, 0, 3e-6, True)], hashed="0" * 64)
    with pytest.raises(StaleError, match="tuned from kernel sources 000000000000, here they are"):
        Tuned.open(tmp_path, "h200", HOST).best("rms_norm", "bf16", {"rows": 1, "columns": 4096})
