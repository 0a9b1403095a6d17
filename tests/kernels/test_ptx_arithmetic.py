"""The PTX evaluator's arithmetic, against what the PTX ISA says of it: nothing here needs Triton."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from .ptx import numbers
from .ptx.bare import RANDOM, bits, run, words


def test_prmt_takes_bytes_and_copies_signs() -> None:
    known = {0x3210: 0x44332211, 0x7654: 0x887F6655, 0x0000: 0x11111111, 0xFEDC: 0xFF000000}
    for selector, wanted in known.items():
        assert run(f"prmt.b32 %r0, %r1, %r2, {selector};", [0x44332211], [0x887F6655])[0] == wanted
    a, b, selectors = words(), words()[::-1], RANDOM.integers(0, 2**16, 256, np.uint32)
    for x, y, selector, got in zip(a, b, selectors, run("prmt.b32 %r0, %r1, %r2, %r3;", a, b, selectors), strict=True):
        eight = [*int(x).to_bytes(4, "little"), *int(y).to_bytes(4, "little")]
        codes = [int(selector) >> 4 * n & 15 for n in range(4)]
        wanted = [(255 if eight[c & 7] >= 128 else 0) if c >= 8 else eight[c] for c in codes]
        assert got == int.from_bytes(bytes(wanted), "little")


def test_lop3_by_brute_force() -> None:
    """Bit by bit, all 256 tables; and the tables that the document derives from 0xF0, 0xCC, 0xAA."""
    a, b, c = 0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA
    for table in range(256):
        assert run(f"lop3.b32 %r0, %r1, %r2, %r3, {table};", [a], [b], [c])[0] == table * 0x01010101
    x, y, z = words(), words()[::-1], RANDOM.integers(0, 2**32, 256, np.uint32)
    for table, wanted in ((0xEA, (x & y) | z), (0x96, x ^ y ^ z), (0xCA, (x & y) | (~x & z)), (0x1A, (x & y | z) ^ x)):
        assert (run(f"lop3.b32 %r0, %r1, %r2, %r3, {table};", x, y, z) == wanted).all()


def test_shifts_and_fields() -> None:
    a, by = words(), RANDOM.integers(0, 70, 256, np.uint32)
    wide = [int(x) for x in a]
    signed = [x - 2**32 if x >= 2**31 else x for x in wide]
    for code, wanted in (
        ("shl.b32 %r0, %r1, %r2", [x << int(n) & 0xFFFFFFFF for x, n in zip(wide, by, strict=True)]),
        ("shr.u32 %r0, %r1, %r2", [x >> int(n) for x, n in zip(wide, by, strict=True)]),
        ("shr.s32 %r0, %r1, %r2", [x >> int(n) & 0xFFFFFFFF for x, n in zip(signed, by, strict=True)]),
        ("bfe.u32 %r0, %r1, %r2, 5", [x >> int(n) & 31 for x, n in zip(wide, by, strict=True)]),
        ("bfe.s32 %r0, %r1, 28, 9", [x >> 28 & 0xFFFFFFFF for x in signed]),
        ("bfe.s32 %r0, %r1, 3, 2", [((x >> 3 & 3) ^ 2) - 2 & 0xFFFFFFFF for x in wide]),
        ("shf.l.wrap.b32 %r0, %r1, 7, %r2", [7 << n % 32 & 0xFFFFFFFF | x >> 32 - n % 32 if n % 32 else 7
                                             for x, n in zip(wide, map(int, by), strict=True)]),
        ("shf.r.clamp.b32 %r0, %r1, 7, %r2", [(7 << 32 | x) >> min(int(n), 32) & 0xFFFFFFFF
                                              for x, n in zip(wide, by, strict=True)]),
    ):  # fmt: skip
        assert run(code + ";", a, by).tolist() == wanted, code


def test_products_and_quotients_of_integers() -> None:
    a, b = words(), words()[::-1]
    b = np.where(b == 0, 1, b)
    pairs = [(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    signed = [tuple(n - 2**32 if n >= 2**31 else n for n in pair) for pair in pairs]
    for code, wanted in (
        ("mul.hi.u32 %r0, %r1, %r2", [x * y >> 32 for x, y in pairs]),
        ("mul.hi.s32 %r0, %r1, %r2", [x * y >> 32 & 0xFFFFFFFF for x, y in signed]),
        ("mul.lo.s32 %r0, %r1, %r2", [x * y & 0xFFFFFFFF for x, y in signed]),
        ("div.s32 %r0, %r1, %r2", [int(Fraction(x, y)) & 0xFFFFFFFF for x, y in signed]),
        ("rem.s32 %r0, %r1, %r2", [x - int(Fraction(x, y)) * y & 0xFFFFFFFF for x, y in signed]),
        ("mul.wide.s32 %rd3, %r1, %r2;\nmov.b64 {_, %r0}, %rd3", [x * y >> 32 & 0xFFFFFFFF for x, y in signed]),
        ("mad.wide.u32 %rd3, %r1, %r2, %rd1;\ncvt.u32.u64 %r0, %rd3", [(x * y + 4 * n) & 0xFFFFFFFF
                                                                       for n, (x, y) in enumerate(pairs)]),
    ):  # fmt: skip
        assert run(code + ";", a, b).tolist() == wanted, code


def nearest_bf16(value: Fraction) -> float:
    """Of all bfloat16 numbers, by comparing fractions."""
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = max(size.numerator.bit_length() - size.denominator.bit_length() - 1, -126)
    while size >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - 7)
    rounded = round(size / unit) * unit  # Python's round is to even
    return float(rounded) * (1 if value > 0 else -1)


def test_fma_of_bfloat16_rounds_once() -> None:
    """Also where a sum, rounded to float32 or float64 first, would become a tie."""
    count = 2000
    parts = RANDOM.integers(0, 2**16, (3, count)).astype(np.uint16)
    parts = parts & 0x3FFF | 0x3000  # exponents that meet
    parts |= (RANDOM.integers(0, 2, (3, count)) << 15).astype(np.uint16)
    parts[:, 0] = [0x3F80 | 1, 0x3F80 | 3, 0x2F00]  # 1.0078125 * 1.0234375 plus half of a half of a last bit
    a, b, c = (numbers.from_bf16(part) for part in parts)
    packed = [part.astype(np.uint32) | part[::-1].astype(np.uint32) << 16 for part in parts]
    got = run("fma.rn.bf16x2 %r0, %r1, %r2, %r3;", *packed)
    wanted = np.array(
        [
            nearest_bf16(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)))
            for x, y, z in zip(a, b, c, strict=True)
        ]
    )
    assert (numbers.from_bf16((got & 0xFFFF).astype(np.uint16)) == wanted).all()
    assert (numbers.from_bf16((got >> 16).astype(np.uint16)) == wanted[::-1]).all()


@pytest.mark.parametrize(("format", "last"), [(numbers.BF16, 8), (numbers.FLOAT32, 24)])
def test_a_tie_but_for_what_float64_does_not_hold(format: tuple[int, int, float], last: int) -> None:
    one, tie, bit = np.ones(1), np.array([1 + 2.0**-last]), np.array([2.0**-100])
    for c, wanted in ((bit, 1 + 2.0 ** (1 - last)), (-bit, 1.0), (0 * bit, 1.0)):
        assert numbers.fused(tie, one, c, format)[0] == wanted


def test_float32_arithmetic() -> None:
    nan, inf = np.nan, np.inf
    values = np.concatenate([bits(0.0, -0.0, nan, inf, -inf, 1e-45, 1e38, -3.5), words(56)])
    a, b = np.repeat(values, len(values)), np.tile(values, len(values))
    x, y = (word.view(np.float32) for word in (a, b))
    with np.errstate(all="ignore"):
        for code, wanted in (
            ("add.f32 %r0, %r1, %r2", x + y), ("sub.f32 %r0, %r1, %r2", x - y), ("mul.f32 %r0, %r1, %r2", x * y),
            ("div.rn.f32 %r0, %r1, %r2", x / y), ("max.f32 %r0, %r1, %r2", np.fmax(x, y)),
            ("min.NaN.f32 %r0, %r1, %r2", np.minimum(x, y)),
        ):  # fmt: skip
            got = run(code + ";", a, b, threads=64).view(np.float32)
            same = (got == wanted) & (np.signbit(got) == np.signbit(wanted))
            zero = (got == 0) & (wanted == 0) & (code[:3] in ("max", "min"))  # numpy takes either zero
            assert (same | zero | (np.isnan(got) & np.isnan(wanted))).all(), code
    assert run("mul.f32 %r0, %r1, %r1;", bits(nan))[0] == 0x7FFFFFFF
    assert run("mul.ftz.f32 %r0, %r1, %r2;", bits(1e-30), bits(-1e-10))[0] == 0x80000000
    assert run("max.f32 %r0, %r1, %r2;", bits(-0.0), bits(0.0))[0] == 0
    assert run("min.xorsign.abs.f32 %r0, %r1, %r2;", bits(-500.0), bits(448.0)).view(np.float32)[0] == -448


def test_conversions() -> None:
    """The first of two numbers becomes the high half; e4m3 saturates and keeps NaN."""
    assert run("cvt.rn.bf16x2.f32 %r0, %r1, %r2;", bits(1.0), bits(-2.0))[0] == 0x3F80C000
    assert run("cvt.rn.f16x2.f32 %r0, %r1, %r2;", bits(1.0), bits(-65520.0))[0] == 0x3C00FC00
    pair = "cvt.rn.satfinite.e4m3x2.f32 %rs1, %r1, %r2;\ncvt.u32.u16 %r0, %rs1;"
    assert run(pair, bits(1.0), bits(-1e9))[0] == 0x38FE
    assert run(pair, bits(np.nan), bits(np.inf))[0] == 0x7F7E
    x = np.concatenate([RANDOM.normal(0, 3, 3000), RANDOM.normal(0, 300, 3000), RANDOM.normal(0, 0.01, 2000)])
    x = np.concatenate([x.astype(np.float32), np.ldexp(np.arange(64, dtype=np.float32) / 8 + 0.0625, -5)])
    wanted = torch.from_numpy(x).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert (run(pair, x.view(np.uint32)[::-1], x.view(np.uint32), threads=64) & 255 == wanted).all()
    codes = np.arange(256, dtype=np.uint32)
    got = run("cvt.u16.u32 %rs1, %r1;\ncvt.rn.f16x2.e4m3x2 %r0, %rs1;", codes | codes[::-1] << 8)
    wide = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).half().numpy()
    low = (got & 0xFFFF).astype(np.uint16).view(np.float16)
    assert ((low == wide) | (np.isnan(low) & np.isnan(wide))).all()
    for value, to, wanted in (
        (2.5, "rni.s32", 2), (-2.5, "rzi.s32", -2), (3e9, "rzi.s32", 2**31 - 1), (-3e9, "rzi.s32", -(2**31)),
        (np.nan, "rzi.s32", 0), (-1.0, "rzi.u32", 0), (5e9, "rzi.u32", 2**32 - 1), (-2.5, "rmi.s32", -3),
    ):  # fmt: skip
        assert run(f"cvt.{to}.f32 %r0, %r1;", bits(value))[0] == wanted & 0xFFFFFFFF, (value, to)
    assert run("cvt.rzi.s64.f32 %rd3, %r1;\nmov.b64 {_, %r0}, %rd3;", bits(np.nan))[0] == 0x80000000
    assert run("cvt.rn.f32.s32 %r0, %r1;", [0xFEFFFFFF]).view(np.float32)[0] == -16777216  # a tie to even


def test_comparisons_with_nan() -> None:
    nan = bits(np.nan)
    for how, wanted in (("lt", 0), ("ltu", 1), ("ne", 0), ("neu", 1), ("num", 0), ("nan", 1), ("eq", 0)):
        assert run(f"setp.{how}.f32 %p1, %r1, 0f3F800000;\nselp.b32 %r0, 1, 0, %p1;", nan)[0] == wanted, how
    assert run("setp.lt.s32 %p1, %r1, 0;\nselp.b32 %r0, 1, 0, %p1;", [0xFFFFFFFF])[0] == 1
    assert run("setp.lt.u32 %p1, %r1, 7;\n@!%p1 mov.b32 %r0, 9;\n@%p1 mov.b32 %r0, 8;", [6, 7]).tolist() == [8, 9]
