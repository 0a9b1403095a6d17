"""What runs on a GPU instead of what the interpreter takes: compiled, executed here, compared with torch, bit for bit.

For a process where kernels are compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fwopt_kernels import mxfp4, w4_format
from fwopt_kernels.contract import PLAIN, Variant
from fwopt_kernels.correctness import differences
from fwopt_kernels.registry import OPERATORS

from . import tested
from .launch import executed

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
COUNT = 4096
_E2M1 = torch.tensor([*mxfp4.MAGNITUDES, *(-m for m in mxfp4.MAGNITUDES)], dtype=torch.float64)
_EVERY_BF16 = torch.arange(65536).to(torch.uint16).view(BF16)


def same(got: Tensor, want: Tensor) -> None:
    """Each bit, so -0 is not 0; any NaN is NaN."""
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    kind = torch.int16 if got.element_size() == 2 else torch.uint8
    missing = want.float().isnan()
    assert torch.equal(got.float().isnan(), missing), "NaN"
    wrong = ((got.view(kind) != want.view(kind)) & ~missing).flatten().nonzero()[:, 0]
    assert not len(wrong), (len(wrong), got.flatten()[wrong[:5]], want.flatten()[wrong[:5]])


def _nothing(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.full(shape, -128 if dtype == torch.int8 else float("nan")).to(dtype)


def _values(mx: bool) -> Tensor:
    return (_E2M1 * 2.0**-126 if mx else torch.arange(128.0, 144.0)).to(BF16)


def _every_byte(rows: int, inner: int) -> Tensor:
    """(rows, inner) codes whose repacked bytes are all that there are."""
    pairs = (torch.arange(rows * inner // 2).reshape(rows, inner // 32, 1, 16) * 37 % 256).to(torch.uint8)
    return torch.cat((pairs & 15, pairs >> 4), 2).reshape(rows, inner)


def codes() -> None:
    """Every byte, at each place of a word, in both formats; and in tiles, in their natural order."""
    every = torch.cat([(torch.arange(256) * step + 1) % 256 for step in (1, 3, 85, 127)]).to(torch.uint8)
    for mx in (False, True):
        low, high = _nothing(len(every)), _nothing(len(every))
        tested.nibbles[(1,)](every, low, high, MX=mx, COUNT=len(every), **PLAIN)
        same(low, _values(mx)[(every & 15).int()])
        same(high, _values(mx)[(every >> 4).int()])
        for rows, inner in ((64, 128), (16, 256)):
            wanted, out = _every_byte(rows, inner), _nothing(rows, inner)
            packed = w4_format.pack(wanted.int(), torch.ones(rows, inner // 128, dtype=BF16), None)
            tiles = w4_format.repack(packed).codes[: rows // 16].contiguous()
            tested.codes[(1,)](tiles, out, MX=mx, BLOCK_N=rows, BLOCK_K=inner, **PLAIN)
            same(out, _values(mx)[wanted.int()])


def scales() -> None:
    """Bfloat16 scales of any bits, NaN among them; all zero points; all of MXFP4's scales."""
    for groups, rows in ((1, 64), (4, 64), (2, 128)):
        many = torch.arange(rows * groups).reshape(rows, groups)
        nothing = torch.zeros(rows, groups * 16, dtype=torch.uint8)
        scale = (many * 997 % 65536).to(torch.uint16).view(BF16)
        ones = torch.ones(rows, groups, dtype=BF16)
        zeros, exponent = many * 7 % 16, (many * 5 % (mxfp4.LARGEST + 1)).to(torch.uint8)
        stored = w4_format.pack(torch.zeros(rows, groups * 128), scale, None)
        words = w4_format.repack(stored).scales
        of_zeros = w4_format.repack(w4_format.pack(torch.zeros(rows, groups * 128), ones, zeros)).zeros
        of_mx = w4_format.repack(w4_format.StoredW4(nothing, exponent, None)).scales
        powers = torch.ldexp(torch.ones(exponent.shape), exponent.int() + mxfp4.BIAS - 127)
        for packed, wanted, name in (
            (words, scale, "scale"), (of_zeros, (-128.0 - zeros).to(BF16), "zero"), (of_mx, powers.to(BF16), "mx"),
        ):  # fmt: skip
            assert packed is not None
            out = _nothing(rows, groups)
            tested.words[(1,)](
                packed[:groups].contiguous(), out, MX=name == "mx", BYTES=name != "scale", GROUPS=groups, BLOCK_N=rows,
                **PLAIN,
            )  # fmt: skip
            same(out, wanted)


