"""One decoder layer in plain torch: norms, projections, rotary embedding, causal attention, gated MLP."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from fwopt.errors import UnmeasuredError
from fwopt.spec.model import GroupedQueryAttention, LayerGroup, ModelSpec


class TorchLayer:
    """Random bf16 weights; called on (1, tokens, hidden)."""

    def __init__(self, model: ModelSpec, group: LayerGroup, device: str) -> None:
        a, mlp, hidden = group.attention, group.mlp, model.hidden_size
        if not isinstance(a, GroupedQueryAttention) or mlp.kind != "dense":
            raise UnmeasuredError(
                f"{model.name}: only layers of grouped-query attention and a dense MLP are timed whole"
            )
        self.attention = a

        def weight(n: int, k: int) -> torch.Tensor:
            scaled: torch.Tensor = torch.randn(n, k, dtype=torch.bfloat16, device=device) / k**0.5
            return scaled

        self.qkv = weight((a.heads + 2 * a.kv_heads) * a.head_dim, hidden)
        self.out = weight(hidden, a.heads * a.head_dim)
        self.up = weight((2 if mlp.gated else 1) * mlp.intermediate_size, hidden)
        self.down = weight(hidden, mlp.intermediate_size)
        self.gated = mlp.gated
        self.norms = torch.ones(2, hidden, dtype=torch.bfloat16, device=device)

    @staticmethod
    def input(model: ModelSpec, tokens: int, device: str) -> torch.Tensor:
        return torch.randn(1, tokens, model.hidden_size, dtype=torch.bfloat16, device=device)

    def __call__(self, x: torch.Tensor) -> Any:
        a = self.attention
        tokens, hidden = x.shape[1], x.shape[2]
        projected = functional.linear(functional.rms_norm(x, (hidden,), self.norms[0]), self.qkv)
        heads = projected.view(1, tokens, a.heads + 2 * a.kv_heads, a.head_dim).transpose(1, 2)
        q, k, v = torch.split(heads, [a.heads, a.kv_heads, a.kv_heads], dim=1)
        mixed = functional.scaled_dot_product_attention(
            rotated(q), rotated(k), v, is_causal=True, enable_gqa=a.heads != a.kv_heads
        )
        x = x + functional.linear(mixed.transpose(1, 2).reshape(1, tokens, -1), self.out)
        wide = functional.linear(functional.rms_norm(x, (hidden,), self.norms[1]), self.up)
        if self.gated:
            gate, wide = wide.chunk(2, dim=-1)
            wide = functional.silu(gate) * wide
        return x + functional.linear(wide, self.down)


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of (1, heads, tokens, size)."""
    tokens, size = x.shape[2], x.shape[3]
    rates = 10000.0 ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    angles = torch.outer(torch.arange(tokens, device=x.device, dtype=torch.float32), rates)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
