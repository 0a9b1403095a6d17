"""What attention of prompt chunks promises beyond its reference: windows, caps, sinks, batches, far pages, wgmma."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fwopt_kernels.contract import Variant, variant

from .conftest import run_apart

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

from fwopt_kernels.attention_case import contexts
from fwopt_kernels.attention_merge import workspace_numbers
from fwopt_kernels.correctness import differences
from fwopt_kernels.prefill_attention import PREFILL_ATTENTION, PrefillAttention, prefill_attention

SHAPE = {"sequences": 3, "heads": 8, "kv_heads": 4, "head_dim": 64, "block_size": 16, "tokens": 60, "shortest": 20,
         "context": 190}  # fmt: skip
FEW = {"sequences": 2, "kv_heads": 2, "shortest": 0, "context": 70}
SMALL = variant(4, 2, BLOCK_M=64, BLOCK_N=32, HEADS_FIRST=0, SPLITS=1)
SPLIT = {"sequences": 3, "heads": 4, "kv_heads": 1, "head_dim": 16, "block_size": 16, "tokens": 18, "shortest": 0,
         "context": 260}  # fmt: skip
"""Two tiles a chunk, the second hardly begun; contexts of none, three and five blocks."""


def parts(splits: int) -> Variant:
    return variant(4, 3, BLOCK_M=64, BLOCK_N=64, HEADS_FIRST=1, SPLITS=splits)


@pytest.mark.parametrize("format", ["bf16", "fp8"])
@pytest.mark.parametrize(("window", "soft_cap"), [(37, None), (None, 1.5), (64, 3.0), (1, None), (500, None)])
def test_windows_and_capped_logits(format: str, window: int | None, soft_cap: float | None, interpreted: Any) -> None:
    """Windows shorter than a tile, as long as some blocks, of the token alone, and beyond every context."""
    operator = PrefillAttention(window=window, soft_cap=soft_cap)
    for chosen in (SMALL, variant(8, 2, BLOCK_M=128, BLOCK_N=128, HEADS_FIRST=1, SPLITS=1)):
        assert interpreted(operator, format, SHAPE, variant=chosen, seed=11) == []
    assert differences(operator, format, SHAPE, variant=None, seed=11) == []


@pytest.mark.parametrize("format", ["bf16", "fp8"])
@pytest.mark.parametrize(("window", "soft_cap"), [(37, None), (None, 3.0)])
def test_sinks_join_each_softmax_once(
    format: str, window: int | None, soft_cap: float | None, interpreted: Any
) -> None:
    """Sinks among the logits, far above and far below them, where float16 would not hold the keys' weights."""
    operator, shape = PrefillAttention(window, soft_cap, sinks=True), {**SHAPE, **FEW}
    assert interpreted(operator, format, shape, variant=SMALL, seed=11) == []
    assert differences(operator, format, shape, variant=None, seed=11) == []


@pytest.mark.parametrize(
    ("format", "splits", "operator"),
    [
        ("bf16", 4, PrefillAttention()),
        ("fp8", 16, PrefillAttention(window=70, sinks=True)),
        ("bf16", 16, PrefillAttention(window=1, sinks=True)),
        ("fp8", 4, PrefillAttention(soft_cap=1.5, sinks=True)),
    ],
)
def test_keys_in_parts(format: str, splits: int, operator: PrefillAttention, interpreted: Any) -> None:
    """Contexts of fewer blocks than parts, and none; parts that some queries of a tile see nothing of, sinks or not."""
    assert interpreted(operator, format, SPLIT, variant=parts(splits), seed=11, padding=24) == []


