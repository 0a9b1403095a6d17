"""What decode attention promises beyond its reference: windows, caps, sinks, batch invariance, far pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fwopt_kernels.contract import variant

from .conftest import run_apart

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

from fwopt_kernels.correctness import differences
from fwopt_kernels.decode_attention import DECODE_ATTENTION, DecodeAttention, decode_attention

SHAPE = {"sequences": 3, "heads": 8, "kv_heads": 4, "head_dim": 64, "block_size": 16, "shortest": 20, "context": 190}
FEW = {"sequences": 2, "kv_heads": 2, "shortest": 0, "context": 70}
SPLIT = variant(1, 3, BLOCK_N=32, SPLITS=4)


@pytest.mark.parametrize("format", ["bf16", "fp8"])
@pytest.mark.parametrize(("window", "soft_cap"), [(37, None), (None, 1.5), (64, 3.0)])
def test_windows_and_capped_logits(format: str, window: int | None, soft_cap: float | None, interpreted: Any) -> None:
    operator = DecodeAttention(window=window, soft_cap=soft_cap)
    for chosen in (SPLIT, variant(4, 2, BLOCK_N=64, SPLITS=1)):
        assert interpreted(operator, format, SHAPE, variant=chosen, seed=11) == []
    assert differences(operator, format, SHAPE, variant=None, seed=11) == []


def test_windows_and_caps_change_the_result() -> None:
    plain = DECODE_ATTENTION.reference(DECODE_ATTENTION.case("bf16", SHAPE, 2))["out"].values
    for other in (DecodeAttention(window=37), DecodeAttention(soft_cap=1.5)):
        assert not torch.allclose(plain, other.reference(other.case("bf16", SHAPE, 2))["out"].values, rtol=0.05)


@pytest.mark.parametrize("format", ["bf16", "fp8"])
@pytest.mark.parametrize(("window", "soft_cap"), [(37, None), (None, 3.0)])
def test_sinks_join_each_softmax_once(
    format: str, window: int | None, soft_cap: float | None, interpreted: Any
) -> None:
    """Whatever the splits, also without context; sinks among the logits, far above and far below them."""
    operator, shape = DecodeAttention(window, soft_cap, sinks=True), {**SHAPE, **FEW}
    for chosen in (SPLIT, variant(1, 3, BLOCK_N=32, SPLITS=1)):
        assert interpreted(operator, format, shape, variant=chosen, seed=11) == []
    assert differences(operator, format, shape, variant=None, seed=11) == []


def test_a_sink_takes_its_share_and_no_more() -> None:
    """Of the reference: half where it weighs as much as all keys together. Of the kernel: nothing where it weighs
    nothing, to the bit, and all where it weighs beyond what float32 holds."""
    case = DECODE_ATTENTION.case("bf16", {**SHAPE, "sequences": 1}, 3)
    keys = case.cache[0, case.table[0, :12].long()].flatten(0, 1)[:190].double()
    logits = torch.einsum("kgd,nkd->kgn", case.query[0].double().view(4, 2, 64), keys) * case.softmax_scale
    whole, half = (
        DECODE_ATTENTION.reference(c)["out"].values for c in (case, replace(case, sinks=logits.logsumexp(-1).flatten()))
    )
    torch.testing.assert_close(half, whole / 2)
    code = (
        "import torch\n"
        "from dataclasses import replace\n"
        "from fwopt_kernels.contract import variant\n"
        "from fwopt_kernels.decode_attention import DECODE_ATTENTION\n"
        f"case = DECODE_ATTENTION.case('bf16', {SHAPE | FEW}, 4)\n"
        "for splits in (1, 2):\n"
        "    for sinks in (None, torch.full((8,), -torch.inf), torch.full((8,), 1e4)):\n"
        "        DECODE_ATTENTION.run(replace(case, sinks=sinks), variant(1, 3, BLOCK_N=32, SPLITS=splits))\n"
        "        found = case.out.clone()\n"
        "        if sinks is None: plain = found\n"
        "        elif sinks[0] < 0: assert torch.equal(found, plain)\n"
        "        else: assert not found.any()\n"
    )
    run_apart(code, interpret=True)


def test_a_sequence_alone_is_the_sequence_in_a_batch_bit_for_bit() -> None:
    """Also with a workspace full of NaN: what no split wrote is not read. With sinks, the same."""
    code = (
        "import torch\n"
        "from fwopt_kernels.contract import variant\n"
        "from fwopt_kernels.attention_merge import workspace_numbers\n"
        "from fwopt_kernels.decode_attention import DecodeAttention, decode_attention\n"
        f"shape, chosen = {SHAPE}, variant(1, 3, BLOCK_N=32, SPLITS=8)\n"
        "for format, operator, context in (('bf16', DecodeAttention(), 190), ('fp8', DecodeAttention(), 190),\n"
        "        ('bf16', DecodeAttention(window=37, sinks=True), 70)):\n"
        "    case = operator.case(format, {**shape, 'context': context}, 5)\n"
        "    operator.run(case, chosen)\n"
        "    for i in range(3):\n"
        "        out = torch.full_like(case.out[i:i+1], float('nan'))\n"
        "        workspace = torch.full((workspace_numbers(1, 8, 64, chosen),), float('nan'))\n"
        "        decode_attention(case.query[i:i+1], case.cache, case.table[i:i+1], case.lengths[i:i+1], case.scales,\n"
        "            out, softmax_scale=case.softmax_scale, window=case.window, sinks=case.sinks, variant=chosen,\n"
        "            workspace=workspace)\n"
        "        assert torch.equal(out[0], case.out[i]), (format, i)\n"
    )
    run_apart(code, interpret=True)


def test_pages_more_than_two_to_the_31_elements_apart() -> None:
    """Untouched memory costs nothing: only three pages of the 4 GiB are ever written. Heads lie before slots here."""
    code = (
        "import torch\n"
        "from dataclasses import replace\n"
        "from fwopt_kernels.contract import variant\n"
        "from fwopt_kernels.decode_attention import DECODE_ATTENTION\n"
        "shape = dict(sequences=1, heads=2, kv_heads=2, head_dim=64, block_size=16, shortest=9, context=9)\n"
        "case = DECODE_ATTENTION.case('bf16', shape, 7)\n"
        "far = torch.empty(2 * (2**30 + 64) + 4096, dtype=torch.bfloat16)\n"
        "far = far.as_strided(case.cache.shape, (2048, 2**30 + 64, 64, 1024, 1))\n"
        "far.copy_(case.cache)\n"
        "assert case.cache.shape[1] == 3\n"
        "case.cache[:, 2] = far[:, 2] = case.cache[:, int(case.table[0, 0])].clone()\n"
        "case.table[0, 0] = 2\n"
        "DECODE_ATTENTION.run(replace(case, cache=far), variant(1, 3, BLOCK_N=16, SPLITS=1))\n"
        "want = DECODE_ATTENTION.reference(case)['out']\n"
        "assert ((case.results()['out'] - want.values).abs() <= want.atol + want.rtol * want.values.abs()).all()\n"
    )
    run_apart(code, interpret=True)


def test_the_least_bytes_are_those_of_the_contexts() -> None:
    shape = {**SHAPE, "shortest": 190}
    for format, size in (("bf16", 2), ("fp8", 1)):
        work = DECODE_ATTENTION.work(format, shape)
        assert work.bytes == 3 * (190 * 2 * 4 * 64 * size + 2 * 8 * 64 * 2 + 4 * 12 + 4)
        assert work.flops == 3 * 190 * 8 * 64 * 4
    assert DecodeAttention(window=100).work("bf16", shape).flops == 3 * 100 * 8 * 64 * 4


def test_layouts_that_it_cannot_read_are_refused() -> None:
    case = DECODE_ATTENTION.case("bf16", SHAPE, 0)
    options = {"softmax_scale": case.softmax_scale}
    across = case.query.transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(ValueError, match="query: heads must be packed"):
        decode_attention(across, case.cache, case.table, case.lengths, case.scales, case.out, **options)
    by_number = case.cache.transpose(3, 4).contiguous().transpose(3, 4)
    with pytest.raises(ValueError, match="cache: the last dimension must have stride 1, got 4"):
        decode_attention(case.query, by_number, case.table, case.lengths, case.scales, case.out, **options)
    plain = (case.query, case.cache, case.table, case.lengths, case.scales, case.out)
    with pytest.raises(ValueError, match=r"sinks must be one packed number a query head, \(8,\); got \(4,\)"):
        decode_attention(*plain, sinks=torch.zeros(4), **options)
    with pytest.raises(ValueError, match=r"sinks must be float32 or bfloat16, got torch\.float64"):
        decode_attention(*plain, sinks=torch.zeros(8).double(), **options)
    eight = DECODE_ATTENTION.case("fp8", SHAPE, 0, padding=1)
    with pytest.raises(ValueError, match="cache: e4m3 numbers are read in pairs, head_dim and strides must be even"):
        decode_attention(*plain[:1], eight.cache, *plain[2:], **options)
    with pytest.raises(ValueError, match="8 query heads are no multiple of 3 KV heads"):
        decode_attention(case.query, case.cache[..., :3, :], case.table, case.lengths, case.scales, case.out, **options)
    with pytest.raises(ValueError, match=r"workspace must be 12480 float32, got 12479 torch\.float32"):
        decode_attention(*plain, workspace=torch.empty(12479), **options)
