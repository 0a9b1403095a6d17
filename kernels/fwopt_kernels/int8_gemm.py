"""y = (x * x_scale) @ (W * w_scale)^T with int8 activations and weights, bfloat16 result.

`int8-row`: a scale per row of x, found as it comes, what `rms_norm` and `silu_mul` write in `int8-row`. `int8-tensor`:
one scale for all of x, known before. W has a scale per channel in both. So compressed-tensors stores W8A8 in its format
`int-quantized` (`weight` (N, K) int8, `weight_scale` (N, 1)), and so vLLM multiplies it (`cutlass_scaled_mm`; both
Apache-2.0), which gives weights of one scale a scale per channel when it loads them. Symmetric numbers only: vLLM's
`cutlass_scaled_mm_azp`, with zero points of activations, is another operator. The kernel: `scaled_gemm.py`.

Sums are exact int32, over parts of K as well. So every variant gives the same result, to the bit, and a row's does not
depend on the others.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fwopt_kernels import row_formats, scaled_gemm
from fwopt_kernels.contract import FALLBACK, Expected, Variant
from fwopt_kernels.row_formats import MULTIPLE_K
from fwopt_kernels.scaled_gemm import Format, Scaled, ScaledCase, ScaledGemm

FORMATS = {"int8-row": Format(torch.int8, "row", "row"), "int8-tensor": Format(torch.int8, "all", "row")}
MOST_K = (2**31 - 1) // 128**2
"""Products of -128 by itself, summed in int32."""


def int8_gemm(x: Scaled, weight: Scaled, out: Tensor, *, format: str, variant: Variant | None = None) -> None:
    """out (M, N) bfloat16 = x (M, K) @ W^T; all with unit stride along their rows.

    Scales: of x (M,) in `int8-row`, one element in `int8-tensor`; of the weights (N,). K is 131,071 at most.
    """
    if variant == FALLBACK:
        INT8_GEMM.fallback(ScaledCase(format, x, weight, out))
        return
    scaled_gemm.require("int8_gemm", format, FORMATS[format], x, weight, out)
    if weight.values.shape[1] > MOST_K:
        raise ValueError(f"int8_gemm: int32 holds sums over K of {MOST_K} at most; got {weight.values.shape[1]}")
    chosen = variant or SPACES[format].default_for({"m": len(out)})
    scaled_gemm.launch(x, weight, out, format=FORMATS[format], variant=chosen)


class Int8Gemm(ScaledGemm):
    """The operator `int8_gemm`; shape: m, n, k."""

    name = "int8_gemm"

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> ScaledCase:
        m, n, k = (shape[name] for name in self.dimensions)
        random = torch.Generator().manual_seed(seed)
        width = k + padding // MULTIPLE_K * MULTIPLE_K
        x, weight = (torch.randint(-128, 128, (rows, width), generator=random).to(torch.int8) for rows in (m, n))
        return scaled_gemm.case(format, FORMATS[format], (x, weight), k, random, device)

    def reference(self, case: ScaledCase) -> dict[str, Expected]:
        """The sum's own rounding to float32, one for each scale, and that to bfloat16."""
        sums = case.x.values.double() @ case.weight.values.double().T
        values = sums * scaled_gemm.by_value(case.x, FORMATS[case.format].x, rows=1) * case.weight.scale.double()
        return {"out": Expected(values, rtol=2**-8 + 2**-22)}

    def run(self, case: ScaledCase, variant: Variant) -> None:
        int8_gemm(case.x, case.weight, case.out, format=case.format, variant=variant)

    def fallback(self, case: ScaledCase) -> None:
        sums = row_formats.int8_product(case.x.values, case.weight.values.T)
        case.out.copy_(sums.float() * case.x.scale.unsqueeze(1) * case.weight.scale)


SPACES = {name: scaled_gemm.space(format) for name, format in FORMATS.items()}
INT8_GEMM = Int8Gemm(FORMATS, SPACES)
