"""Matrix products with quantized weights: layouts, edges, independence of rows, compiled instructions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from fwopt_kernels.contract import Variant, variant
from fwopt_kernels.registry import OPERATORS, load

from .conftest import run_apart

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")
persistent = pytest.importorskip("fwopt_kernels.persistent")  # loads Triton
WHOLE, SHARED = persistent.WHOLE, persistent.SHARED

W4 = variant(4, 4, BLOCK_M=16, BLOCK_N=64, BLOCK_K=128, SPLIT_K=1, GROUP_M=1)
FP8 = variant(4, 4, BLOCK_M=16, BLOCK_N=64, SPLIT_K=1, GROUP_M=1, SWAP_AB=1, TMA=0)


def changed(one: Variant, **constants: int) -> Variant:
    return variant(one.num_warps, one.num_stages, **{**dict(one.constants), **constants})


def test_codes_are_packed_as_compressed_tensors_packs_them() -> None:
    """Written out by hand: value k of a row in bits 4 * (k % 8); zero points packed along the channels."""
    from fwopt_kernels import w4_format

    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [15, 0, 0, 0, 0, 0, 0, 15]])
    stored = w4_format.pack(codes, torch.ones(2, 1, dtype=torch.bfloat16), torch.tensor([[3], [15]]))
    assert [f"{word & 0xFFFFFFFF:08x}" for word in stored.packed.flatten().tolist()] == ["87654321", "f000000f"]
    assert stored.zero_point is not None
    assert stored.zero_point.tolist() == [[0xF3]]
    assert w4_format.dequantized(stored, torch.float32).tolist() == [
        [-2, -1, 0, 1, 2, 3, 4, 5],
        [0, -15, -15, -15, -15, -15, -15, 0],
    ]


def test_mxfp4_is_read_as_checkpoints_store_it() -> None:
    """Written out by hand: low half first, the scale a power of two with bias 127, 255 NaN."""
    from fwopt_kernels import mxfp4, w4_format

    codes = torch.zeros(3, 16, dtype=torch.uint8)
    codes[:, :4] = torch.tensor([0x10, 0x72, 0xF9, 0x53])
    scale = torch.tensor([[128], [0], [255]], dtype=torch.uint8)
    stored = w4_format.StoredW4(codes, scale, None)
    numbers = torch.tensor([0.0, 0.5, 1.0, 6.0, -0.5, -6.0, 1.5, 3.0])
    found = w4_format.dequantized(stored, torch.float32)[:, :8]
    assert torch.equal(found[:2], torch.stack((numbers * 2, numbers * 2.0**-127)))
    assert bool(found[2].isnan().all())
    assert torch.equal(mxfp4.dense(codes[:2], scale[:2], torch.bfloat16)[:, :8], found[:2].to(torch.bfloat16))


def test_mxfp4_weights_are_exact() -> None:
    """Every code by every scale that its 8 bits of exponent leave room for: rows of the identity bring the weights."""
    code = (
        "import torch\n"
        "from fwopt_kernels import w4_format\n"
        "from fwopt_kernels.w4a16 import w4a16\n"
        "codes = torch.arange(32).repeat(127, 1).to(torch.uint8)[:, :16] * 17\n"
        "codes[:, 1::2] ^= 0x9\n"
        "scale = torch.arange(34, 161, dtype=torch.uint8)[:, None]\n"
        "stored = w4_format.StoredW4(codes, scale, None)\n"
        "out = torch.full((32, 127), float('nan'), dtype=torch.bfloat16)\n"
        "w4a16(torch.eye(32, dtype=torch.bfloat16), w4_format.repack(stored), out)\n"
        "want = w4_format.dequantized(stored, torch.float64)\n"
        "assert want.unique().numel() > 250 and torch.equal(out.double().T, want)\n"
    )
    run_apart(code, interpret=True)


@pytest.mark.parametrize("format", ["g32", "g64", "g128", "channel", "g128-zero", "mxfp4"])
def test_repacking_loses_nothing(format: str) -> None:
    from fwopt_kernels import w4_format

    case = load(OPERATORS["w4a16"]).case(format, {"m": 1, "n": 100, "k": 384}, 7)
    back = w4_format.unpacked(case.weights, torch.float64)
    assert torch.equal(back, w4_format.dequantized(case.stored, torch.float64))


@pytest.mark.parametrize(
    ("format", "k", "constants"),
    [
        ("g32", 160, {}),
        ("g32", 416, {"BLOCK_K": 256, "SPLIT_K": 4}),
        ("g64", 192, {"BLOCK_K": 256}),
        ("channel", 96, {}),
        ("g128", 384, {"BLOCK_K": 256, "SPLIT_K": 8}),
        ("g128-zero", 384, {"LATE_SCALE": 1, "SPLIT_K": 8}),
        ("g128", 640, {"LATE_SCALE": 1, "SPLIT_K": 2}),
        ("g128", 256, {"GROUP_M": 8, "BLOCK_M": 64}),
        ("channel", 32, {}),
        ("mxfp4", 160, {}),
        ("mxfp4", 416, {"BLOCK_K": 256, "SPLIT_K": 4}),
    ],
)
def test_edges_of_k_of_w4a16(format: str, k: int, constants: dict[str, int], interpreted: Any) -> None:
    """K that its padding or BLOCK_K does not divide; parts of K without a block."""
    shape = {"m": 9, "n": 40, "k": k}
    assert interpreted(OPERATORS["w4a16"], format, shape, variant=changed(W4, **constants), seed=k) == []


SEVERAL = """
import torch
from fwopt_kernels import int8_gemm, fp8_gemm, scaled_gemm, w4a16
from fwopt_kernels.contract import Variant, variant
from fwopt_kernels.correctness import faults
from fwopt_kernels.registry import OPERATORS, load
op, format, variant = load(OPERATORS[{name!r}]), {format!r}, {variant!r}
for m, n, k, multiprocessors in {calls!r}:
    case = op.case(format, {{"m": m, "n": n, "k": k}}, 5, padding=16)
    reference, before = op.reference(case), None
    for _ in range(2):
        case.out.fill_(float("nan"))
        if op.name == "w4a16":
            w4a16.launch(case.x, case.weights, case.out, variant=variant, multiprocessors=multiprocessors)
        else:
            facts = (int8_gemm if op.name == "int8_gemm" else fp8_gemm).FORMATS[format]
            scaled_gemm.launch(
                case.x, case.weight, case.out, format=facts, variant=variant, multiprocessors=multiprocessors
            )
        assert faults(case.results(), reference) == [], (m, n, k, multiprocessors)
        assert before is None or torch.equal(before, case.out), "another result the second time"
        before = case.out.clone()
