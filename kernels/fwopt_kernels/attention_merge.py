"""Attention whose keys are cut into parts, each a program's: what the parts leave behind, and the kernel that joins it.

Of each query and head a part leaves its own normalised sum and the base-2 logarithm of its mass, in float32; of one
without keys the mass alone, minus infinity. They are joined in a fixed order, and attention sinks with them: a sink
counts once, whatever the parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels.contract import Launch, Variant
from fwopt_kernels.paged_attention import sink_weight
from fwopt_kernels.rounding import to_bf16


@triton.jit(do_not_specialize=["rows"])  # else compiled anew while serving
def merge(
    partial, mass, sinks, out, rows, out_stride,
    HEADS: tl.constexpr, HEAD: tl.constexpr, HEAD_BLOCK: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS heads of queries a program: their parts weighted by their mass. Parts that hold nothing are not read."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dim, real = tl.arange(0, HEAD_BLOCK), row < rows
    at = row.to(tl.int64)[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]
    weight = tl.load(mass + at, mask=real[:, None], other=float("-inf"))
    used = weight != float("-inf")
    top = tl.maximum(tl.max(weight, 1), -1e30)
    weight = tl.exp2(weight - top[:, None])  # zeros where no part holds anything
    wanted = used[:, :, None] & (dim < HEAD)[None, None, :]
    values = tl.load(partial + (at * HEAD)[:, :, None] + dim[None, None, :], mask=wanted, other=0.0)
    amount = tl.sum(weight, 1)
    if sinks is not None:
        amount += sink_weight(sinks, row % HEADS, top)
    result = tl.sum(weight[:, :, None] * values, 1) / tl.where(amount > 0, amount, 1.0)[:, None]
    at = (row // HEADS).to(tl.int64) * out_stride + row % HEADS * HEAD
    tl.store(out + at[:, None] + dim[None, :], to_bf16(result), mask=real[:, None] & (dim < HEAD)[None, :])


def workspace_numbers(queries: int, heads: int, head_dim: int, chosen: Variant) -> int:
    """Of float32: a result and a mass for each query, head and part; none where one part writes the output itself."""
    return queries * heads * chosen["SPLITS"] * (head_dim + 1) if chosen["SPLITS"] > 1 else 0


def room(query: Tensor, chosen: Variant, workspace: Tensor | None) -> tuple[Tensor, Tensor]:
    """Results and masses of the parts of `query` (queries, heads, head_dim), in `workspace` or allocated. ValueError:
    a workspace that is no float32, or less than `workspace_numbers`."""
    queries, heads, head_dim = query.shape
    needed = workspace_numbers(queries, heads, head_dim, chosen)
    if workspace is None:
        workspace = torch.empty(needed, dtype=torch.float32, device=query.device)
    elif workspace.dtype != torch.float32 or workspace.numel() < needed:
        raise ValueError(f"workspace must be {needed} float32, got {workspace.numel()} {workspace.dtype}")
    return workspace, workspace[queries * heads * chosen["SPLITS"] * head_dim :]


def join(partial: Tensor, mass: Tensor, sinks: Tensor | None, out: Tensor, chosen: Variant, *, rows: int) -> None:
    """`out` (queries, heads, head_dim) of what `room` holds, `rows` heads of queries a program."""
    queries, heads, head_dim = out.shape
    merge[(triton.cdiv(queries * heads, rows),)](
        partial, mass, sinks, out, queries * heads, out.stride(0), HEADS=heads, HEAD=head_dim,
        HEAD_BLOCK=triton.next_power_of_2(head_dim), SPLITS=chosen["SPLITS"], ROWS=rows, **chosen.options,
    )  # fmt: skip


def merge_launch(variant: Variant, *, rows: int) -> Launch:
    """For 32 heads of 128, without sinks."""
    pointers: Mapping[str, str] = {"partial": "*fp32", "mass": "*fp32", "out": "*bf16"}
    shape = {"sinks": None, "HEADS": 32, "HEAD": 128, "HEAD_BLOCK": 128, "SPLITS": variant["SPLITS"], "ROWS": rows}
    signature = {**pointers, "rows": "i32", "out_stride": "i32"}
    return Launch(merge, signature, shape, (*pointers, "out_stride"), variant.options, "merge")