def mx_weights() -> None:
    """Every code by every scale. Zeros have no sign: Triton 3.6 compiles the constant -0.0 as 0.0."""
    for first in (0, 64, mxfp4.LARGEST + 1 - 64):
        scale = (first + torch.arange(64)).to(torch.uint8)[:, None].repeat(1, 4)
        wanted = _every_byte(64, 128)
        stored = w4_format.StoredW4(wanted[:, ::2] | wanted[:, 1::2] << 4, scale, None)
        weights, out = w4_format.repack(stored), _nothing(64, 128)
        tested.mxfp4[(1,)](weights.codes, weights.scales, out, 128, BLOCK_N=64, BLOCK_K=128, **PLAIN)
        same(out + 0, (w4_format.dequantized(stored, torch.float64) * 2.0**-mxfp4.SHIFT).to(BF16) + 0)


def fma() -> None:
    """Codes less zero points; numbers of -15 to 15 by every scale that bfloat16 has."""
    code, zero = torch.arange(16).repeat(256), torch.arange(16).repeat_interleave(16).repeat(16)
    out = _nothing(COUNT)
    tested.fma[(1,)](
        (128.0 + code).to(BF16), torch.ones(COUNT, dtype=BF16), (-128.0 - zero).to(BF16), out, COUNT=COUNT, **PLAIN
    )
    same(out, (code - zero).to(BF16))
    for value in (-15.0, -1.0, 0.0, 7.0, 13.0):
        out, number = _nothing(65536), torch.full((65536,), value).to(BF16)
        minus_zero = torch.full((65536,), -0.0).to(BF16)
        tested.fma[(65536 // COUNT,)](_EVERY_BF16, number, minus_zero, out, COUNT=COUNT, **PLAIN)
        same(out, (_EVERY_BF16.float() * value).to(BF16))  # float32 holds the product


def rounding() -> None:
    """Every bfloat16, random bits, and each number halfway between two of e4m3, with its neighbours in float32."""
    steps = torch.arange(127).to(torch.uint8).view(FP8).float()
    middles = torch.cat([steps, (steps[1:] + steps[:-1]) / 2, torch.tensor([464.0, 480.0, 1e30])])
    infinity = torch.tensor(torch.inf)
    edges = torch.cat([middles, middles.nextafter(infinity), middles.nextafter(-infinity)])
    any_bits = torch.randint(-(2**31), 2**31, (4 * COUNT,), generator=torch.Generator().manual_seed(3)).int()
    halves = torch.arange(-300, 300, 0.25)
    whole = torch.cat([halves, halves.nextafter(torch.zeros(())), torch.tensor([torch.inf, -torch.inf, 1e30])])
    floats = torch.cat([_EVERY_BF16.float(), edges, -edges, any_bits.view(torch.float32)])
    for to, x, wanted in (
        ("bf16", floats, lambda x: x.to(BF16)),
        ("fp8", floats, lambda x: x.clamp(-448, 448).to(FP8)),
        ("int8", whole, lambda x: x.clamp(-127, 127).round().to(torch.int8)),
    ):
        x = torch.nn.functional.pad(x, (0, -len(x) % COUNT))
        out = _nothing(len(x), dtype=wanted(x[:1]).dtype)
        tested.rounded[(len(x) // COUNT,)](x, out, TO=to, COUNT=COUNT, **PLAIN)
        same(out, wanted(x))


def halves() -> None:
    """Numbers of vLLM's 4-bit experts, e4m3 of a cache, pairs of bfloat16: low before high."""
    byte = torch.arange(256).to(torch.uint8)
    pair = torch.stack((byte, byte.flip(0)), 1).flatten()
    any_bits = torch.randint(-(2**31), 2**31, (256,), generator=torch.Generator().manual_seed(4)).int()
    for kind, words, wanted in (
        ("nibble", byte, (torch.stack((byte & 15, byte >> 4), 1).flatten().double() - 8).to(BF16)),
        ("e4m3", pair.view(torch.int16), pair.view(FP8).half()),
        ("pair", any_bits, any_bits.view(BF16)),
    ):
        out = _nothing(512, dtype=wanted.dtype)
        tested.halves[(1,)](words, out, KIND=kind, COUNT=256, **PLAIN)
        same(out, wanted)


def functions() -> None:
    with executed():
        for check in (codes, scales, mx_weights, fma, rounding, halves):
            check()


def operators(jobs: list[tuple[str, str, dict[str, int], Variant, int]]) -> None:
    """(operator, format, shape, variant, padding): whole kernels, by the operator's own tolerance; with all warps in
    step, and one after the other."""
    for name, format, shape, chosen, padding in jobs:
        for apart in (False, True):
            with executed(apart=apart) as names:
                found = differences(OPERATORS[name], format, shape, variant=chosen, seed=5, padding=padding)
            assert names, f"{name}: no kernel was executed"
            assert found == [], (name, format, chosen.id, apart, found)
