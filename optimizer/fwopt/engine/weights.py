"""From a checkpoint's tensors to the layers of one rank: sliced, fused, converted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fwopt.engine.architecture import Architecture, Experts
from fwopt.engine.checkpoint import Checkpoint
from fwopt.engine.expert_weights import Filling, plain
from fwopt.engine.linear import Linear, make_linear
from fwopt.engine.parallel import Ranks
from fwopt.spec.candidate import Bf16, Quantization, outside_experts
from fwopt_kernels import mxfp4
from fwopt_kernels.choice import Choices
from fwopt_kernels.moe_weights import Matrix, tiled


class Loader:
    """Builds layers. Projections that read the same input are fused into one."""

    def __init__(
        self,
        shape: Architecture,
        checkpoint: Checkpoint,
        quantization: Quantization,
        ranks: Ranks,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Choices | None = None,
    ) -> None:
        self._shape, self._checkpoint, self._ranks = shape, checkpoint, ranks
        self._experts, self._outside = quantization, outside_experts(quantization)
        self.dtype, self.device = dtype, device
        self._kernels = kernels

    def _get(self, name: str, *shape: int) -> Tensor:
        return self._checkpoint.tensor(name, shape).to(self.dtype)

    def _linear(self, weight: Tensor, bias: Tensor | None, scheme: Quantization) -> Linear:
        return make_linear(weight, bias, scheme, self.device, self._kernels)

    def vector(self, name: str, size: int) -> Tensor:
        return self._get(name, size).to(self.device)

    def heads_vector(self, name: str) -> Tensor:
        return self.vector(name, self._shape.heads)[self._ranks.part(self._shape.heads, "attention heads")]

    def _vocabulary(self, name: str) -> Tensor:
        """This rank's rows, the vocabulary padded with zeros so that it splits evenly."""
        shape, size = self._shape, self._ranks.size
        table = self._get(name, shape.vocab_size, shape.hidden_size)
        rows = -(-shape.vocab_size // size)
        table = torch.nn.functional.pad(table, (0, 0, 0, rows * size - shape.vocab_size))
        return table[self._ranks.rank * rows :][:rows].contiguous().to(self.device)

    def embedding(self) -> Tensor:
        return self._vocabulary("model.embed_tokens.weight")

    def head(self) -> Linear:
        """The LM head stays in the activations' dtype in every scheme."""
        tied = self._shape.tied_embeddings or not self._checkpoint.has("lm_head.weight")
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return self._linear(self._vocabulary(name), None, Bf16())

    def attention(self, name: str) -> tuple[Linear, Linear]:
        """(queries, keys and values; output)."""
        shape, size = self._shape, self._shape.head_dim
        q = self._ranks.part(shape.heads, "attention heads")
        kv = self._ranks.kv_slice(shape.kv_heads)
        parts = [("q", shape.heads, q), ("k", shape.kv_heads, kv), ("v", shape.kv_heads, kv)]
        weights, biases = [], []
        for part, heads, kept in parts:
            rows = slice(kept.start * size, kept.stop * size)
            weights.append(self._get(f"{name}.{part}_proj.weight", heads * size, shape.hidden_size)[rows])
            if shape.qkv_bias:
                biases.append(self._get(f"{name}.{part}_proj.bias", heads * size)[rows])
        columns = slice(q.start * size, q.stop * size)
        output = self._get(f"{name}.o_proj.weight", shape.hidden_size, shape.heads * size)[:, columns]
        bias = self._rank0(self._get(f"{name}.o_proj.bias", shape.hidden_size)) if shape.output_bias else None
        qkv = self._linear(torch.cat(weights), torch.cat(biases) if biases else None, self._outside)
        return qkv, self._linear(output, bias, self._outside)

    def dense_mlp(self, name: str) -> tuple[Linear, Linear]:
        """(gate and up, down)."""
        shape, hidden, width = self._shape, self._shape.hidden_size, self._shape.intermediate_size
        kept = self._ranks.part(width, "the MLP's width")
        up = [self._get(f"{name}.{part}_proj.weight", width, hidden)[kept] for part in ("gate", "up")]
        down = self._get(f"{name}.down_proj.weight", hidden, width)[:, kept]
        up_bias = down_bias = None
        if shape.mlp_bias:
            up_bias = torch.cat([self._get(f"{name}.{part}_proj.bias", width)[kept] for part in ("gate", "up")])
            down_bias = self._rank0(self._get(f"{name}.down_proj.bias", hidden))
        return self._linear(torch.cat(up), up_bias, self._outside), self._linear(down, down_bias, self._outside)

    def experts(self, name: str, experts: Experts) -> tuple[Linear, Matrix, Matrix, tuple[Tensor, Tensor] | None]:
        """(router, gate and up of all experts, down, their biases)."""
        if experts.biased:
            return self._gpt_oss(name, experts)
        hidden, width = self._shape.hidden_size, experts.intermediate_size
        kept = self._ranks.part(width, "an expert's width")
        own = kept.stop - kept.start
        up, down = (
            Filling(self._experts, experts.count, outputs, inputs, self.dtype, self.device)
            for outputs, inputs in ((2 * own, hidden), (hidden, own))
        )
        for e in range(experts.count):
            expert = f"{name}.experts.{e}"
            gate_up = [self._get(f"{expert}.{part}_proj.weight", width, hidden)[kept] for part in ("gate", "up")]
            up.put(e, torch.cat(gate_up))
            down.put(e, self._get(f"{expert}.down_proj.weight", hidden, width)[:, kept])
        router = self._get(f"{name}.gate.weight", experts.count, hidden)
        return self._linear(router, None, Bf16()), up.matrix, down.matrix, None

    def _gpt_oss(self, name: str, experts: Experts) -> tuple[Linear, Matrix, Matrix, tuple[Tensor, Tensor]]:
        """Rows of gate and up alternate in the checkpoint; here gate comes first."""
        hidden, width, count = self._shape.hidden_size, experts.intermediate_size, experts.count
        kept = self._ranks.part(width, "an expert's width")

        def own(rows: Tensor) -> Tensor:
            return torch.cat((rows[:, ::2][:, kept], rows[:, 1::2][:, kept]), dim=1)

        up = self._biased_matrix(f"{name}.experts.gate_up_proj", count, hidden, 2 * width, own, slice(0, hidden))
        up_bias = own(self._get(f"{name}.experts.gate_up_proj_bias", count, 2 * width))
        down = self._biased_matrix(f"{name}.experts.down_proj", count, width, hidden, lambda rows: rows, kept)
        down_bias = self._rank0(self._get(f"{name}.experts.down_proj_bias", count, hidden))
        router = self._linear(
            self._get(f"{name}.router.weight", count, hidden), self._get(f"{name}.router.bias", count), Bf16()
        )
        return router, up, down, (up_bias.contiguous().to(self.device), down_bias.contiguous().to(self.device))

    def _biased_matrix(
        self, name: str, count: int, k: int, n: int, rows: Callable[[Tensor], Tensor], columns: slice
    ) -> Matrix:
        """`rows` and `columns` of (count, n, k), stored as MXFP4 blocks, or transposed. Blocks stay as they are where
        kernels run them; torch would unpack all of them for each product."""
        if not self._checkpoint.has(f"{name}_blocks"):
            whole = self._get(name, count, k, n).transpose(1, 2)
            return plain(rows(whole)[..., columns].contiguous().to(self.device))
        blocks = self._checkpoint.tensor(f"{name}_blocks", (count, n, k // mxfp4.GROUP, mxfp4.GROUP // 2))
        scales = self._checkpoint.tensor(f"{name}_scales", (count, n, k // mxfp4.GROUP))
        blocks, scales = rows(blocks), rows(scales)
        if self._kernels is not None and self._experts.kind == "mxfp4" and _kernels_take(scales, columns):
            groups = slice(columns.start // mxfp4.GROUP, columns.stop // mxfp4.GROUP)
            return tiled(*(part.to(self.device) for part in (blocks[:, :, groups].flatten(-2), scales[..., groups])))
        whole = mxfp4.dense(blocks.flatten(-2), scales, self.dtype)
        return plain(whole[..., columns].contiguous().to(self.device))

    def _rank0(self, bias: Tensor) -> Tensor:
        """A bias that is added once, although every rank adds its own."""
        return bias if self._ranks.rank == 0 else torch.zeros_like(bias)


def _kernels_take(scales: Tensor, columns: slice) -> bool:
    """Whole groups, and scales that a kernel can multiply by."""
    return not (columns.start % mxfp4.GROUP or columns.stop % mxfp4.GROUP or int(scales.max()) > mxfp4.LARGEST)
