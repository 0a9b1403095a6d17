"""What `lora` promises beyond its reference: any mixture of adapters, any rank, and nothing else in a batch matters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from fwopt_kernels.contract import FALLBACK, variant
from fwopt_kernels.correctness import differences, faults

from .conftest import run_apart

pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")

from fwopt_kernels.lora import LORA, SPACE, Lora, lora
from fwopt_kernels.moe_routing import align_torch

SHAPE = {"tokens": 20, "adapters": 2, "rank": 16, "inputs": 96, "outputs": 72}
SMALL = variant(4, 4, BLOCK_M=16, BLOCK_R=64, BLOCK_K=64, BLOCK_N=64, SPLIT_K=4)
"""With parts of K that have no block: 96 inputs are two."""


@pytest.mark.parametrize("rank", [24, 256])
def test_ranks_that_no_block_divides_and_the_largest(rank: int, interpreted: Any) -> None:
    """Of 8, 16 and 72: `test_correctness.py`."""
    assert interpreted(LORA, "bf16", {**SHAPE, "rank": rank}, variant=SMALL, seed=rank, padding=8) == []


@pytest.mark.parametrize("choice", ["one", "none"])
def test_rows_of_one_adapter_and_rows_of_none(choice: Any, interpreted: Any) -> None:
    """20 rows of one adapter are two blocks, the second not full; the other has no rows then."""
    assert interpreted(Lora(choice), "bf16", SHAPE, variant=SMALL, seed=3) == []
    assert differences(Lora(choice), "bf16", SHAPE, variant=None, seed=3) == []


def test_rows_without_an_adapter_keep_their_bits_and_a_row_depends_on_no_other() -> None:
    """By kernels and by torch; ids outside the adapters are none. Alone as in the batch, whatever the variant, and with
    a workspace full of NaN: what no part wrote is not read. Sorted before, as for all layers of a step, or in the call.
    """
    code = f"""
import torch
import fwopt_kernels.lora as module
from fwopt_kernels.contract import FALLBACK, Variant
from fwopt_kernels.lora import LORA, SPACE, lora, routed
empty = module.workspace
module.workspace = lambda *size: empty(*size).fill_(float("nan"))
case = LORA.case("bf16", {SHAPE}, 5)
case.ids[4], case.ids[9], case.ids[10] = 2, -7, 2**31 - 1
none = (case.ids < 0) | (case.ids > 1)
for chosen in ({SMALL!r}, *SPACE.defaults, FALLBACK):
    y = case.y.clone()
    lora(case.x, case.adapters, case.ids, y, variant=chosen)
    assert torch.equal(y[none], case.y[none]) and not bool(y.isnan().any())
    assert not bool((y[~none] == case.y[~none]).all(1).any())
    if chosen == FALLBACK:
        continue
    again = case.y.clone()
    lora(case.x, case.adapters, case.ids, again, routing=routed(case.ids, case.adapters, chosen), variant=chosen)
    assert torch.equal(y, again)
    for i in (4, int((~none).nonzero()[2])):
        alone = case.y[i : i + 1].clone()
        lora(case.x[i : i + 1], case.adapters, case.ids[i : i + 1], alone, variant=chosen)
        assert torch.equal(alone[0], y[i]), (chosen, i)
"""
    run_apart(code, interpret=True)


def test_rows_and_adapters_more_than_two_to_the_31_elements_apart() -> None:
    """Untouched pages cost no memory: of each tensor's 4 GiB only a few rows are ever written."""
    code = f"""
import torch
from dataclasses import replace
from fwopt_kernels.contract import Variant
from fwopt_kernels.correctness import faults
from fwopt_kernels.lora import LORA
case = LORA.case("bf16", dict(tokens=3, adapters=3, rank=16, inputs=64, outputs=32), 7)
def far(values):
    strides = (2**30 + 64, *values.stride()[1:])
    made = torch.empty(2 * strides[0] + values.numel(), dtype=values.dtype).as_strided(values.shape, strides)
    return made.copy_(values)
a = case.adapters
case = replace(case, x=far(case.x), y=far(case.y), adapters=replace(a, a=far(a.a), b=far(a.b)))
want = LORA.reference(case)
LORA.run(case, {SMALL!r})
assert faults(case.results(), want) == []
"""
    run_apart(code, interpret=True)


def test_adapters_of_a_lower_rank_are_filled_up_with_zeros() -> None:
    """As vLLM stores them in one buffer for all; and B may have been multiplied by the scale, a power of two here."""
    case = LORA.case("bf16", SHAPE, 2)
    case.adapters.scales.fill_(0.5)
    wider = replace(
        case.adapters,
        a=F.pad(case.adapters.a, (0, 0, 0, 16)),
        b=F.pad(case.adapters.b, (0, 16)) * 0.5,
        scales=torch.ones(2),
    )
    want, y = LORA.reference(case), case.y.clone()
    assert faults({"y": LORA.reference(replace(case, adapters=wider))["y"].values}, want) == []
    lora(case.x, wider, case.ids, y, variant=FALLBACK)
    assert faults({"y": y.double()}, want) == []


