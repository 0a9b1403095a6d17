"""Tuned times in the profile store: read back, and refused when they no longer hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fwopt.engine.kernel_set import choices_of, read_set
from fwopt.errors import InputError, UnmeasuredError
from fwopt.perf.cost import CostModel
from fwopt.perf.kernel_times import KernelTimes, find
from fwopt.perf.store import entries, load_profile, open_profile
from fwopt.perf.tuned import TunedCosts
from fwopt.search.kernels import known_kernels, with_kernels
from fwopt.search.space import SpaceOverrides
from fwopt.spec.candidate import W4A16, Bf16, Candidate, Fp8, Int8, Mxfp4, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.targets import load_hardware, load_model
from fwopt.tuning.family import Row
from fwopt.tuning.handover import hand_over
from fwopt.tuning.tuned import keep
from fwopt_kernels.aot import sources
from fwopt_kernels.choice import Choices
from fwopt_kernels.host import Host
from fwopt_kernels.registry import OPERATORS, load

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

HOST = Host("cuda", "NVIDIA H200", "sm_90", "3.6.0", "2.11.0")
H200 = load_hardware("h200:1").device
VARIANTS = load(OPERATORS["rms_norm"]).space("bf16").variants()


def row(rows: int, at: int, seconds: float, chosen: bool) -> Row:
    shape = (("rows", rows), ("columns", 4096))
    return Row("bf16", shape, VARIANTS[at].id, at == 0, chosen, 10.0, seconds, seconds, seconds, 9)


LINEARS = ((6144, 4096), (4096, 4096), (24576, 4096), (4096, 12288))
"""Of Qwen3-8B."""


def product(operator: str, format: str, n: int, k: int, at: int, seconds: float) -> Row:
    shape = (("m", 1), ("n", n), ("k", k))
    variant = load(OPERATORS[operator]).space(format).variants()[at]
    return Row(format, shape, variant.id, at == 0, at > 0, 10.0, seconds, seconds, seconds, 9)


def kept(root: Path, rows: list[Row], *, hashed: str | None = None, operator: str = "rms_norm") -> Path:
    known = hashed or sources(OPERATORS[operator])
    return keep(root, "h200", HOST, {operator: rows}, {operator: known}, when="2026-01-01 00:00 UTC", machine={},
                load="", command="test")  # fmt: skip


def found(root: Path) -> KernelTimes:
    times, notes = find(H200, root)
    assert times is not None, notes
    return times


def test_the_nearest_tuned_size_decides(tmp_path: Path) -> None:
    folder = kept(tmp_path, [row(1, 0, 3e-6, False), row(1, 2, 2e-6, True), row(64, 0, 4e-6, True)])
    assert folder == tmp_path / "h200" / "kernels-3.6.0"
    choices = Choices(choices_of(found(tmp_path).kernels, HOST))
    assert choices.best("rms_norm", "bf16", rows=5, columns=4096) == VARIANTS[2]
    assert choices.best("rms_norm", "bf16", rows=5000, columns=4096) == VARIANTS[0]
    assert choices.best("rms_norm", "fp8-row", rows=5, columns=4096) is None
    assert choices.best("silu_mul", "bf16", rows=5, columns=4096) is None
    with pytest.raises(ValueError, match="rms_norm: a shape consists of rows, columns, got rows"):
        choices.best("rms_norm", "bf16", rows=5)


def test_it_is_an_entry_of_the_profile_store(tmp_path: Path) -> None:
    folder = kept(tmp_path, [row(1, 0, 3e-6, True)])
    assert list(entries(tmp_path)) == [("h200", "kernels", "3.6.0", folder)]
    assert open_profile(folder).columns("rms_norm")["p50_s"].tolist() == [3e-6]


def test_a_new_run_replaces_the_shapes_it_measured(tmp_path: Path) -> None:
    kept(tmp_path, [row(1, 0, 3e-6, True), row(64, 0, 4e-6, True)])
    folder = kept(tmp_path, [row(1, 1, 1e-6, True)])
    columns = open_profile(folder).columns("rms_norm")
    assert sorted(zip(columns["rows"].tolist(), columns["p50_s"].tolist(), strict=True)) == [(1, 1e-6), (64, 4e-6)]


def test_a_set_is_named_by_what_it_chooses_and_not_by_its_times(tmp_path: Path) -> None:
    kept(tmp_path, [row(1, 0, 3e-6, False), row(1, 2, 2e-6, True)])
    first = found(tmp_path).kernels
    kept(tmp_path, [row(1, 0, 4e-6, False), row(1, 2, 3e-6, True)])
    assert found(tmp_path).kernels.digest == first.digest
    kept(tmp_path, [row(1, 0, 1e-6, True), row(1, 2, 3e-6, False)])
    assert found(tmp_path).kernels.digest != first.digest


def test_rows_of_other_sources_do_not_count_and_do_not_stay_in_the_way(tmp_path: Path) -> None:
    kept(tmp_path, [row(1, 0, 3e-6, True), row(64, 2, 4e-6, True)], hashed="0" * 64)
    times, notes = find(H200, tmp_path)
    assert times is None
    assert "rms_norm was tuned from kernel sources 000000000000, here they are" in notes[0]
    kept(tmp_path, [row(1, 1, 1e-6, True)])  # the row of 64 stays, as old as it was
    assert [c.variant for c in found(tmp_path).kernels.choices] == [VARIANTS[1].id]


def test_what_does_not_hold_where_it_is_served_is_refused_with_the_reason(tmp_path: Path) -> None:
    kept(tmp_path, [row(1, 0, 3e-6, True)])
    kernels = found(tmp_path).kernels
    with pytest.raises(InputError, match=r"were tuned with Triton 3\.6\.0, here is 3\.9\.0"):
        choices_of(kernels, replace(HOST, triton="3.9.0"))
    with pytest.raises(InputError, match="were tuned on NVIDIA H200, here is NVIDIA H200 NVL"):
        choices_of(kernels, replace(HOST, name="NVIDIA H200 NVL"))
    with pytest.raises(InputError, match="rms_norm was tuned from kernel sources 000000000000, here they are"):
        choices_of(kernels.model_copy(update={"sources": {"rms_norm": "0" * 64}}), HOST)
    with pytest.raises(InputError, match=r"kernels\.yaml: the config names the kernels .*No such file"):
        read_set(tmp_path / "kernels.yaml", kernels.digest)
    (tmp_path / "kernels.yaml").write_text(kernels.model_dump_json())
    assert read_set(tmp_path / "kernels.yaml", kernels.digest) == kernels
    with pytest.raises(InputError, match=r"holds the kernels .*, the config names 0000000000000000"):
        read_set(tmp_path / "kernels.yaml", "0" * 16)


@pytest.mark.parametrize(
    ("scheme", "operator", "format", "unused"),
    [(W4A16(), "w4a16", "g128", "g64"), (Int8(), "int8_gemm", "int8-row", "int8-tensor")],
)
def test_the_plan_takes_the_times_of_the_kernels_that_a_candidate_names(
    tmp_path: Path, scheme: W4A16 | Int8, operator: str, format: str, unused: str
) -> None:
    model, engine = load_model("Qwen/Qwen3-8B"), EngineSpec(name="fwopt", version="0")
    plain = CostModel(model, H200, engine, load_profile(H200, EngineSpec()))
    timed = ((format, 0, 40e-6), (format, 3, 15e-6), (unused, 0, 1.0), (unused, 3, 1.0))
    products = [product(operator, name, *nk, at, seconds) for nk in LINEARS for name, at, seconds in timed]
    kept(tmp_path, products, operator=operator)
    kept(tmp_path, [row(1, 0, 3e-6, False), row(1, 2, 2e-6, True)])
    times = found(tmp_path)
    costs = TunedCosts(plain, times)

    def token_s(kernels: str | None) -> float:
        candidate = Candidate(quantization=scheme, parallelism=Parallelism(), kernels=kernels)
        return float(costs.grid(candidate).token_graph_s[0])

    tuned = times.kernels.digest
    assert token_s(None) - token_s(tuned) == pytest.approx(36 * (4 * (40e-6 - 15e-6) + 2 * (3e-6 - 2e-6)), rel=1e-6)
    assumed = [
        model.grid(candidate).token_share[0, 3]
        for model, candidate in (
            (plain, Candidate(quantization=scheme)),
            (costs, Candidate(quantization=scheme, kernels=tuned)),
        )
    ]
    assert assumed[0] > 0.5
    assert assumed[1] == 0
    with pytest.raises(UnmeasuredError, match="no times of the kernels 0000000000000000 are here"):
        costs.grid(Candidate(kernels="0" * 16))


def prompts(sequences: int, tokens: int, context: int, seconds: float) -> list[Row]:
    """Of Qwen3-8B, twice as fast as by default."""
    sizes = {"sequences": sequences, "heads": 32, "kv_heads": 8, "head_dim": 128, "block_size": 16, "tokens": tokens,
             "shortest": context, "context": context}  # fmt: skip
    shape, ids = tuple(sizes.items()), [v.id for v in load(OPERATORS["prefill_attention"]).space("bf16").variants()[:2]]
    return [
        Row("bf16", shape, ids[at], at == 0, at > 0, 10.0, s, s, s, 9) for at, s in enumerate((2 * seconds, seconds))
    ]


def test_prompts_attend_in_the_time_of_the_kernel(tmp_path: Path) -> None:
    """Whole prompts in their own time; longer ones at the rate of a chunk that is most of them; what a short chunk
    after a long context took stands for no prompt. Shorter prompts than were tuned keep the profile's times."""
    model, engine = load_model("Qwen/Qwen3-8B"), EngineSpec(name="fwopt", version="0")
    plain = CostModel(model, H200, engine, load_profile(H200, EngineSpec()))
    rows = [*prompts(1, 1024, 1024, 40e-6), *prompts(1, 2048, 4096, 300e-6), *prompts(1, 16, 4096, 200e-6)]
    kept(tmp_path, rows, operator="prefill_attention")
    times = found(tmp_path)
    costs = TunedCosts(plain, times)
    before, default, tuned = (
        costs_.grid(Candidate(kernels=kernels))
        for costs_, kernels in ((plain, None), (costs, None), (costs, times.kernels.digest))
    )
    at = [int(np.searchsorted(tuned.prefill_length, n)) for n in (1024, 4096)]
    whole = 300e-6 * (4096 * 4097) / (4096 * 4097 - 2048 * 2049)
    assert tuned.prefill_s[at] == pytest.approx([36 * 40e-6, 36 * whole], rel=1e-6)
    assert default.prefill_s[at] == pytest.approx(2 * tuned.prefill_s[at], rel=1e-6)
    assert tuned.prefill_chunk_floor_s == before.prefill_chunk_floor_s
    assert (tuned.prefill_s[:5] == before.prefill_s[:5]).all()


