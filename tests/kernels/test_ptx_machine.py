"""The PTX evaluator's threads, memory and matrices, and all that it refuses: nothing here needs Triton."""

from __future__ import annotations

import re

import numpy as np
import pytest

from .ptx import warp_group
from .ptx.bare import RANDOM, run, words
from .ptx.parse import UnknownError


def test_threads_that_part_meet_again() -> None:
    """Each counts to its own number, odd ones by another way; all of the warp must be back for the shuffle."""
    code = """
    mov.b32 %r0, 0;
    and.b32 %r3, %r21, 1;
    setp.eq.b32 %p1, %r3, 1;
    @%p1 bra odd;
again:
    setp.ge.u32 %p2, %r0, %r1;
    @%p2 bra together;
    add.s32 %r0, %r0, 1;
    bra.uni again;
odd:
    mul.lo.s32 %r0, %r1, 3;
together:
    shfl.sync.bfly.b32 %r0, %r0, 1, 31, -1;
"""
    times = RANDOM.integers(0, 9, 64, np.uint32)
    wanted = np.where(np.arange(64) % 2, times * 3, times)
    for threads in (32, 64):
        for apart in (False, True):
            got = run(code, times, threads=threads, apart=apart)
            assert (got == wanted.reshape(-1, 2)[:, ::-1].reshape(-1)).all()
    with pytest.raises(UnknownError, match="threads of a warp part"):
        run(code.replace("@%p1 bra odd", "@%p1 bra.uni odd"), times)


def test_threads_wait_for_the_rest_of_their_warp() -> None:
    """Those that come by a way that stands behind the shuffle."""
    code = """
    and.b32 %r3, %r21, 3;
    setp.eq.b32 %p1, %r3, 2;
    @%p1 bra later;
together:
    vote.sync.ballot.b32 %r4, %p1, -1;
    shfl.sync.idx.b32 %r0, %r1, 2, 31, -1;
    xor.b32 %r0, %r0, %r4;
    bra.uni done;
later:
    add.s32 %r1, %r1, 5;
    bra.uni together;
done:
"""
    x = words(64)
    assert (run(code, x, threads=64) == (x[[2, 34]].repeat(32) + np.uint32(5)) ^ np.uint32(0x44444444)).all()


