"""Inputs of the mixture-of-experts layer, its float64 reference and its torch fallback.

The reference rounds where the layer rounds: to bfloat16 between its steps, to e4m3 groups before products of
`fp8-block`. How far each number may be off is carried along, and a number that this could push over to a neighbour of
the format may be off by the step between them. So tolerances are tight without the arithmetic being the kernels'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fwopt_kernels.contract import FALLBACK, Expected
from fwopt_kernels.moe_formats import quantized_torch, random_matrix
from fwopt_kernels.moe_weights import BLOCK, Matrix
from fwopt_kernels.row_formats import Rows
from fwopt_kernels.silu_mul import SLOPE, silu_mul
from fwopt_kernels.tolerance import Pair, moved, product, to_bf16

Choice = Literal["uniform", "one", "partial"]
"""Of experts: at random; the same ones for all tokens; at random and half of the ids -1, as of other ranks' experts."""
_LIMIT = 1.5
"""Of gpt-oss's activation; random numbers often reach it, hardly ever the 7 of its checkpoints."""


@dataclass(frozen=True)
class MoeCase:
    x: Tensor
    ids: Tensor
    probabilities: Tensor
    w1: Matrix
    w2: Matrix
    out: Tensor
    biases: tuple[Tensor, Tensor] | None = None
    limit: float | None = None

    def results(self) -> dict[str, Tensor]:
        return {"out": self.out.double()}


def random_case(format: str, shape: Mapping[str, int], seed: int, padding: int, device: str, choice: Choice) -> MoeCase:
    tokens, experts, top_k, hidden, inner = (
        shape[name] for name in ("tokens", "experts", "top_k", "hidden", "intermediate")
    )
    random = torch.Generator(device).manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=random, device=device)
    x = F.pad(x, (0, padding), value=float("nan")).to(torch.bfloat16)
    scores = torch.rand(tokens, experts, generator=random, device=device)
    if choice == "one":
        scores = torch.arange(experts, device=device).expand(tokens, experts) / experts
    best = scores.topk(top_k)
    ids = best.indices.int()
    if choice == "partial":
        ids = ids.masked_fill(torch.rand(tokens, top_k, generator=random, device=device) < 0.5, -1)
    biases = None
    if format == "mxfp4":
        first, second = (torch.randn(experts, n, generator=random, device=device) for n in (2 * inner, hidden))
        biases = first.to(torch.bfloat16), second.to(torch.bfloat16)
    return MoeCase(
        x[:, :hidden], ids, best.values.softmax(-1),
        random_matrix(format, experts, 2 * inner, hidden, random),
        random_matrix(format, experts, hidden, inner, random),
        torch.full((tokens, hidden + padding), float("nan"), dtype=torch.bfloat16, device=device)[:, :hidden],
        biases, None if biases is None else _LIMIT,
    )  # fmt: skip


def _to_groups(x: Pair) -> Pair:
    """Through e4m3 groups, whose scales may be off as their largest number is; float32 divides as the kernel does."""
    values, off = x
    magnitudes = (values, (values.abs() - off).clamp(min=0), values.abs() + off)
    scale, least, most = (
        quantized_torch(size).scale.repeat_interleave(BLOCK, 1)[:, : values.shape[1]] for size in magnitudes
    )
    shift = ((most - least) / scale).double() * values.abs()

    def rounding(numbers: Tensor) -> Tensor:
        codes = (numbers.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        return codes.double() * scale.double()

    middle, steps = moved(rounding, (values, off + shift))
    return middle, steps + shift


def _gated(x: Pair, limit: float | None) -> Pair:
    """Slopes of silu and of gpt-oss's activation are at most 1.1."""
    (gate, up), (gate_off, up_off) = (part.chunk(2, -1) for part in x)
    silu_off = 1.1 * gate_off + 2**-20 * gate.abs()
    if limit is None:
        silu, silu_off = to_bf16((F.silu(gate), silu_off))
    else:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit) + 1
        silu = gate * torch.sigmoid(SLOPE * gate)
    off = silu_off * (up.abs() + up_off) + silu.abs() * up_off
    return to_bf16((silu * up, off + 2**-22 * (silu * up).abs()))


def expected(case: MoeCase) -> dict[str, Expected]:
    """Tensor cores of Hopper sum e4m3 products with some 14 bits, bfloat16 ones with float32's, cut off."""
    narrow = case.w1.format == "fp8-block"
    unit = 2**-12 if narrow and case.x.is_cuda else 2**-16
    total, off = (torch.zeros(case.x.shape, dtype=torch.float64, device=case.x.device) for _ in range(2))
    for expert in range(case.w1.values.shape[0]):
        token, choice = (case.ids == expert).nonzero(as_tuple=True)
        x = case.x[token].double()
        rows: Pair = (x, torch.zeros_like(x))
        if narrow:
            rows = _to_groups(rows)
        first, second = (0.0, 0.0) if case.biases is None else (b[expert].double() for b in case.biases)
        hidden = _gated(to_bf16(product(rows, case.w1.dense(expert, torch.float64), first, unit)), case.limit)
        if narrow:
            hidden = _to_groups(hidden)
        values, wrong = to_bf16(product(hidden, case.w2.dense(expert, torch.float64), second, unit))
        share = case.probabilities[token, choice].double().unsqueeze(1)
        total.index_add_(0, token, values * share)
        off.index_add_(0, token, (wrong + 2**-22 * values.abs()) * share)
    return {"out": Expected(total, rtol=2**-8 * 1.01, atol=off + 1e-30)}


def fallback(case: MoeCase) -> None:
    """In float32 between the roundings."""
    narrow = case.w1.format == "fp8-block"
    total = torch.zeros(case.x.shape, device=case.x.device)
    for expert in range(case.w1.values.shape[0]):
        token, choice = (case.ids == expert).nonzero(as_tuple=True)
        if not len(token):
            continue
        x = case.x[token]
        x = quantized_torch(x).dense(torch.float32) if narrow else x.float()
        first, second = (0.0, 0.0) if case.biases is None else (b[expert].float() for b in case.biases)
        both = (x @ case.w1.dense(expert, torch.float32).T + first).to(torch.bfloat16)
        rounded = torch.empty_like(both[:, : case.w2.inputs])
        silu_mul(both, Rows("bf16", rounded, None), limit=case.limit, variant=FALLBACK)
        hidden = quantized_torch(rounded).dense(torch.float32) if narrow else rounded.float()
        rows = (hidden @ case.w2.dense(expert, torch.float32).T + second).to(torch.bfloat16).float()
        total.index_add_(0, token, rows * case.probabilities[token, choice].unsqueeze(1))
    case.out.copy_(total)