def test_gpt_oss_is_planned_with_tuned_attention(tmp_path: Path) -> None:
    """Its 12 layers without a window take the kernel's times; the profile has rows of its own for a window of 128."""
    model, engine = load_model("openai/gpt-oss-20b"), EngineSpec(name="fwopt", version="0")
    plain = CostModel(model, H200, engine, load_profile(H200, EngineSpec()))
    shape = (("sequences", 1), ("heads", 64), ("kv_heads", 8), ("head_dim", 64), ("block_size", 16), ("shortest", 16),
             ("context", 16))  # fmt: skip
    ids = [v.id for v in load(OPERATORS["decode_attention"]).space("bf16").variants()[:2]]
    rows = [Row("bf16", shape, ids[at], at == 0, at > 0, 10.0, s, s, s, 9) for at, s in enumerate((20e-6, 15e-6))]
    kept(tmp_path, rows, operator="decode_attention")
    times, _ = known_kernels(engine, H200, plain, tmp_path, SpaceOverrides(kernels=("tuned",)))
    assert times is not None
    costs = with_kernels(plain, times)
    default, tuned = (
        costs.grid(Candidate(quantization=Mxfp4(), kernels=kernels)) for kernels in (None, times.kernels.digest)
    )
    at = int(np.searchsorted(tuned.decode_context, 16))
    assert default.decode_s[0, at] - tuned.decode_s[0, at] == pytest.approx(12 * 5e-6, rel=1e-6)


