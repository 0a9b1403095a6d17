"""vLLM's own Triton kernel for fused experts as an operator to tune, where vLLM is installed. bf16.

Not run on a GPU yet. vLLM is called as its layers call it, with `override_config` choosing the variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fwopt_kernels.contract import NUM_STAGES, NUM_WARPS, Expected, Launch, Space, Variant, Work, variant


def _allowed(v: Variant) -> bool:
    """Tiles of both operands in shared memory, accumulators in registers."""
    m, n, k = (v[f"BLOCK_SIZE_{name}"] for name in "MNK")
    return (m + n) * k * 2 * v.num_stages <= 227 * 1024 and m * n // (32 * v.num_warps) <= 128


SPACE = Space(
    {
        "BLOCK_SIZE_M": (16, 32, 64, 128), "BLOCK_SIZE_N": (32, 64, 128, 256), "BLOCK_SIZE_K": (64, 128, 256),
        "GROUP_SIZE_M": (1, 16), NUM_WARPS: (4, 8), NUM_STAGES: (2, 3, 4, 5),
    },
    default=variant(4, 4, BLOCK_SIZE_M=16, BLOCK_SIZE_N=64, BLOCK_SIZE_K=128, GROUP_SIZE_M=1),
    allowed=_allowed,
)  # fmt: skip


@dataclass
class MoeCase:
    x: Tensor
    """(tokens, hidden)"""
    up: Tensor
    """(experts, 2 * intermediate, hidden): gate and up"""
    down: Tensor
    """(experts, hidden, intermediate)"""
    weights: Tensor
    """(tokens, top_k) float32"""
    ids: Tensor
    """(tokens, top_k) int32"""
    out: Tensor

    def results(self) -> dict[str, Tensor]:
        return {"out": self.out.double()}


class VllmFusedMoe:
    """The operator `vllm_fused_moe`; dimensions as `fused_moe`'s."""

    name = "vllm_fused_moe"
    formats: tuple[str, ...] = ("bf16",)
    dimensions = ("tokens", "experts", "top_k", "hidden", "intermediate")

    def space(self, format: str) -> Space:
        return SPACE

    def launches(self, format: str, variant: Variant) -> tuple[Launch, ...]:
        return ()

    def work(self, format: str, shape: Mapping[str, int]) -> Work:
        tokens, experts, top_k, hidden, inner = (shape[name] for name in self.dimensions)
        touched = min(experts, tokens * top_k)
        moved = 2 * (3 * touched * hidden * inner + 2 * tokens * hidden)
        return Work(moved, 6 * tokens * top_k * hidden * inner)

    def case(
        self, format: str, shape: Mapping[str, int], seed: int, *, padding: int = 0, device: str = "cpu"
    ) -> MoeCase:
        tokens, experts, top_k, hidden, inner = (shape[name] for name in self.dimensions)
        random = torch.Generator(device=device).manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=random, device=device)

        weights, ids = torch.topk(torch.softmax(normal(tokens, experts), -1), top_k)
        x = normal(tokens, hidden).bfloat16()
        up, down = (normal(experts, 2 * inner, hidden), normal(experts, hidden, inner))
        return MoeCase(
            x, (up * hidden**-0.5).bfloat16(), (down * inner**-0.5).bfloat16(), weights.float(),
            ids.to(torch.int32), torch.full_like(x, float("nan")),
        )  # fmt: skip

    def reference(self, case: MoeCase) -> dict[str, Expected]:
        """Between the products bf16, as in the kernels: three roundings and a sum, relative to the largest value."""
        total = torch.zeros(case.x.shape, dtype=torch.float64, device=case.x.device)
        for expert in range(case.up.shape[0]):
            token, choice = (case.ids == expert).nonzero(as_tuple=True)
            if len(token):
                gate, up = (case.x[token].double() @ case.up[expert].double().T).chunk(2, -1)
                inner = (gate * torch.sigmoid(gate) * up) @ case.down[expert].double().T
                total.index_add_(0, token, inner * case.weights[token, choice].double()[:, None])
        return {"out": Expected(total, rtol=2**-6, atol=total.abs().amax() * 2**-6)}

    def run(self, case: MoeCase, variant: Variant) -> None:
        from vllm.model_executor.layers.fused_moe import override_config
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts_impl

        config = {**dict(variant.constants), "SPLIT_K": 1, NUM_WARPS: variant.num_warps, NUM_STAGES: variant.num_stages}
        with override_config(config):
            case.out.copy_(fused_experts_impl(case.x, case.up, case.down, case.weights, case.ids))

    def fallback(self, case: MoeCase) -> None:
        case.out.copy_(self.reference(case)["out"].values.to(torch.bfloat16))


VLLM_FUSED_MOE = VllmFusedMoe()
