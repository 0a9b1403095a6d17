"""Ahead-of-time compilation for a Hopper GPU on a machine that has none."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fwopt_kernels.aot import Job, Outcome, compile_all, judge
from fwopt_kernels.compiler import Resources
from fwopt_kernels.contract import ARCHITECTURES, NUM_STAGES, NUM_WARPS, Space, variant
from fwopt_kernels.registry import OPERATORS, load

from .conftest import run_apart

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

SM_90 = ARCHITECTURES["sm_90"]
SMALL = Resources(label="", shared_bytes=1024, registers=32, stack_bytes=0, threads=128, compile_s=0.5)


@pytest.fixture(scope="module")
def defaults(compile_cache: Path) -> list[Outcome]:
    jobs = [
        Job(target, format, default, "sm_90")
        for target in OPERATORS.values()
        for format in load(target).formats
        for default in load(target).space(format).defaults
    ]
    outcomes = list(compile_all(jobs))
    assert {o.job for o in outcomes} == set(jobs)
    return outcomes


def test_every_default_runs_on_hopper(defaults: list[Outcome]) -> None:
    for outcome in defaults:
        assert outcome.failure is None
        assert outcome.rejection is None
        for kernel in outcome.kernels:
            assert 16 <= kernel.registers <= 255
            assert kernel.compile_s > 0
        assert outcome.kernels[0].threads == 32 * outcome.job.variant.num_warps  # others may have options of their own


def test_what_is_known_is_not_compiled_again(defaults: list[Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fwopt_kernels.aot.ask_all", None)
    assert list(compile_all([o.job for o in defaults])) == defaults


def test_too_much_shared_memory_is_rejected_with_the_number(
    compile_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    job = Job("planted:GREEDY", "bf16", variant(8, 6, BLOCK=128), "sm_90")
    (outcome,) = compile_all([job])
    assert outcome.failure is None
    needed = outcome.kernels[0].shared_bytes
    assert needed > 232_448
    assert outcome.rejection == f"{needed:,} bytes of shared memory; sm_90 has 232,448"


def test_a_failure_is_one_line_and_not_remembered(compile_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    before = sorted(compile_cache.rglob("*.json"))
    (outcome,) = compile_all([Job("planted:GREEDY", "bf16", variant(8, 6, BLOCK=100), "sm_90")])
    assert outcome.failure is not None
    assert "\n" not in outcome.failure
    assert "power of 2" in outcome.failure
    assert sorted(p for p in compile_cache.glob("fwopt/**/*.json")) == [p for p in before if "fwopt" in p.parts]


def test_a_compiler_that_crashes_is_one_failed_variant(
    compile_cache: Path, monkeypatch: pytest.MonkeyPatch, defaults: list[Outcome]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    deadly = Job("planted:KILLS_ITS_COMPILER", "bf16", variant(4, 1), "sm_90")
    greedy = Job("planted:GREEDY", "bf16", variant(4, 6, BLOCK=128), "sm_90")
    for workers in (1, 2):
        outcomes = {o.job: o for o in compile_all([deadly, greedy, replace(deadly, arch="sm_100")], workers=workers)}
        assert outcomes[deadly].failure == "compiling: the process died of SIGSEGV"
        assert outcomes[replace(deadly, arch="sm_100")].failure == outcomes[deadly].failure
        assert outcomes[greedy].failure is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shared_bytes": 232_448}, None),
        ({"shared_bytes": 232_449}, "232,449 bytes of shared memory; sm_90 has 232,448"),
        ({"stack_bytes": 48}, "48 bytes of stack a thread: registers spill to memory"),
        ({"registers": 64, "threads": 1024}, None),
        ({"registers": 65, "threads": 1024}, "65 registers x 1024 threads; sm_90 has 65,536"),
    ],
)
def test_limits(change: dict[str, int], reason: str | None) -> None:
    assert judge(replace(SMALL, **change), SM_90) == reason


def test_rows_are_read_sixteen_bytes_at_a_time() -> None:
    """Asked of the PTX, in a process where kernels are compiled whatever this one does.

    On their way to a matrix product they are copied as wide, while others are multiplied. Only the rotary table, one
    row a token, is read by single elements: cosines and sines, for queries and for keys; ids are no rows, the
    merged heads of attention are small, its sinks are a number a head. Of a rank in one block there is nothing to
    copy ahead.
    """
    code = (
        "from fwopt_kernels.compiler import compiled_kernel\n"
        "from fwopt_kernels.contract import ARCHITECTURES\n"
        "from fwopt_kernels.registry import OPERATORS, load\n"
        "for target in OPERATORS.values():\n"
        "    op = load(target)\n"
        "    if 'bf16' not in op.formats or op.name == 'sampling': continue  # test_gemm.py, test_sampling.py\n"
        "    for one in op.launches('bf16', op.space('bf16').default):\n"
        "        if one.label == 'sinks': continue\n"
        "        compiled = compiled_kernel(one, ARCHITECTURES['sm_90'])\n"
        "        ptx = compiled.asm['ptx']\n"
        "        product = '= tt.dot' in compiled.asm['ttgir'] and one.label != 'expand, rank in one block'\n"
        "        wide = 'cp.async.cg.shared.global' if product else 'ld.global.v4.b32'\n"
        "        rows = one.label not in ('align', 'merge')\n"
        "        assert not rows or (wide in ptx and 'st.global.v4.b32' in ptx), (target, one.label)\n"
        "        assert 'cp.async.ca' not in ptx, (target, one.label)\n"
        "        single = sum('ld.global' in line and '.b16' in line for line in ptx.splitlines())\n"
        "        table = 4 if 'table' in one.kernel.arg_names else 0\n"
        "        assert single <= table, (target, one.label, single)\n"
    )
    run_apart(code, interpret=False)


def test_a_space_has_its_default_first_and_only_what_is_allowed() -> None:
    space = Space(
        {"BLOCK": (1, 2), NUM_WARPS: (4, 8), NUM_STAGES: (1,)},
        default=variant(8, 1, BLOCK=2),
        allowed=lambda v: v["BLOCK"] == 2,
    )
    assert [v.id for v in space.variants()] == ["block2-w8-s1", "block2-w4-s1"]


def test_many_rows_have_a_default_of_their_own() -> None:
    w4a16 = load(OPERATORS["w4a16"]).space("g128")
    assert [w4a16.default_for({"m": m, "n": 64, "k": 64}) for m in (1, 63, 64)] == [
        w4a16.default, w4a16.default, w4a16.defaults[1],
    ]  # fmt: skip
    moe, layer = load(OPERATORS["fused_moe"]).space("bf16"), {"experts": 128, "top_k": 8}
    assert moe.default_for({**layer, "tokens": 256}) == moe.default  # 16 rows an expert
    assert moe.default_for({**layer, "tokens": 512}) == moe.defaults[1] != moe.default
    norm = load(OPERATORS["rms_norm"]).space("bf16")
    assert norm.default_for({"rows": 4096, "columns": 4096}) == norm.default


@pytest.mark.parametrize("target", OPERATORS.values())
def test_spaces_of_the_operators(target: str) -> None:
    operator = load(target)
    for format in operator.formats:
        space = operator.space(format)
        variants = space.variants()
        assert len({v.id for v in variants}) == len(variants)
        for default in space.defaults:
            assert space.allowed(default)
            assert default in set(space._product())


def test_the_registry_loads_neither_torch_nor_triton() -> None:
    code = "import sys, fwopt_kernels.registry, fwopt_kernels.contract; print({'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