def experts(format: str, seconds: float) -> list[Row]:
    """Of Qwen3-30B-A3B, one token."""
    sizes = {"tokens": 1, "experts": 128, "top_k": 8, "hidden": 2048, "intermediate": 768}
    operator = load(OPERATORS["fused_moe"])
    shape = tuple((name, sizes[name]) for name in operator.dimensions)
    ids = [v.id for v in operator.space(format).variants()[:2]]
    return [
        Row(format, shape, ids[at], at == 0, at > 0, 10.0, s, s, s, 9) for at, s in enumerate((2 * seconds, seconds))
    ]


def test_experts_of_every_scheme_are_charged_with_the_kernel_that_runs_them(tmp_path: Path) -> None:
    model, engine = load_model("Qwen/Qwen3-30B-A3B"), EngineSpec(name="fwopt", version="0")
    plain = CostModel(model, H200, engine, load_profile(H200, EngineSpec()))
    timed = {"bf16": 90e-6, "fp8-block": 50e-6, "w4a16": 30e-6, "mxfp4": 20e-6}
    kept(tmp_path, [r for name, s in timed.items() for r in experts(name, s)], operator="fused_moe")
    times = found(tmp_path)
    costs = TunedCosts(plain, times)

    def gain(scheme) -> float:
        grids = [costs.grid(Candidate(quantization=scheme, kernels=k)) for k in (None, times.kernels.digest)]
        return float(grids[0].token_graph_s[0] - grids[1].token_graph_s[0])

    for scheme, seconds in ((Bf16(), 90e-6), (Fp8(scale="tensor"), 50e-6), (W4A16(), 30e-6), (Mxfp4(), 20e-6)):
        assert gain(scheme) == pytest.approx(48 * seconds, rel=1e-6)
    assert gain(W4A16(group_size=64)) == pytest.approx(48 * 90e-6), "timed in groups of 128 alone: bf16 stands in"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_experts_that_an_engine_has_no_file_for_are_left_out_with_a_line(engine, tmp_path: Path) -> None:
    kept(tmp_path, [r for name in ("bf16", "mxfp4") for r in experts(name, 9e-6)], operator="fused_moe")
    handed = hand_over(found(tmp_path).profile, engine)
    (file,) = handed.files
    assert "E=128,N=768" in file
    assert "dtype" not in file
    assert handed.skipped == (f"fused_moe mxfp4: no file of {engine} is known for it",)