def test_a_chunk_in_parts_is_the_chunk_in_a_batch_bit_for_bit() -> None:
    """What no part wrote is not read: the workspace is full of NaN, and so are the outputs. With sinks, the same."""
    code = (
        "import torch\n"
        "from fwopt_kernels.attention_merge import workspace_numbers\n"
        "from fwopt_kernels.contract import variant\n"
        "from fwopt_kernels.prefill_attention import PrefillAttention, prefill_attention\n"
        "chosen = variant(4, 3, BLOCK_M=64, BLOCK_N=64, HEADS_FIRST=1, SPLITS=4)\n"
        "for format, operator in (('bf16', PrefillAttention()), ('fp8', PrefillAttention(window=150, sinks=True))):\n"
        f"    case = operator.case(format, {SPLIT}, 5)\n"
        "    operator.run(case, chosen)\n"
        "    starts = case.starts.tolist()\n"
        "    for order in ([1], [2, 0, 1]):\n"
        "        rows = [slice(starts[i], starts[i + 1]) for i in order]\n"
        "        query = torch.cat([case.query[r] for r in rows])\n"
        "        out = torch.full_like(query, float('nan'))\n"
        "        ends = torch.tensor([0, *(r.stop - r.start for r in rows)]).cumsum(0).int()\n"
        "        workspace = torch.full((workspace_numbers(len(query), 4, 16, chosen),), float('nan'))\n"
        "        prefill_attention(query, case.cache, case.table[order], case.lengths[order], ends, case.scales, out,\n"
        "            softmax_scale=case.softmax_scale, window=case.window, sinks=case.sinks, variant=chosen,\n"
        "            workspace=workspace)\n"
        "        assert torch.equal(out, torch.cat([case.out[r] for r in rows])), (format, order)\n"
        "        assert workspace.isnan().any() and not workspace[-len(query) * 16:].isnan().any()\n"
    )
    run_apart(code, interpret=True)


def test_only_few_programs_are_split_and_by_default_only_long_contexts() -> None:
    """Of Qwen3-8B. What the parts leave behind stays below 35 MB, whichever variant was tuned."""
    space, heads = PREFILL_ATTENTION.space("bf16"), {"heads": 32, "kv_heads": 8}

    def shape(sequences: int, tokens: int, context: int) -> dict[str, int]:
        return {**heads, "sequences": sequences, "tokens": tokens, "context": context}

    sizes = ((1, 64, 32768), (8, 16, 8192), (1, 64, 2048), (32, 64, 32768), (1, 2048, 32768))
    assert [space.default_for(shape(*size))["SPLITS"] for size in sizes] == [8, 8, 1, 1, 1]
    for sequences, tokens, most in ((1, 1, 32), (1, 64, 32), (8, 16, 16), (1, 512, 4), (64, 1, 1), (1, 8192, 1)):
        suited = [v for v in space.variants() if space.suits(v, shape(sequences, tokens, 32768))]
        numbers = [workspace_numbers(sequences * tokens, 32, 128, v) for v in suited]
        assert 4 * max(numbers) <= 35e6
        assert max(v["SPLITS"] for v in suited) == most


def test_windows_and_caps_change_the_result() -> None:
    plain = PREFILL_ATTENTION.reference(PREFILL_ATTENTION.case("bf16", SHAPE, 2))["out"].values
    for other in (PrefillAttention(window=37), PrefillAttention(soft_cap=1.5)):
        assert not torch.allclose(plain, other.reference(other.case("bf16", SHAPE, 2))["out"].values, rtol=0.05)