"""
CALLS = [
    (150, 100, 400, 1),  # one program
    (150, 100, 400, 2),  # 6 tiles: whole waves, or, of 4 blocks of K, shares that begin and end with tiles
    (200, 100, 400, 3),  # 8 tiles: a wave of whole ones, then 5 tiles among 3
    (130, 60, 400, 2),  # 3 tiles of 4 blocks: the second one is cut in the middle
    (9, 70, 400, 5),  # fewer tiles than programs: 2 tiles among 5
    (9, 30, 400, 3),  # one tile: its parts are of 1, 1 and 2 blocks
    (9, 70, 130, 64),  # more programs than blocks of all tiles
]
"""Rows, channels, K, multiprocessors, for tiles of 64 x 64 and blocks of 128."""
TILES = variant(8, 3, BLOCK_M=64, BLOCK_N=64, BLOCK_K=128, GROUP_M=8, SPLIT_K=1, SWAP_AB=0, TMA=1)


@pytest.mark.parametrize("schedule", [WHOLE, SHARED])
@pytest.mark.parametrize(
    ("name", "format"),
    [("int8_gemm", "int8-row"), ("fp8_gemm", "fp8-row"), ("fp8_gemm", "fp8-block"), ("w4a16", "g32")],
)
def test_programs_that_work_through_several_tiles_leave_none_out(name: str, format: str, schedule: int) -> None:
    """To the bit the same when asked again."""
    multiple = 32 if name == "w4a16" else 16
    calls = [(m, n, k // multiple * multiple, programs) for m, n, k, programs in CALLS]
    one = changed(TILES, PERSIST=schedule)
    run_apart(SEVERAL.format(name=name, format=format, variant=one, calls=calls), interpret=True)


@pytest.mark.parametrize("tiles", [1, 2, 3, 5, 131, 132, 133, 192, 264, 500])
@pytest.mark.parametrize("k_blocks", [1, 2, 3, 32])
@pytest.mark.parametrize("at_once", [1, 3, 132])
def test_every_block_of_every_tile_is_in_one_share(tiles: int, k_blocks: int, at_once: int) -> None:
    plan = persistent.schedule(changed(TILES, PERSIST=SHARED), tiles, k_blocks, at_once)
    assert plan.programs <= at_once
    assert plan.whole % plan.programs == 0
    units = (tiles - plan.whole) * k_blocks
    starts = [p * units // plan.programs for p in range(plan.programs + 1)]
    shares = [end - start for start, end in pairwise(starts)]
    assert sum(shares) == units
    assert units == 0 or (min(shares) >= 1 and max(shares) - min(shares) <= 1)
    assert plan.parts or all(start % k_blocks == 0 for start in starts)
    whole = persistent.schedule(changed(TILES, PERSIST=WHOLE), tiles, k_blocks, at_once)
    assert (whole.programs, whole.whole, whole.parts) == (min(tiles, at_once), tiles, False)


INDEPENDENT = """
import torch
from fwopt_kernels.contract import Variant
from fwopt_kernels.registry import OPERATORS, load
op, format, variant = load(OPERATORS[{name!r}]), {format!r}, {variant!r}
case = op.case(format, {{"m": 20, "n": 48, "k": 256}}, 3)
op.run(case, variant)
before = case.out.clone()
x = case.x if isinstance(case.x, torch.Tensor) else case.x.values
x[:7], x[8:] = float("nan"), 3.0
op.run(case, variant)
assert torch.equal(case.out[7], before[7]) and bool(before.isfinite().all())
assert bool(case.out[9].isfinite().all()) and not any(torch.equal(case.out[i], before[i]) for i in (0, 9))
"""


@pytest.mark.parametrize(
    ("name", "format", "chosen"),
    [
        ("w4a16", "g128", W4),
        ("w4a16", "g128", changed(W4, SPLIT_K=2, LATE_SCALE=1)),
        ("w4a16", "mxfp4", changed(W4, SPLIT_K=2)),
        ("fp8_gemm", "fp8-row", changed(FP8, SPLIT_K=2)),
        ("fp8_gemm", "fp8-block", changed(FP8, SWAP_AB=0)),
    ],
)
def test_a_row_does_not_depend_on_the_others(name: str, format: str, chosen: Variant) -> None:
    """For one variant, to the bit: other rows, NaN among them, change nothing."""
    run_apart(INDEPENDENT.format(name=name, format=format, variant=chosen), interpret=True)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("fp8_gemm", "fp8-tensor"), ("fp8_gemm", "fp8-row"), ("fp8_gemm", "fp8-block"),
        ("int8_gemm", "int8-tensor"), ("int8_gemm", "int8-row"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    ("k", "constants"),
    [
        (144, {"SPLIT_K": 4}),
        (640, {"SPLIT_K": 2, "BLOCK_M": 64, "SWAP_AB": 0, "GROUP_M": 8}),
        (272, {"BLOCK_M": 128, "SWAP_AB": 0, "TMA": 1}),
    ],
)
def test_edges_of_k_of_8_bit_products(
    name: str, format: str, k: int, constants: dict[str, int], interpreted: Any
) -> None:
    shape = {"m": 9, "n": 200, "k": k}
    chosen = changed(FP8, **constants)
    assert interpreted(OPERATORS[name], format, shape, variant=chosen, seed=k, padding=16) == []


EXACT = """
import torch
from fwopt_kernels.contract import Variant, variant
from fwopt_kernels.registry import OPERATORS, load
op = load(OPERATORS["int8_gemm"])
case = op.case("int8-tensor", {{"m": 5, "n": 70, "k": 4096}}, 3)
case.x.values.fill_(127)
case.weight.values[:, :2048], case.weight.values[:, 2048:] = 127, -127
case.weight.values[:, 0] -= torch.arange(70, dtype=torch.int8)
case.x.scale.fill_(1.0), case.weight.scale.fill_(1.0)
wanted = (-127.0 * torch.arange(70)).bfloat16().expand(5, 70)
for one in {variants!r}:
    op.run(case, one)
    assert torch.equal(case.out, wanted), one.id
