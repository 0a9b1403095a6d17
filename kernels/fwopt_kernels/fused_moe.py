"""A mixture-of-experts layer: rows sorted by expert, two grouped products, the sum over each token's choices.

out[token] = sum over choices of probability * (silu(gate) * up) @ w2[expert].T, gate and up the two halves of
x @ w1[expert].T: what vLLM's `fused_experts` computes with its Triton kernels, rounded to bfloat16 between the steps.
Probabilities multiply in the last sum, in float32. gpt-oss's layer has biases after both products and an activation of
its own (`silu_mul`'s, with a limit). One variant serves both products, as one entry of vLLM's tuned
files does; `tuned` gives that entry. A choice whose expert id is outside 0..experts - 1 counts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from fwopt_kernels import w4a16
from fwopt_kernels.contract import (
    FALLBACK,
    NUM_STAGES,
    NUM_WARPS,
    PLAIN,
    Expected,
    Large,
    Launch,
    Space,
    Variant,
    Work,
    variant,
)  # fmt: skip
from fwopt_kernels.moe_case import Choice, MoeCase, expected, fallback, random_case
from fwopt_kernels.moe_formats import FORMATS, quantize_launch, quantized
from fwopt_kernels.moe_gemm import grouped, launch
from fwopt_kernels.moe_routing import align, align_launch
from fwopt_kernels.moe_weights import Matrix, matrix_bytes
from fwopt_kernels.rounding import to_bf16
from fwopt_kernels.row_formats import Rows, require_packed
from fwopt_kernels.silu_mul import SILU_MUL, silu_mul

_BLOCK = 1024


@triton.jit
def _sum_choices(
    rows, ids, probabilities, out, columns, experts, rows_stride, out_stride, TOP_K: tl.constexpr, BLOCK: tl.constexpr
):
    """A program a part of a token; rows of choices without an expert were never written."""
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for choice in tl.static_range(TOP_K):
        pair = token * TOP_K + choice
        expert = tl.load(ids + pair)
        known = (expert >= 0) & (expert < experts)
        end = tl.where(known, columns, 0)
        values = tl.load(rows + pair * rows_stride + at, mask=at < end, other=0.0)
        total += values.to(tl.float32) * tl.where(known, tl.load(probabilities + pair), 0.0)
    tl.store(out + token * out_stride + at, to_bf16(total), mask=at < columns)


def fused_moe(
    x: Tensor, ids: Tensor, probabilities: Tensor, w1: Matrix, w2: Matrix, out: Tensor, *,
    biases: tuple[Tensor, Tensor] | None = None, limit: float | None = None, variant: Variant | None = None,
) -> None:  # fmt: skip
    """x, out (tokens, hidden) bfloat16. ids (tokens, top_k) int32, probabilities likewise float32, both contiguous.

    Rows of x for `w4a16` lie an even number of values apart. w1 (experts, 2 * intermediate, hidden), gate before up; w2
    (experts, hidden, intermediate). biases: (experts, outputs) bfloat16 of both. limit: gpt-oss's activation, cut
    there.
    """
    if variant == FALLBACK:
        fallback(MoeCase(x, ids, probabilities, w1, w2, out, biases, limit))
        return
    (tokens, top_k), experts, inner = ids.shape, w1.values.shape[0], w1.outputs // 2
    if tokens == 0:
        return
    require_packed(x=x, out=out)
    if not (ids.is_contiguous() and probabilities.is_contiguous()):
        raise ValueError("ids and probabilities must be contiguous")
    if w1.format == "w4a16" and (x.stride(0) % 2 or x.storage_offset() % 2):
        raise ValueError(
            f"x: w4a16 experts read numbers in pairs, rows must begin at even ones; they are {x.stride(0)} apart"
        )
    if (w1.inputs, w2.inputs, w2.outputs) != (x.shape[1], inner, x.shape[1]):
        raise ValueError(
            f"weights of {w1.outputs} x {w1.inputs} and {w2.outputs} x {w2.inputs} do not fit {x.shape[1]} columns"
        )
    first, second = (None, None) if biases is None else biases
    for name, bias, weights in (("w1", first, w1), ("w2", second, w2)):
        if bias is not None and not (bias.shape == (experts, weights.outputs) and bias.is_contiguous()):
            raise ValueError(f"{name}: biases must be contiguous {(experts, weights.outputs)}, got {tuple(bias.shape)}")
    if limit is not None and w1.format == "fp8-block":
        raise ValueError(f"fp8-block experts know silu only, got an activation cut at {limit}")
    shape = {"tokens": tokens, "top_k": top_k, "experts": experts}
    chosen, pairs = variant or SPACES[w1.format].default_for(shape), ids.numel()
    narrow = w1.format == "fp8-block"
    routing = align(ids, experts, chosen["BLOCK_SIZE_M"])

    def buffer(columns: int) -> Tensor:
        return torch.empty(pairs, columns, dtype=torch.bfloat16, device=x.device)

    both = buffer(2 * inner)
    narrowed = quantized(x, silu=False) if narrow else x
    grouped(narrowed, w1, first, routing, both, count=pairs, top_k=top_k, variant=chosen)
    hidden = quantized(both, silu=True) if narrow else buffer(inner)
    if isinstance(hidden, Tensor):
        silu_mul(both, Rows("bf16", hidden, None), limit=limit)
    rows = buffer(x.shape[1])
    grouped(hidden, w2, second, routing, rows, count=pairs, top_k=1, variant=chosen)
    _sum_choices[(tokens, triton.cdiv(x.shape[1], _BLOCK))](
        rows, ids, probabilities, out, x.shape[1], experts, rows.stride(0), out.stride(0),
        TOP_K=top_k, BLOCK=_BLOCK, **PLAIN,
    )  # fmt: skip


def tuned(chosen: Variant) -> dict[str, int]:
    """The variant as an entry of vLLM's and SGLang's tuned files."""
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M")
    return {**{n: chosen[n] for n in names}, NUM_WARPS: chosen.num_warps, NUM_STAGES: chosen.num_stages}


def _space(format: str) -> Space:
    """Small blocks of rows serve decoding: an expert has few rows, no two of its blocks share weights, so GROUP_SIZE_M
    is idle. 64 rows and more serve prompts: narrow panels would only read the rows more often. Scales that inputs
    share end BLOCK_SIZE_K at 128, and their sums take registers twice: 64 a thread are all that do not spill, with
    4-bit weights, unpacked in registers, 32. Steps on their way hold 12 KiB or more (bf16: 24), all steps 192 or
    less."""
    size, least, most = {"bf16": (2.0, 24, 128), "fp8-block": (1.0, 12, 64), "w4a16": (0.5, 12, 32)}[format]
    row_size = 1 if format == "fp8-block" else 2
    prompts_tile = {"BLOCK_SIZE_N": 64 if format == "w4a16" else 128, "BLOCK_SIZE_K": 64 if format == "bf16" else 128}

    def allowed(v: Variant) -> bool:
        m, n, k, group = (v[name] for name in ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M"))
        step_kib = k * (n * size + m * row_size) / 1024
        decoding = m < 64 and group == 1 and n <= 128 and v.num_warps == 4
        prompts = m >= 64 and n >= 64 and k <= 128 and most // 2 <= m * n // (32 * v.num_warps) <= most
        fits = step_kib * (v.num_stages - 1) >= least and step_kib * v.num_stages <= 192
        return (decoding or prompts) and fits

    return Space(
        {
            "BLOCK_SIZE_M": (16, 32, 64, 128), "BLOCK_SIZE_N": (32, 64, 128, 256),
            "BLOCK_SIZE_K": (64, 128, 256) if format == "bf16" else (64, 128), "GROUP_SIZE_M": (1, 16),
            NUM_WARPS: (4, 8), NUM_STAGES: (2, 3, 4, 5),
        },
        default=variant(4, 4, BLOCK_SIZE_M=16, BLOCK_SIZE_N=64, BLOCK_SIZE_K=128, GROUP_SIZE_M=1),
        allowed=allowed,
        large=Large(_rows_of_an_expert, 32, variant(4, 3, BLOCK_SIZE_M=64, GROUP_SIZE_M=16, **prompts_tile)),
    )  # fmt: skip


def _tiled_space() -> Space:
    """MXFP4 in tiles: `w4a16`'s blocks, for its reasons, K undivided, as there are many experts. Rows have addresses of
    their own here, so 128 of them by 32 channels a warp spill with 8 warps, too (48 bytes of stack a thread)."""

    def allowed(v: Variant) -> bool:
        m, n, k, group = (v[name] for name in ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M"))
        blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP_M": group, "SPLIT_K": 1, "PERSIST": 0}
        spills = m == 128 and n == 32 * v.num_warps
        return w4a16.allowed(variant(v.num_warps, v.num_stages, **blocks)) and not spills

    return Space(
        {
            "BLOCK_SIZE_M": (16, 32, 64, 128), "BLOCK_SIZE_N": (64, 128, 256), "BLOCK_SIZE_K": (128, 256),
            "GROUP_SIZE_M": (1, 16), NUM_WARPS: (4, 8), NUM_STAGES: (3, 4, 6),
        },
        default=variant(4, 4, BLOCK_SIZE_M=16, BLOCK_SIZE_N=128, BLOCK_SIZE_K=128, GROUP_SIZE_M=1),
        allowed=allowed,
        large=Large(
            _rows_of_an_expert, 32,
            variant(8, 3, BLOCK_SIZE_M=64, BLOCK_SIZE_N=128, BLOCK_SIZE_K=128, GROUP_SIZE_M=16),
        ),
    )  # fmt: skip


def _rows_of_an_expert(shape: Mapping[str, int]) -> float:
    """In the mean."""
    return shape["tokens"] * shape["top_k"] / shape["experts"]


SPACES = {format: _tiled_space() if format == "mxfp4" else _space(format) for format in FORMATS}


@dataclass(frozen=True)
class FusedMoe:
    """The operator `fused_moe`: a whole layer; in `mxfp4`, gpt-oss's."""

    choice: Choice = "uniform"
    name = "fused_moe"
    formats = FORMATS
    dimensions = ("tokens", "experts", "top_k", "hidden", "intermediate")

    def space(self, format: str) -> Space:
        return SPACES[format]

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        """Both products are one kernel. Those that no variant changes are the default's alone."""
        if variant != SPACES[format].default:
            return (launch(format, variant),)
        pointers = {"rows": "*bf16", "ids": "*i32", "probabilities": "*fp32", "out": "*bf16"}
        sizes = ("columns", "rows_stride", "out_stride")
        signature = {**pointers, "columns": "i32", "experts": "i32", "rows_stride": "i32", "out_stride": "i32"}
        constants = {"TOP_K": 8, "BLOCK": _BLOCK}
        total = Launch(_sum_choices, signature, constants, (*pointers, *sizes), PLAIN, "sum")
        if format == "fp8-block":
            between = tuple(quantize_launch(silu=silu) for silu in (False, True))
        else:
            (silu,) = SILU_MUL.launches("bf16", SILU_MUL.space("bf16").default)
            between = (replace(silu, constants={**silu.constants, "LIMIT": 7.0 if format == "mxfp4" else 0.0}),)
        return (launch(format, variant), align_launch(128, variant["BLOCK_SIZE_M"]), *between, total)

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        """With the experts that uniform choices hit on average; what lies between the steps need not leave the chip."""
        tokens, experts, top_k, hidden, inner = (shape[name] for name in self.dimensions)
        hit = round(experts * (1 - (1 - top_k / experts) ** tokens))
        weights = matrix_bytes(format, 2 * inner, hidden) + matrix_bytes(format, hidden, inner)
        if format == "mxfp4":  # its biases
            weights += 2 * (2 * inner + hidden)
        return Work(hit * weights + tokens * (4 * hidden + 8 * top_k), 6 * tokens * top_k * hidden * inner)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> MoeCase:
        return random_case(format, shape, seed, padding, device, self.choice)

    def reference(self, case: MoeCase) -> dict[str, Expected]:
        return expected(case)

    def run(self, case: MoeCase, variant: Variant) -> None:
        fused_moe(
            case.x, case.ids, case.probabilities, case.w1, case.w2, case.out, biases=case.biases, limit=case.limit,
            variant=variant,
        )  # fmt: skip

    def fallback(self, case: MoeCase) -> None:
        fallback(case)


FUSED_MOE = FusedMoe()