def test_tolerances_tell_a_wrong_adapter_a_wrong_scale_and_a_result_that_is_not_added() -> None:
    case = LORA.case("bf16", SHAPE, 9)
    want, mine = LORA.reference(case)["y"], case.ids >= 0

    def wrong(y: Any = None, **changes: Any) -> float:
        changed = replace(case, y=case.y.clone() if y is None else y, **changes)
        LORA.fallback(changed)
        off = (changed.results()["y"] - want.values).abs() > want.atol + want.rtol * want.values.abs()
        return float(off[mine].double().mean())

    assert wrong() == 0
    assert wrong(ids=torch.where(mine, (case.ids + 1) % 2, -1)) > 0.9
    assert wrong(adapters=replace(case.adapters, scales=case.adapters.scales * 1.1)) > 0.6
    assert wrong(y=torch.zeros_like(case.y)) > 0.9


def test_few_rows_an_adapter_and_many_have_defaults_of_their_own() -> None:
    few, many = SPACE.defaults
    assert [SPACE.default_for({"tokens": n, "adapters": 8}) for n in (1, 255, 256)] == [few, few, many]


def test_the_least_bytes_are_those_of_the_tensors_and_rows_of_none_cost_nothing() -> None:
    case = LORA.case("bf16", SHAPE, 0)
    rows = int((case.ids >= 0).sum())
    assert rows == 14
    weights = [case.adapters.a, case.adapters.b, case.adapters.scales, case.ids]
    work = LORA.work("bf16", SHAPE)
    assert work.bytes == sum(t.nbytes for t in weights) + rows * (2 * 96 + 2 * 2 * 72)
    assert work.flops == 2 * rows * 16 * (96 + 72)
    assert LORA.work("bf16", {**SHAPE, "tokens": 1}).bytes == 16 * 2 * (96 + 72) + 4 + 4 + 2 * 96 + 4 * 72


def test_what_it_cannot_read_is_refused() -> None:
    """Before anything is launched, so no GPU and no interpreter is needed."""
    case = LORA.case("bf16", SHAPE, 0)

    def call(routing: Any = None, **changed: Any) -> None:
        own = {name: changed.pop(name) for name in ("a", "b", "scales") if name in changed}
        made = replace(case, adapters=replace(case.adapters, **own), **changed)
        lora(made.x, made.adapters, made.ids, made.y, routing=routing, variant=SMALL)

    with pytest.raises(ValueError, match=r"x: must be \(20, 96\) of torch\.bfloat16, got \(20, 96\) of torch\.float32"):
        call(x=case.x.float())
    with pytest.raises(ValueError, match=r"b: must be \(2, 1, 72, 16\) of torch\.bfloat16, got \(2, 1, 72, 8\)"):
        call(b=case.adapters.b[..., :8])
    with pytest.raises(ValueError, match="a: the last dimension must have stride 1, got 16"):
        call(a=case.adapters.a.transpose(2, 3).contiguous().transpose(2, 3))
    with pytest.raises(ValueError, match=r"ids: must be \(20,\) of torch\.int32, got \(20,\) of torch\.int64"):
        call(ids=case.ids.long())
    with pytest.raises(ValueError, match="routing: blocks must have 16 rows, got 64"):
        call(routing=align_torch(case.ids, 2, 64))


def test_nothing_is_added_by_chance_and_nothing_is_read_by_single_numbers() -> None:
    """Asked of the PTX; also where rows of B are 16 or 48 bytes. Blocks of 64 rows are multiplied with wgmma. Triton
    makes constants of arguments that are one, as for one token of one adapter."""
    code = (
        "import re\n"
        "from dataclasses import replace\n"
        "from fwopt_kernels.compiler import compiled_kernel\n"
        "from fwopt_kernels.contract import ARCHITECTURES\n"
        "from fwopt_kernels.lora import LORA, SPACE\n"
        "from fwopt_kernels.moe_routing import align_launch\n"
        "few, many = SPACE.defaults\n"
        "def ptx(launch):\n"
        "    found = compiled_kernel(launch, ARCHITECTURES['sm_90']).asm['ptx']\n"
        "    assert not re.search('(atom|[^a]red)[.]global', found), launch.label\n"
        "    return found\n"
        "shrink, expand, *_ = LORA.launches('bf16', many)\n"
        "assert 'wgmma.mma_async' in ptx(shrink) and 'wgmma.mma_async' in ptx(expand)\n"
        "_, expand, *_ = LORA.launches('bf16', few)\n"
        "sizes = {name: type for name, type in expand.signature.items() if name not in ('tokens', 'b_units')}\n"
        "for rank, block in ((8, 16), (24, 32)):\n"
        "    known = {'RANK': rank, 'BLOCK_R': block, 'UNIT': 8, 'tokens': 1, 'b_units': 1}\n"
        "    lines = ptx(replace(expand, signature=sizes, constants=expand.constants | known)).splitlines()\n"
        "    assert not any('ld.global' in line and '.b16' in line for line in lines), rank\n"
        "compiled_kernel(align_launch(1, 16), ARCHITECTURES['sm_90'])\n"
    )
    run_apart(code, interpret=False)