def test_a_token_sees_nothing_after_it() -> None:
    """Of the reference: with other last tokens in the cache, all queries but those of that many tokens are the same."""
    case = PREFILL_ATTENTION.case("bf16", {**SHAPE, "sequences": 1}, 3)
    before = PREFILL_ATTENTION.reference(case)["out"].values
    at = torch.arange(180, 190)
    case.cache[:, case.table[0, at // 16].long(), at % 16] = 7.0
    after = PREFILL_ATTENTION.reference(case)["out"].values
    assert torch.equal(before[:50], after[:50])
    assert not torch.isclose(before[50:], after[50:]).all(-1).any()


def test_a_chunk_of_one_token_is_a_decode() -> None:
    from fwopt_kernels.decode_attention import DECODE_ATTENTION

    decode = DECODE_ATTENTION.case("bf16", {name: SHAPE[name] for name in DECODE_ATTENTION.dimensions}, 5)
    prefill = PREFILL_ATTENTION.case("bf16", {**SHAPE, "tokens": 1}, 5)
    wanted, found = DECODE_ATTENTION.reference(decode)["out"], PREFILL_ATTENTION.reference(prefill)["out"]
    assert torch.equal(wanted.values, found.values)


def test_a_chunk_alone_is_the_chunk_in_a_batch_bit_for_bit() -> None:
    """In any order, between empty ones, beside shorter and longer ones. With sinks, the same."""
    code = (
        "import torch\n"
        "from fwopt_kernels.contract import variant\n"
        "from fwopt_kernels.prefill_attention import PrefillAttention, prefill_attention\n"
        f"shape, chosen = {SHAPE}, variant(4, 3, BLOCK_M=64, BLOCK_N=32, HEADS_FIRST=1, SPLITS=1)\n"
        "for format, operator, context in (('bf16', PrefillAttention(), 190), ('fp8', PrefillAttention(), 190),\n"
        "        ('bf16', PrefillAttention(window=37, sinks=True), 70)):\n"
        "    case = operator.case(format, {**shape, 'context': context}, 5)\n"
        "    operator.run(case, chosen)\n"
        "    starts = case.starts.tolist()\n"
        "    assert starts == ([0, 20, 80, 140] if context == 190 else [0, 20, 65, 125])\n"
        "    for order in ([0], [1], [2], [2, 0, 1]):\n"
        "        rows = [slice(starts[i], starts[i + 1]) for i in order]\n"
        "        query = torch.cat([case.query[r] for r in rows])\n"
        "        out = torch.full_like(query, float('nan'))\n"
        "        ends = torch.tensor([0, 0, *(r.stop - r.start for r in rows), 0]).cumsum(0).int()\n"
        "        again = [0, *order, 0]\n"
        "        lengths = case.lengths[again].clone()\n"
        "        lengths[0] = 0\n"
        "        prefill_attention(query, case.cache, case.table[again], lengths, ends, case.scales, out,\n"
        "            softmax_scale=case.softmax_scale, window=case.window, sinks=case.sinks, variant=chosen)\n"
        "        assert torch.equal(out, torch.cat([case.out[r] for r in rows])), (format, order)\n"
    )
    run_apart(code, interpret=True)


def test_pages_and_queries_more_than_two_to_the_31_elements_apart() -> None:
    """Untouched memory costs nothing: of the 4 GiB each only three pages and three rows are ever written."""
    code = (
        "import torch\n"
        "from dataclasses import replace\n"
        "from fwopt_kernels.contract import variant\n"
        "from fwopt_kernels.prefill_attention import PREFILL_ATTENTION\n"
        "shape = dict(sequences=1, heads=2, kv_heads=2, head_dim=64, block_size=16, tokens=3, shortest=9, context=9)\n"
        "case = PREFILL_ATTENTION.case('bf16', shape, 7)\n"
        "far = torch.empty(2 * (2**30 + 64) + 4096, dtype=torch.bfloat16)\n"
        "far = far.as_strided(case.cache.shape, (2048, 2**30 + 64, 64, 1024, 1))\n"
        "far.copy_(case.cache)\n"
        "case.cache[:, 2] = far[:, 2] = case.cache[:, int(case.table[0, 0])].clone()\n"
        "case.table[0, 0] = 2\n"
        "rows = torch.empty(2 * (2**30 + 64) + 128, dtype=torch.bfloat16).as_strided((3, 2, 64), (2**30 + 64, 64, 1))\n"
        "rows.copy_(case.query)\n"
        "PREFILL_ATTENTION.run(replace(case, cache=far, query=rows),\n"
        "    variant(4, 3, BLOCK_M=64, BLOCK_N=16, HEADS_FIRST=0, SPLITS=1))\n"
        "want = PREFILL_ATTENTION.reference(case)['out']\n"
        "assert ((case.results()['out'] - want.values).abs() <= want.atol + want.rtol * want.values.abs()).all()\n"
    )
    run_apart(code, interpret=True)


@pytest.mark.parametrize("window", [None, 30, 100])
def test_the_least_bytes_and_products_are_those_of_the_chunks(window: int | None) -> None:
    """Bytes of the tensors, of the cache only what some query sees; a product for every query and key that it sees."""
    operator = PrefillAttention(window=window)
    for format, size in (("bf16", 2), ("fp8", 1)):
        case, work = operator.case(format, SHAPE, 0), operator.work(format, SHAPE)
        pairs = read = 0
        for length in contexts(3, 20, 190):
            queries = range(length - min(length, 60), length)
            seen = [range(max(0, q + 1 - (window or length)), q + 1) for q in queries]
            pairs += sum(map(len, seen))
            read += length - min(keys.start for keys in seen)
        assert case.starts is not None
        tensors = sum(t.nbytes for t in (case.query, case.out, case.lengths, case.starts))
        pages = 4 * sum(-(-n // 16) for n in contexts(3, 20, 190))
        assert work.bytes == tensors + pages + read * 2 * 4 * 64 * size
        assert work.flops == pairs * 8 * 64 * 4


def test_layouts_that_it_cannot_read_are_refused() -> None:
    case = PREFILL_ATTENTION.case("bf16", SHAPE, 0)
    assert case.starts is not None

    def call(**other: Any) -> None:
        named = {"query": case.query, "cache": case.cache, "table": case.table, "lengths": case.lengths,
                 "starts": case.starts, "scales": case.scales, "out": case.out, "softmax_scale": 0.1}  # fmt: skip
        prefill_attention(**{**named, **other})

    with pytest.raises(ValueError, match="query: heads must be packed"):
        call(query=case.query.transpose(1, 2).contiguous().transpose(1, 2))
    with pytest.raises(ValueError, match="cache: the last dimension must have stride 1, got 4"):
        call(cache=case.cache.transpose(3, 4).contiguous().transpose(3, 4))
    with pytest.raises(ValueError, match="8 query heads are no multiple of 3 KV heads"):
        call(cache=case.cache[..., :3, :])
    with pytest.raises(ValueError, match="starts must have an entry a sequence and one more, 4; got 3"):
        call(starts=case.starts[1:])
    with pytest.raises(ValueError, match="140 tokens belong to no sequence"):
        call(lengths=case.lengths[:0], starts=case.starts[:1])
    with pytest.raises(ValueError, match=r"softmax_scale must be above zero, got -0\.1"):
        call(softmax_scale=-0.1)


def test_products_are_hoppers_and_blocks_that_all_queries_see_have_no_mask() -> None:
    """Asked of the PTX, in a process where kernels are compiled: both products by warpgroups, of 16-bit numbers. Of the
    intermediate code: of two loops with both products, only the second compares positions."""
    code = (
        "import re\n"
        "from fwopt_kernels.compiler import compiled_kernel\n"
        "from fwopt_kernels.contract import ARCHITECTURES\n"
        "from fwopt_kernels.prefill_attention import PREFILL_ATTENTION\n"
        "for format, type in (('bf16', 'bf16'), ('fp8', 'f16')):\n"
        "    for chosen in PREFILL_ATTENTION.space(format).defaults[:2]:\n"
        "        one = PREFILL_ATTENTION.launches(format, chosen)[0]\n"
        "        asm = compiled_kernel(one, ARCHITECTURES['sm_90']).asm\n"
        "        kinds = set(re.findall(r'wgmma.mma_async\\S+', asm['ptx']))\n"
        "        name = 'wgmma.mma_async.sync.aligned.m64n{}k16.f32.' + f'{type}.{type}'\n"
        "        assert kinds == {name.format(64), name.format(128)}, kinds\n"
        "        assert 'mma.sync' not in asm['ptx']\n"
        "        loops = [l for l in asm['ttir'].split('scf.for')[1:] if l.count('tt.dot ') == 2]\n"
        "        inside = [l.split('scf.yield')[0] for l in loops]\n"
        "        assert ['arith.cmpi sle' in l for l in inside] == [False, True]\n"
    )
    run_apart(code, interpret=False)