case = op.case("int8-row", {{"m": 20, "n": 70, "k": 1040}}, 4)
op.fallback(case)
wanted = case.out.clone()
for one in {variants!r}:
    case.out.fill_(float("nan"))
    op.run(case, one)
    assert torch.equal(case.out, wanted), one.id
"""


def test_sums_of_int8_are_exact_and_every_variant_gives_the_same_bits() -> None:
    """Sums on their way pass 2**24, from where float32 rounds; all but one product cancel in the end."""
    chosen = [
        FP8, changed(FP8, SPLIT_K=8), changed(FP8, SWAP_AB=0, BLOCK_M=64, SPLIT_K=2),
        changed(FP8, SWAP_AB=0, BLOCK_M=128, TMA=1), changed(FP8, BLOCK_K=256, SPLIT_K=4),
        changed(TILES, PERSIST=SHARED),
    ]  # fmt: skip
    run_apart(EXACT.format(variants=chosen), interpret=True)


def test_fp8_gemm_refuses_what_it_cannot_compute() -> None:
    from fwopt_kernels.fp8_gemm import fp8_gemm
    from fwopt_kernels.scaled_gemm import Scaled

    case = load(OPERATORS["fp8_gemm"]).case("fp8-block", {"m": 2, "n": 130, "k": 144}, 0)
    with pytest.raises(ValueError, match=r"fp8-row: x, weight and their scales must be .*\(2,\), \(130,\)\); got"):
        fp8_gemm(case.x, case.weight, case.out, format="fp8-row")
    narrow = [Scaled(one.values[:, :40], one.scale[:, :1]) for one in (case.x, case.weight)]
    with pytest.raises(ValueError, match="K divisible by 16; got 40"):
        fp8_gemm(narrow[0], narrow[1], case.out, format="fp8-block")
    apart = Scaled(torch.empty(2, 152).to(torch.float8_e4m3fn)[:, :144], case.x.scale)
    with pytest.raises(ValueError, match="x: rows must begin at multiples of 16 bytes; they are 152 apart"):
        fp8_gemm(apart, case.weight, case.out, format="fp8-block")
    with pytest.raises(ValueError, match=r"x: scales must be packed float32, got torch\.float64"):
        fp8_gemm(Scaled(case.x.values, case.x.scale.double()), case.weight, case.out, format="fp8-block")


def test_int8_gemm_refuses_what_it_cannot_compute() -> None:
    from fwopt_kernels.int8_gemm import int8_gemm
    from fwopt_kernels.scaled_gemm import Scaled

    case = load(OPERATORS["int8_gemm"]).case("int8-row", {"m": 2, "n": 130, "k": 144}, 0)
    with pytest.raises(ValueError, match=r"int8-tensor: x, weight and their scales must be .*\(1,\), \(130,\)\); got"):
        int8_gemm(case.x, case.weight, case.out, format="int8-tensor")
    unsigned = Scaled(case.weight.values.view(torch.uint8), case.weight.scale)
    with pytest.raises(ValueError, match=r"weight: int8_gemm int8-row multiplies torch\.int8, got torch\.uint8"):
        int8_gemm(case.x, unsigned, case.out, format="int8-row")
    long = Scaled(torch.zeros(1, 2**17, dtype=torch.int8), torch.ones(1))
    with pytest.raises(ValueError, match="int32 holds sums over K of 131071 at most; got 131072"):
        int8_gemm(long, long, case.out[:1, :1], format="int8-row")


def test_w4a16_refuses_what_it_cannot_compute() -> None:
    """Before anything is launched, so no GPU and no interpreter is needed."""
    from fwopt_kernels import w4_format
    from fwopt_kernels.w4a16 import w4a16

    case = load(OPERATORS["w4a16"]).case("g64", {"m": 2, "n": 8, "k": 128}, 0)
    with pytest.raises(ValueError, match=r"weights are \(8, 128\), x \(2, 64\), out \(2, 8\)"):
        w4a16(case.x[:, :64], case.weights, case.out)
    with pytest.raises(ValueError, match="scales sums, which needs groups of BLOCK_K or more; got 64"):
        w4a16(case.x, case.weights, case.out, variant=changed(W4, LATE_SCALE=1))
    with pytest.raises(ValueError, match="x: the last dimension must have stride 1"):
        w4a16(torch.zeros(128, 2, dtype=torch.bfloat16).T, case.weights, case.out)
    odd = w4_format.pack(torch.zeros(8, 40), torch.ones(8, 1, dtype=torch.bfloat16), None)
    with pytest.raises(ValueError, match="needs K divisible by 32"):
        w4_format.repack(odd)
    grouped = w4_format.pack(torch.zeros(8, 512), torch.ones(8, 2, dtype=torch.bfloat16), None)
    with pytest.raises(ValueError, match="groups of 32, 64, 128 and whole channels; got 256"):
        w4_format.repack(grouped)
    with pytest.raises(ValueError, match="bfloat16 scales"):
        w4_format.repack(w4_format.pack(torch.zeros(8, 128), torch.ones(8, 1), None))
    codes = torch.zeros(8, 64, dtype=torch.uint8)
    for scale, rule in (
        (torch.full((8, 4), 255), r"scales must be at most 160 .*; got 255"),
        (torch.ones(8, 2), "of 32; got 64"),
    ):
        with pytest.raises(ValueError, match=rule):
            w4_format.repack(w4_format.StoredW4(codes, scale.to(torch.uint8), None))


def test_the_least_bytes_of_w4a16_are_those_of_the_checkpoint() -> None:
    for format in ("g128", "g32", "channel", "g128-zero", "mxfp4"):
        shape = {"m": 4, "n": 64, "k": 256}
        case = load(OPERATORS["w4a16"]).case(format, shape, 0)
        tensors = [case.x, case.stored.packed, case.stored.scale, case.stored.zero_point, case.out]
        work = load(OPERATORS["w4a16"]).work(format, shape)
        assert work.bytes == sum(t.nbytes for t in tensors if t is not None)
        assert work.flops == 2 * 4 * 64 * 256


@pytest.mark.parametrize("name", ["fp8_gemm", "int8_gemm"])
def test_the_least_bytes_of_8_bit_products_are_those_of_the_tensors(name: str) -> None:
    operator = load(OPERATORS[name])
    for format in operator.formats:
        shape = {"m": 4, "n": 192, "k": 272}
        case = operator.case(format, shape, 0)
        tensors = [case.x.values, case.x.scale, case.weight.values, case.weight.scale, case.out]
        assert operator.work(format, shape).bytes == sum(t.nbytes for t in tensors)


def test_w4a16_reads_weights_by_sixteen_bytes_and_multiplies_with_wgmma() -> None:
    """The whole point of the repacked layout, asked of the PTX: copies of 16 bytes into shared memory, loads of 16
    bytes out of it (64 bytes a thread and block of K), and no other load before the matrix instruction's operand."""
    code = (
        "import re\n"
        "from fwopt_kernels.compiler import compiled_kernel\n"
        "from fwopt_kernels.contract import ARCHITECTURES\n"
        "from fwopt_kernels.registry import OPERATORS, load\n"
        "op = load(OPERATORS['w4a16'])\n"
        "for format in op.formats:\n"
        "    launch = op.launches(format, op.space(format).default)[0]\n"
        "    ptx = compiled_kernel(launch, ARCHITECTURES['sm_90']).asm['ptx']\n"
        "    assert 'wgmma.mma_async' in ptx and 'mma.sync' not in ptx, format\n"
        "    assert len(re.findall(r'ld\\.shared\\.v4\\.b32|ld\\.shared\\.v2\\.b64', ptx)) == 4, format\n"
        "    assert 'ld.global.v4' not in ptx and len(re.findall('cp.async.cg.shared.global', ptx)) >= 18, format\n"
        "    assert len(re.findall('prmt.b32', ptx)) == (64 if format == 'mxfp4' else 32), format\n"
    )
    run_apart(code, interpret=False)


