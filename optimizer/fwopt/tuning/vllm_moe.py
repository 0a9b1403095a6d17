"""vLLM's own Triton kernel for fused experts as an operator to tune, called as vLLM's layers call it.

Runs in vLLM's Python (`operators.home`). Inputs and reference are `fused_moe`'s, whose layouts and roundings are
vLLM's. Facts, vLLM 0.24.0 and 0.32.0 (Apache-2.0), `model_executor/layers/fused_moe/fused_moe.py`: SPLIT_K is one
whatever an entry says, and with scales in blocks BLOCK_SIZE_K is at most a block's. Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fwopt_kernels.contract import NUM_STAGES, NUM_WARPS, Expected, Large, Launch, Space, Variant, Work, variant
from fwopt_kernels.fused_moe import FUSED_MOE
from fwopt_kernels.moe_case import MoeCase
from fwopt_kernels.moe_weights import BLOCK


def _space(format: str) -> Space:
    size = 1 if format == "fp8-block" else 2

    def allowed(v: Variant) -> bool:
        """Tiles of both operands in shared memory, accumulators in registers."""
        m, n, k = (v[f"BLOCK_SIZE_{name}"] for name in "MNK")
        return (m + n) * k * size * v.num_stages <= 227 * 1024 and m * n // (32 * v.num_warps) <= 128

    return Space(
        {
            "BLOCK_SIZE_M": (16, 32, 64, 128), "BLOCK_SIZE_N": (32, 64, 128, 256),
            "BLOCK_SIZE_K": (64, 128, 256) if format == "bf16" else (64, BLOCK), "GROUP_SIZE_M": (1, 16, 32),
            NUM_WARPS: (4, 8), NUM_STAGES: (2, 3, 4, 5),
        },
        default=variant(4, 4, BLOCK_SIZE_M=16, BLOCK_SIZE_N=64, BLOCK_SIZE_K=128, GROUP_SIZE_M=1),
        allowed=allowed,
        large=Large(
            lambda shape: shape["tokens"], 513,
            variant(8, 3, BLOCK_SIZE_M=128, BLOCK_SIZE_N=128, BLOCK_SIZE_K=64 * 2 // size, GROUP_SIZE_M=1),
        ),
    )  # fmt: skip


SPACES = {format: _space(format) for format in ("bf16", "fp8-block")}
"""Defaults are those that vLLM has for bf16 at the least and the most tokens where no file is."""


def entry(chosen: Variant) -> dict[str, int]:
    """As vLLM's tuned files have it."""
    return {**dict(chosen.constants), NUM_WARPS: chosen.num_warps, NUM_STAGES: chosen.num_stages}


class VllmFusedMoe:
    """The operator `vllm_fused_moe`; dimensions as `fused_moe`'s."""

    name = "vllm_fused_moe"
    formats: tuple[str, ...] = tuple(SPACES)
    dimensions = FUSED_MOE.dimensions

    def space(self, format: str) -> Space:
        return SPACES[format]

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        return ()

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        return FUSED_MOE.work(format, shape)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> MoeCase:
        return FUSED_MOE.case(format, shape, seed, padding=padding, device=device)

    def reference(self, case: MoeCase) -> dict[str, Expected]:
        """vLLM rounds each choice after its probability was multiplied in, and adds a few choices in bfloat16: steps of
        terms that may cancel, so relative to the largest result."""
        expected = FUSED_MOE.reference(case)["out"]
        return {"out": replace(expected, atol=expected.atol + 2**-7 * expected.values.abs().amax())}

    def run(self, case: MoeCase, variant: Variant) -> None:
        from vllm.model_executor.layers.fused_moe import override_config
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts_impl

        scaled = case.w1.scale is not None
        with override_config({**entry(variant), "SPLIT_K": 1}):
            out = fused_experts_impl(
                case.x, case.w1.values, case.w2.values, case.probabilities, case.ids, use_fp8_w8a8=scaled,
                w1_scale=case.w1.scale, w2_scale=case.w2.scale, block_shape=[BLOCK, BLOCK] if scaled else None,
            )  # fmt: skip
        case.out.copy_(out)

    def fallback(self, case: MoeCase) -> None:
        FUSED_MOE.fallback(case)


VLLM_FUSED_MOE = VllmFusedMoe()
