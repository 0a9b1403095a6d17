"""y += scale * (x @ A^T) @ B^T, in place, for rows of different adapters; rows without one stay as they are.

What vLLM's Triton kernels for LoRA compute (`lora/ops/triton_ops/lora_shrink_op.py`, `lora_expand_op.py`, Apache-2.0),
which are Punica's (Chen et al., arXiv 2310.18547), on the weights that they read: one slice of a fused layer a call.
Sums are float32; x @ A^T is rounded to bfloat16 when it is whole, as vLLM rounds it. The scale multiplies, and y is
added, in float32: y is rounded once, where vLLM rounds the product first. K is divided among programs, whose parts are
added in order, without vLLM's atomics: results repeat to the bit, and for a given variant a row's does not depend on
the others. An id outside 0..adapters - 1 is no adapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import triton
from torch import Tensor

from fwopt_kernels.contract import (
    FALLBACK,
    NUM_STAGES,
    NUM_WARPS,
    Expected,
    Large,
    Launch,
    Space,
    Variant,
    Work,
    variant,
)  # fmt: skip
from fwopt_kernels.lora_case import Adapters, Choice, LoraCase, expected, fallback, random_case, with_adapter
from fwopt_kernels.lora_kernels import expand, shrink
from fwopt_kernels.moe_routing import Routing, align, align_launch
from fwopt_kernels.row_formats import require_packed

LEAST_RANK_BLOCK = 16
"""Values that a matrix instruction adds at least; lower ranks are filled up with zeros."""
_COMPILED_RANK, _COMPILED_ADAPTERS = 256, 64
"""Of what is compiled ahead of time: no rank takes more registers or shared memory."""


def routed(ids: Tensor, adapters: Adapters, variant: Variant) -> Routing:
    """Rows sorted by adapter, for every layer of a step that runs a variant with that BLOCK_M."""
    return align(ids, adapters.count, variant["BLOCK_M"])


def lora(
    x: Tensor, adapters: Adapters, ids: Tensor, y: Tensor, *, routing: Routing | None = None,
    variant: Variant | None = None,
) -> None:  # fmt: skip
    """x (tokens, inputs), y (tokens, outputs) bfloat16, rows packed; ids (tokens,) int32, an adapter each or -1.

    `routing`: of `routed` for the same ids and variant, where it is known. ValueError for what does not fit.
    """
    _require(x, adapters, ids, y)
    if variant == FALLBACK:
        fallback(LoraCase(x, adapters, ids, y))
        return
    (tokens, inputs), outputs, rank = x.shape, y.shape[1], adapters.rank
    if tokens == 0 or adapters.count == 0:
        return
    chosen = variant or SPACE.default_for({"tokens": tokens, "adapters": adapters.count})
    routing = routing or routed(ids, adapters, chosen)
    blocks, splits = len(routing.experts), chosen["SPLIT_K"]
    if len(routing.pairs) != blocks * chosen["BLOCK_M"]:
        raise ValueError(f"routing: blocks must have {chosen['BLOCK_M']} rows, got {len(routing.pairs) // blocks}")
    parts = workspace(splits, tokens, rank, x.device)
    sizes = _rank_block(chosen, rank)
    r_blocks = triton.cdiv(rank, sizes["BLOCK_R"])
    shared = (routing.pairs, routing.experts, routing.padded, tokens)
    shrink[(blocks * r_blocks, splits)](
        x, adapters.a, parts, *shared, inputs, x.stride(0), adapters.a.stride(0), adapters.a.stride(2),
        EVEN=inputs % chosen["BLOCK_K"] == 0, BLOCK_K=chosen["BLOCK_K"], **sizes, **chosen.options,
    )  # fmt: skip
    unit = gcd(adapters.b.stride(2), 16)
    expand[(blocks * triton.cdiv(outputs, chosen["BLOCK_N"]),)](
        parts, adapters.b, adapters.scales, y, *shared, outputs, r_blocks,
        adapters.b.stride(0), adapters.b.stride(2) // unit, y.stride(0), UNIT=unit, BLOCK_N=chosen["BLOCK_N"],
        **sizes, **chosen.options,
    )  # fmt: skip


def workspace(parts: int, tokens: int, rank: int, device: torch.device) -> Tensor:
    """x @ A^T by part of K, or whole and rounded."""
    return torch.empty(parts, tokens, rank, dtype=torch.float32 if parts > 1 else torch.bfloat16, device=device)


def _rank_block(chosen: Variant, rank: int) -> dict[str, int]:
    """Constants of both kernels; a block of the rank is not much larger than the rank."""
    fits = max(triton.next_power_of_2(rank), LEAST_RANK_BLOCK)
    own = {name: chosen[name] for name in ("BLOCK_M", "SPLIT_K")}
    return {"RANK": rank, "BLOCK_R": min(chosen["BLOCK_R"], fits), **own}


def _require(x: Tensor, adapters: Adapters, ids: Tensor, y: Tensor) -> None:
    a, b, scales = adapters.a, adapters.b, adapters.scales
    tokens, count, rank = len(x), len(a), a.shape[-2]
    wanted = {
        "x": (x, (tokens, a.shape[-1]), torch.bfloat16), "a": (a, (count, 1, rank, a.shape[-1]), torch.bfloat16),
        "b": (b, (count, 1, y.shape[-1], rank), torch.bfloat16), "scales": (scales, (count,), torch.float32),
        "ids": (ids, (tokens,), torch.int32), "y": (y, (tokens, y.shape[-1]), torch.bfloat16),
    }  # fmt: skip
    for name, (tensor, shape, dtype) in wanted.items():
        if tensor.shape != shape or tensor.dtype != dtype:
            raise ValueError(f"{name}: must be {shape} of {dtype}, got {tuple(tensor.shape)} of {tensor.dtype}")
        require_packed(**{name: tensor})


def _allowed(v: Variant) -> bool:
    """16 rows serve decoding, where A and B are what is read: many parts of K make many programs. 64 rows and more
    serve prompts, where x and y are, and parts of K are written and read for nothing. More numbers of the parts a
    thread, all loaded at once, would spill."""
    rows, rank, depth, channels = (v[name] for name in ("BLOCK_M", "BLOCK_R", "BLOCK_K", "BLOCK_N"))
    step_kib, threads = depth * (rows + rank) / 512, 32 * v.num_warps
    loaded = 0 if v["SPLIT_K"] == 1 else v["SPLIT_K"] * rows * rank // threads
    most = 128 if rows * rank == 1024 else 32 if channels == 256 else 64
    decoding = rows <= 32 and v.num_warps == 4 and v["SPLIT_K"] >= 4 and channels <= 128 and depth >= 128
    prompts = rows >= 64 and v["SPLIT_K"] <= 4 and channels >= 128 and depth <= 128
    return (
        (decoding or (prompts and 32 <= rows * channels // threads <= 64))
        and loaded <= most
        and (v.num_stages == 4 if step_kib < 32 else v.num_stages == 3 or rows <= 32)
        and step_kib * v.num_stages <= 192
    )


SPACE = Space(
    {
        "BLOCK_M": (16, 32, 64, 128), "BLOCK_R": (64, 128), "BLOCK_K": (64, 128, 256), "BLOCK_N": (64, 128, 256),
        "SPLIT_K": (1, 2, 4, 8, 16), NUM_WARPS: (4, 8), NUM_STAGES: (3, 4),
    },
    default=variant(4, 4, BLOCK_M=16, BLOCK_R=64, BLOCK_K=128, BLOCK_N=128, SPLIT_K=8),
    allowed=_allowed,
    large=Large(
        lambda shape: shape["tokens"] / shape["adapters"], 32,
        variant(8, 4, BLOCK_M=64, BLOCK_R=64, BLOCK_K=64, BLOCK_N=256, SPLIT_K=2),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Lora:
    """The operator `lora`: one linear layer's adapters, all of one rank; a row has one or none.

    Timed without the sorting of rows, which the layers of a step share.
    """

    choice: Choice = "each"
    name = "lora"
    formats = ("bf16",)
    dimensions = ("tokens", "adapters", "rank", "inputs", "outputs")

    def space(self, format: str) -> Space:
        return SPACE

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        """For inputs that blocks divide, and two ranks: one block of it, the largest. Sorting, which BLOCK_M alone
        changes, is the defaults' alone."""
        types: dict[str, str] = {
            "x": "*bf16", "a": "*bf16", "b": "*bf16", "y": "*bf16", "scales": "*fp32",
            "parts": "*fp32" if variant["SPLIT_K"] > 1 else "*bf16",
            "rows": "*i32", "adapters": "*i32", "padded": "*i32", "tokens": "i32",
        }  # fmt: skip

        def launch(kernel: Any, rank: int, label: str, **known: int) -> Launch:
            constants = {**dict(variant.constants), **_rank_block(variant, rank), **known}
            own = {name: constants[name] for name in kernel.arg_names if name in constants}
            signature = {name: types.get(name, "i32") for name in kernel.arg_names if name not in own}
            loose = ("tokens", "r_blocks", "b_units")
            aligned = tuple(name for name in signature if name not in loose)
            return Launch(kernel, signature, own, aligned, variant.options, label)

        whole = launch(expand, variant["BLOCK_R"], "expand, rank in one block", r_blocks=1, UNIT=16)
        sorting = (align_launch(_COMPILED_ADAPTERS, variant["BLOCK_M"]),) if variant in SPACE.defaults else ()
        return (
            launch(shrink, _COMPILED_RANK, "shrink", EVEN=True),
            whole,
            launch(expand, _COMPILED_RANK, "expand", UNIT=16),
            *sorting,
        )

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        """Of adapters that have rows, in turn; rows without one are neither read nor written."""
        tokens, adapters, rank, inputs, outputs = (shape[name] for name in self.dimensions)
        rows, hit = with_adapter(tokens, adapters), min(tokens, adapters)
        weights = 2 * rank * (inputs + outputs) + 4
        flops = 2 * rows * rank * (inputs + outputs)
        return Work(hit * weights + rows * (2 * inputs + 4 * outputs) + 4 * tokens, flops)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> LoraCase:
        return random_case(shape, seed, padding, device, self.choice)

    def reference(self, case: LoraCase) -> dict[str, Expected]:
        return expected(case)

    def run(self, case: LoraCase, variant: Variant) -> None:
        rows = variant["BLOCK_M"]
        if rows not in case.routings and case.ids.numel():
            case.routings[rows] = routed(case.ids, case.adapters, variant)
        lora(case.x, case.adapters, case.ids, case.y, routing=case.routings.get(rows), variant=variant)

    def fallback(self, case: LoraCase) -> None:
        fallback(case)


LORA = Lora()