@pytest.mark.parametrize(("name", "numbers"), [("fp8_gemm", ".f32.e4m3.e4m3"), ("int8_gemm", ".s32.s8.s8")])
def test_8_bit_products_are_wgmma_and_large_tiles_come_by_the_copy_engine(name: str, numbers: str) -> None:
    code = (
        "from fwopt_kernels.compiler import compiled_kernel\n"
        "from fwopt_kernels.contract import ARCHITECTURES, variant\n"
        "from fwopt_kernels.registry import OPERATORS, load\n"
        f"op = load(OPERATORS[{name!r}])\n"
        "large = dict(BLOCK_M=128, BLOCK_N=128, SPLIT_K=1, GROUP_M=8, SWAP_AB=0, TMA=1)\n"
        "for format in op.formats:\n"
        "    depth = {} if format == 'fp8-block' else {'BLOCK_K': 128}\n"
        "    tiles = variant(8, 4, **large, **depth, PERSIST=0)\n"
        "    assert op.space(format).allowed(tiles), format\n"
        "    several = [variant(8, 4, **large, **depth, PERSIST=schedule) for schedule in (1, 2)]\n"
        "    assert all(op.space(format).allowed(one) for one in several), format\n"
        "    for chosen in (op.space(format).default, tiles, *several):\n"
        "        ptx = compiled_kernel(op.launches(format, chosen)[0], ARCHITECTURES['sm_90']).asm['ptx']\n"
        f"        assert {numbers!r} in ptx\n"
        "        assert 'wgmma.mma_async' in ptx and 'mma.sync' not in ptx, format\n"
        "        copy = 'cp.async.bulk.tensor' if chosen['TMA'] else 'cp.async.cg.shared.global'\n"
        "        assert copy in ptx, (format, chosen.id)\n"
    )
    run_apart(code, interpret=False)


