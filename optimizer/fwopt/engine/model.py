"""The decoder: Llama, Qwen3, Qwen3-MoE and gpt-oss are one stack of layers with parts present or absent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fwopt.engine import operators as op
from fwopt.engine.architecture import Architecture, Experts, Layer, frequencies
from fwopt.engine.batch import Batch, Masks
from fwopt.engine.linear import Linear
from fwopt.engine.parallel import Ranks
from fwopt.engine.paths import Attended, Path, Step, TorchPath
from fwopt.engine.weights import Loader
from fwopt_kernels.choice import Choices
from fwopt_kernels.moe_weights import Matrix


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    norm: Tensor
    qkv: Linear
    output: Linear
    head_norm: Tensor | None
    """(heads + kv heads, head size): of queries, then keys."""
    sinks: Tensor | None


@dataclass(frozen=True, slots=True)
class DenseWeights:
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    shape: Experts
    router: Linear
    up: Matrix
    """(experts, 2 * width, hidden): gate, then up."""
    down: Matrix
    biases: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    window: int | None
    attention: AttentionWeights
    mlp_norm: Tensor
    mlp: DenseWeights | ExpertWeights


class Model:
    """Weights of one rank, and the forward pass over a batch."""

    def __init__(
        self, shape: Architecture, loader: Loader, ranks: Ranks, max_positions: int, kernels: Choices | None = None
    ) -> None:
        self.shape, self.ranks, self.dtype, self.device = shape, ranks, loader.dtype, loader.device
        self.heads = ranks.share(shape.heads, "attention heads")
        kv = ranks.kv_slice(shape.kv_heads)
        self.kv_heads = kv.stop - kv.start
        self.scale = shape.head_dim**-0.5
        self.embedding = loader.embedding()
        self.layers = [self._layer(loader, f"model.layers.{i}", layer) for i, layer in enumerate(shape.layers)]
        self.norm = loader.vector("model.norm.weight", shape.hidden_size)
        self.head = loader.head()
        self.max_positions = max_positions
        self.path = self._path(kernels)
        windows = frozenset(layer.window_tokens for layer in shape.layers)
        self.masks = Masks(windows if self.path.masked else frozenset(), chunks=shape.sinks, dtype=self.dtype)

    def _path(self, kernels: Choices | None) -> Path:
        rates, factor = frequencies(self.shape.rope, self.shape.head_dim)
        angle = torch.arange(self.max_positions).double()[:, None] * torch.tensor(rates, dtype=torch.float32).double()
        cosine, sine = (angle.float().cos() * factor), (angle.float().sin() * factor)
        angles = cosine.to(self.device, self.dtype), sine.to(self.device, self.dtype)
        if kernels is None:
            return TorchPath(angles)
        from fwopt.engine.kernel_path import KernelPath  # needs Triton

        return KernelPath(angles, kernels)

    def _layer(self, loader: Loader, name: str, layer: Layer) -> LayerWeights:
        hidden = self.shape.hidden_size
        mlp: DenseWeights | ExpertWeights
        if layer.experts is None:
            mlp = DenseWeights(*loader.dense_mlp(f"{name}.mlp"))
        else:
            router, up, down, biases = loader.experts(f"{name}.mlp", layer.experts)
            mlp = ExpertWeights(layer.experts, router, up, down, biases)
        attention = f"{name}.self_attn"
        qkv, output = loader.attention(attention)
        weights = AttentionWeights(
            norm=loader.vector(f"{name}.input_layernorm.weight", hidden),
            qkv=qkv,
            output=output,
            head_norm=self._head_norm(loader, attention) if self.shape.qk_norm else None,
            sinks=loader.heads_vector(f"{attention}.sinks") if self.shape.sinks else None,
        )
        norm = loader.vector(f"{name}.post_attention_layernorm.weight", hidden)
        return LayerWeights(layer.window_tokens, weights, norm, mlp)

    def _head_norm(self, loader: Loader, name: str) -> Tensor:
        q, k = (loader.vector(f"{name}.{part}_norm.weight", self.shape.head_dim) for part in "qk")
        return torch.cat((q.expand(self.heads, -1), k.expand(self.kv_heads, -1)))

    def forward(self, batch: Batch, caches: Sequence[Tensor]) -> Tensor:
        """Hidden states (T, hidden) after the last norm; writes the keys and values of the batch's tokens."""
        residual, eps = self.embed(batch.tokens), self.shape.norm_eps
        step = self.path.step(batch, caches[0])
        norms = [*(layer.attention.norm for layer in self.layers[1:]), self.norm]
        x = op.rms_norm(residual, self.layers[0].attention.norm, eps)
        for layer, cache, norm in zip(self.layers, caches, norms, strict=True):
            attended = self.ranks.sum(self._attention(layer, x, batch, step, cache))
            x = self.path.add_norm(attended, residual, layer.mlp_norm, eps)
            x = self.path.add_norm(self.ranks.sum(self._mlp(layer.mlp, x)), residual, norm, eps)
        return x

    def embed(self, tokens: Tensor) -> Tensor:
        if self.ranks.size == 1:
            return F.embedding(tokens, self.embedding)
        local = tokens - self.ranks.rank * len(self.embedding)
        here = (local >= 0) & (local < len(self.embedding))
        return self.ranks.sum(F.embedding(local * here, self.embedding) * here[:, None])

    def logits(self, hidden: Tensor) -> Tensor:
        """(N, vocabulary) in float32."""
        return self.ranks.join(self.head(hidden))[:, : self.shape.vocab_size].float()

    def _attention(self, layer: LayerWeights, x: Tensor, batch: Batch, step: Step, cache: Tensor) -> Tensor:
        weights, heads, size = layer.attention, self.heads, self.shape.head_dim
        qkv = weights.qkv(x).view(len(x), -1, size)
        if weights.head_norm is not None:
            turning = qkv[:, : heads + self.kv_heads]
            turning.copy_(F.rms_norm(turning, (size,), None, self.shape.norm_eps) * weights.head_norm)
        step.store(qkv, heads, cache)
        q, how = qkv[:, :heads], Attended(self.scale, layer.window, weights.sinks)
        parts = [step.decode(q[group.rows], cache, i, how) for i, group in enumerate(batch.decodes)]
        if batch.chunks:
            parts.append(step.prefill(qkv, heads, cache, how))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return weights.output(out.reshape(len(x), -1))

    def _mlp(self, mlp: DenseWeights | ExpertWeights, x: Tensor) -> Tensor:
        if isinstance(mlp, DenseWeights):
            return mlp.down(self.path.silu_mul(mlp.gate_up(x)))
        scores, shape = mlp.router(x), mlp.shape
        if shape.biased:
            best, chosen = scores.topk(shape.per_token, dim=-1)
            weights = best.softmax(dim=-1)
        else:
            weights, chosen = scores.float().softmax(dim=-1).topk(shape.per_token, dim=-1)
            if shape.normalize:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            weights = weights.to(x.dtype)
        return self.path.experts(x, mlp.up, mlp.down, chosen, weights, mlp.biases, shape.limit)
