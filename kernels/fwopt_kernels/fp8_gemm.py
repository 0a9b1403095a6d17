"""y = (x * x_scale) @ (W * w_scale)^T with e4m3 activations and weights, bfloat16 result.

`fp8-tensor`: a scale each. `fp8-row`: a scale per row of x and per channel of W. `fp8-block`: per 128 values of K of a
row of x, and per 128 x 128 values of W, as DeepSeek-V3 stores them and vLLM reads them (`weight_scale_inv`).
The kernel: `scaled_gemm.py`.

Sums on Hopper: the matrix unit adds e4m3 products with about 14 bits (DeepSeek-V3 report, arXiv 2412.19437, section
3.3.2). `fp8-block` moves its sums to float32 every 128 values of K; the other formats leave them there for the whole of
K (Triton's default on sm_90, `max_num_imprecise_acc` 2**30), as vLLM's CUTLASS kernels with fast accumulation do.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fwopt_kernels import scaled_gemm
from fwopt_kernels.contract import FALLBACK, Expected, Variant
from fwopt_kernels.row_formats import MULTIPLE_K
from fwopt_kernels.scaled_gemm import SCALE_BLOCK, Format, Scaled, ScaledCase, ScaledGemm

_E4M3 = torch.float8_e4m3fn
FORMATS = {
    "fp8-tensor": Format(_E4M3, "all", "all"),
    "fp8-row": Format(_E4M3, "row", "row"),
    "fp8-block": Format(_E4M3, "block", "block"),
}


def fp8_gemm(x: Scaled, weight: Scaled, out: Tensor, *, format: str, variant: Variant | None = None) -> None:
    """out (M, N) bfloat16 = x (M, K) @ W^T; all with unit stride along their rows.

    Scales: `fp8-tensor` one element each; `fp8-row` (M,) and (N,); `fp8-block` (M, K / 128) and (N / 128, K / 128),
    rounded up.
    """
    if variant == FALLBACK:
        FP8_GEMM.fallback(ScaledCase(format, x, weight, out))
        return
    scaled_gemm.require("fp8_gemm", format, FORMATS[format], x, weight, out)
    chosen = variant or SPACES[format].default_for({"m": len(out)})
    scaled_gemm.launch(x, weight, out, format=FORMATS[format], variant=chosen)


class Fp8Gemm(ScaledGemm):
    """The operator `fp8_gemm`; shape: m, n, k."""

    name = "fp8_gemm"

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> ScaledCase:
        m, n, k = (shape[name] for name in self.dimensions)
        random = torch.Generator().manual_seed(seed)

        def numbers(rows: int) -> Tensor:
            values = 16 * torch.randn(rows, k + padding // MULTIPLE_K * MULTIPLE_K, generator=random)
            values[:, k:] = float("nan")
            return values.to(_E4M3)

        return scaled_gemm.case(format, FORMATS[format], (numbers(m), numbers(n)), k, random, device)

    def reference(self, case: ScaledCase) -> dict[str, Expected]:
        """Each matrix instruction, 32 values of K, cuts the running sum at 2**-13 of itself, and cutting adds up; a
        running sum hardly exceeds 4 times the root of its squared terms."""
        x, weight = _dequantized(case)
        steps = (SCALE_BLOCK if FORMATS[case.format].blocked else x.shape[1]) / 32
        atol = (steps * 4 * 2**-13 + 2**-16) * (x.square() @ weight.square().T).sqrt()
        return {"out": Expected(x @ weight.T, rtol=2**-8 * 1.01, atol=atol)}

    def run(self, case: ScaledCase, variant: Variant) -> None:
        fp8_gemm(case.x, case.weight, case.out, format=case.format, variant=variant)

    def fallback(self, case: ScaledCase) -> None:
        x, weight = _dequantized(case)
        case.out.copy_(x.float() @ weight.float().T)


def _dequantized(case: ScaledCase) -> tuple[Tensor, Tensor]:
    """x (M, K) and W (N, K) in float64."""
    facts = FORMATS[case.format]
    x, weight = (one.values.float().double() for one in (case.x, case.weight))
    return (
        x * scaled_gemm.by_value(case.x, facts.x, rows=1),
        weight * scaled_gemm.by_value(case.weight, facts.weight, rows=SCALE_BLOCK),
    )


SPACES = {name: scaled_gemm.space(format) for name, format in FORMATS.items()}
FP8_GEMM = Fp8Gemm(FORMATS, SPACES)