@pytest.mark.parametrize(("name", "format"), [("fp8_gemm", "fp8-row"), ("int8_gemm", "int8-row"), ("w4a16", "g128")])
def test_a_tile_is_stored_while_the_next_ones_numbers_are_on_their_way(name: str, format: str) -> None:
    """What programs of several tiles are for, asked of Triton's own code: tiles and blocks of K are one loop, so the
    store stands, under a condition, between a product and the copies that are ahead of it."""
    code = (
        "from fwopt_kernels.compiler import compiled_kernel\n"
        "from fwopt_kernels.contract import ARCHITECTURES\n"
        "from fwopt_kernels.registry import OPERATORS, load\n"
        f"op, format = load(OPERATORS[{name!r}]), {format!r}\n"
        "chosen = next(v for v in op.space(format).variants() if v['PERSIST'] == 1)\n"
        "lines = compiled_kernel(op.launches(format, chosen)[0], ARCHITECTURES['sm_90']).asm['ttgir'].splitlines()\n"
        "product = next(i for i, line in enumerate(lines) if '= ttng.warp_group_dot ' in line)\n"
        "depth = [len(line) - len(line.lstrip()) for line in lines]\n"
        "end = next(i for i in range(product, len(lines)) if depth[i] < depth[product])\n"
        "rest = ''.join(lines[product:end])\n"
        "assert 'tt.store' in rest and 'async_' in rest and 'scf.yield' in lines[end - 1], rest\n"
    )
    run_apart(code, interpret=False)