def test_numbers_passed_among_threads() -> None:
    x, lane = words(64), np.arange(64) % 32
    for code, source in (
        ("shfl.sync.bfly.b32 %r0, %r1, 5, 31, -1", np.arange(64) ^ 5),
        ("shfl.sync.up.b32 %r0, %r1, 3, 0, -1", np.arange(64) - np.where(lane >= 3, 3, 0)),
        ("shfl.sync.down.b32 %r0, %r1, 3, 31, -1", np.arange(64) + np.where(lane < 29, 3, 0)),
        ("shfl.sync.idx.b32 %r0, %r1, 7, 31, -1", np.arange(64) // 32 * 32 + 7),
        ("shfl.sync.idx.b32 %r0, %r1, 1, 0x181F, -1", np.arange(64) // 8 * 8 + 1),  # segments of eight
    ):
        assert (run(code + ";", x) == x[source]).all(), code
    sums = x.reshape(2, 32).sum(1, dtype=np.uint32)
    assert (run("redux.sync.add.s32 %r0, %r1, -1;", x) == sums.repeat(32)).all()
    least = x.view(np.int32).reshape(2, 32).min(1).view(np.uint32)
    assert (run("redux.sync.min.s32 %r0, %r1, -1;", x) == least.repeat(32)).all()


def test_what_nobody_wrote_is_rubbish() -> None:
    assert (run("mov.b32 %r0, %r7;") == 0xA5A5A5A5).all()
    half = "setp.eq.b32 %p1, %r21, 3;\n@%p1 mov.b32 %r0, 4;"
    assert (run(half) == np.where(np.arange(32) == 3, 4, 0xA5A5A5A5)).all()


EXCHANGE = """
    mov.b32 %r3, global_smem;
    shl.b32 %r4, %r21, 2;
    xor.b32 %r5, %r4, 128;
    add.s32 %r4, %r4, %r3;
    add.s32 %r5, %r5, %r3;
    st.shared.b32 [%r4], %r1;
    bar.sync 0;
    ld.shared.b32 %r0, [%r5];
"""


@pytest.mark.parametrize("apart", [False, True])
def test_a_missing_barrier_shows(apart: bool) -> None:
    """When warps run one after the other; in step they would never notice."""
    x = words(128)
    wanted = x.reshape(2, 2, 32)[:, ::-1].reshape(-1)
    assert (run(EXCHANGE, x, threads=64, apart=apart) == wanted).all()
    got = run(EXCHANGE.replace("bar.sync 0;", ""), x, threads=64, apart=apart)
    assert (got == wanted).all() != apart


@pytest.mark.parametrize("groups", [0, 1])
def test_copies_arrive_when_they_have_been_waited_for(groups: int) -> None:
    code = f"""
    mov.b32 %r3, global_smem;
    shl.b32 %r4, %r21, 2;
    add.s32 %r4, %r4, %r3;
    setp.lt.u32 %p1, %r21, 4;
    selp.b32 %r5, 0, 4, %p1;
    cp.async.ca.shared.global [%r4 + 0], [%rd2 + 0], 0x4, %r5;
    cp.async.commit_group;
    cp.async.wait_group {groups};
    ld.shared.b32 %r0, [%r4];
"""
    x = words(32)
    wanted = np.where(np.arange(32) < 4, 0, x) if groups == 0 else np.full(32, 0xA5A5A5A5)
    assert (run(code, x) == wanted).all()


def test_atomics_take_turns() -> None:
    code = """
    mov.b32 %r3, global_smem;
    setp.eq.b32 %p1, %r21, 0;
    @%p1 st.shared.b32 [%r3], 5;
    bar.sync 0;
    atom.relaxed.sys.shared.add.u32 %r0, [%r3], 2;
"""
    assert sorted(run(code).tolist()) == list(range(5, 69, 2))


PRODUCT = """
    mov.b32 %r5, global_smem;
    shl.b32 %r6, %r21, 4;
    add.s32 %r6, %r6, %r5;
    st.shared.v4.b32 [%r6], {%r1, %r2, %r3, %r4};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r7, %r8, %r9, %r10}, [%r6];
    ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%r11, %r12}, [%r6];
    mov.b32 %r13, 0;
    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r13, %r14, %r15, %r16}, {%r7, %r8, %r9, %r10},
        {%r11, %r12}, {%r13, %r13, %r13, %r13};
"""


def test_a_matrix_product_of_a_warp() -> None:
    """Thread t brings row t of 8 numbers: four 8 x 8 matrices, of which the first two, transposed, are the right
    operand too."""
    small = RANDOM.integers(-4, 5, (32, 8)).astype(np.float32)
    packed = np.ascontiguousarray(small.view(np.uint32) >> 16).astype(np.uint16).view(np.uint32)
    a = np.block([[small[:8], small[16:24]], [small[8:16], small[24:]]])
    wanted, lane = a @ small[:16], np.arange(32)
    for n in range(4):
        got = run(f"{PRODUCT}mov.b32 %r0, %r{13 + n};", *packed.T).view(np.float32)
        assert (got == wanted[lane // 4 + 8 * (n // 2), 2 * (lane % 4) + n % 2]).all()


def test_where_descriptors_point() -> None:
    """Rows of K in 128 bytes, the next eight rows 1024 further; 16-byte pieces swizzled by the row within eight."""
    swizzled = (1 << 62) | (1024 >> 4) << 32 | (1 << 16) | 2048 >> 4
    at = warp_group._offsets(swizzled, 16, 16, 2, False)
    assert at[0, :2].tolist() == [2048, 2050]
    assert at[1, 0] == 2048 + 128 + 16
    assert at[3, 9] == 2048 + 3 * 128 + ((1 ^ 3) << 4) + 2
    assert at[8, 0] == 2048 + 1024
    assert len(np.unique(at)) == 256
    further = warp_group._offsets(swizzled + 2, 16, 16, 2, False)  # the next 16 of K
    assert further[5, 0] == 2048 + 5 * 128 + ((2 ^ 5) << 4)
    plain = (256 >> 4) << 32 | (128 >> 4) << 16 | 1024 >> 4
    at = warp_group._offsets(plain, 16, 16, 2, False)
    assert (at[1, 0], at[0, 8], at[8, 0]) == (1024 + 16, 1024 + 128, 1024 + 256)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("frob.b32 %r0, %r1;", "frob.b32"),
        ("add.sat.s32 %r0, %r1, %r1;", "add.sat.s32"),
        ("mul.s32 %r0, %r1, %r1;", "mul.s32"),
        ("cvt.rz.bf16x2.f32 %r0, %r1, %r1;", "cvt.rz"),
        ("prmt.b32.f4e %r0, %r1, %r1, %r1;", "prmt"),
        ("fma.rz.f32 %r0, %r1, %r1, %r1;", "fma.rz"),
        ("ld.global.nc.b32 %r0, [%rd2];", "ld.global.nc"),
        ("bar.sync 1;", "bar.sync 1"),
        ("call foo;", "call"),
        ("mov.u32 %r0, %clock;", "%clock"),
        ("mov.b32 %r0, %r99;", "%r99"),
        (".local .b8 stack[8];", "directive"),
        ("add.s64 %rd2, %rd2, 2;\nld.global.b32 %r0, [%rd2];", "misaligned"),
        ("add.s64 %rd2, %rd2, 4096;\nld.global.b32 %r0, [%rd2];", "outside"),
        ("mov.b32 %r3, global_smem;\nld.shared.b32 %r0, [%r3 + 1024];", "outside"),
        ("rem.s32 %r0, %r1, 0;", "division by zero"),
        ("setp.eq.b32 %p1, %r21, 3;\n@%p1 ret;\nshfl.sync.bfly.b32 %r0, %r1, 1, 31, -1;", "not all threads of a warp"),
        ("setp.lt.u32 %p1, %r21, 32;\n@%p1 ret;\nbar.sync 0;", "for some that have ended"),
    ],
)
def test_what_is_not_known_or_not_allowed_is_refused(code: str, reason: str) -> None:
    with pytest.raises(UnknownError, match=re.escape(reason)):
        run(code, words(64), threads=64)
