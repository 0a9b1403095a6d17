"""Rows of activations in the formats that kernels write: buffers, torch quantization, tolerances.

`bf16`: as it is. `fp8-row`: e4m3 with a float32 scale per row, `amax / 448`, at least `1 / (448 * 512)`.
`int8-row`: symmetric with a float32 scale per row, `amax / 127`, at least float32's epsilon. Floors as in vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fwopt_kernels.contract import Expected

RowFormat = Literal["bf16", "fp8-row", "int8-row"]
ROW_FORMATS: tuple[RowFormat, ...] = ("bf16", "fp8-row", "int8-row")
DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp8-row": torch.float8_e4m3fn, "int8-row": torch.int8}
TRITON_TYPES: dict[str, str] = {"bf16": "*bf16", "fp8-row": "*fp8e4nv", "int8-row": "*i8"}
_LARGEST = {"fp8-row": 448.0, "int8-row": 127.0}
_FLOOR = {"fp8-row": 1 / (448 * 512), "int8-row": float(torch.finfo(torch.float32).eps)}
MULTIPLE_K = 16
"""8-bit products read rows by 16 bytes: K, and the elements between rows, must be multiples of this."""
BF16_RTOL = 2**-7 * 1.05
"""Two roundings to bfloat16 (2**-8 each at most) and a float32 reduction."""


@dataclass(frozen=True)
class Rows:
    """Output rows: values (rows, columns) and, where quantized, scales (rows, 1) in float32."""

    format: str
    values: Tensor
    scale: Tensor | None

    def results(self) -> dict[str, Tensor]:
        values = self.values.to(torch.float32).to(torch.float64)
        if self.scale is None:
            return {"out": values}
        scale = self.scale.to(torch.float64)
        return {"out": values * scale, "scale": scale}


def row_bytes(format: str, rows: int, columns: int) -> int:
    """Size of `rows` in the format, with their scales."""
    return rows * (2 * columns if format == "bf16" else columns + 4)


def require_packed(**tensors: Tensor) -> None:
    """Kernels step through the last dimension by one element; rows may lie apart."""
    for name, tensor in tensors.items():
        if tensor.numel() > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name}: the last dimension must have stride 1, got {tensor.stride(-1)}")


def poisoned(format: str, rows: int, columns: int, device: str) -> Rows:
    """Output buffers full of NaN: what a kernel leaves unwritten cannot pass for a result."""
    values = torch.full((rows, columns), -128 if format == "int8-row" else float("nan"), device=device)
    scale = None if format == "bf16" else torch.full((rows, 1), float("nan"), device=device)
    return Rows(format, values.to(DTYPES[format]), scale)


def strided(rows: int, columns: int, padding: int, generator: torch.Generator, device: str) -> Tensor:
    """Normal bfloat16 values (rows, columns) in rows that lie `columns + padding` elements apart."""
    values = torch.randn(rows, columns + padding, generator=generator).to(torch.bfloat16)
    return values.to(device)[:, :columns]


def write(rows: Rows, values: Tensor) -> None:
    """The torch way to put `values` (bfloat16) into the rows' format."""
    if rows.scale is None:
        rows.values.copy_(values)
        return
    wide = values.to(torch.float32)
    amax = wide.abs().amax(dim=-1, keepdim=True)
    scale = (amax * (1 / _LARGEST[rows.format])).clamp(min=_FLOOR[rows.format])
    limit = _LARGEST[rows.format]
    codes = (wide * (1 / scale)).clamp(-limit, limit)
    rows.values.copy_((codes.round() if rows.format == "int8-row" else codes).to(rows.values.dtype))
    rows.scale.copy_(scale)


def int8_product(rows: Tensor, weight: Tensor) -> Tensor:
    """(T, k) x (k, n) in int32; a GPU wants more than 16 rows."""
    missing = 17 - len(rows) if rows.is_cuda else 0
    if missing > 0:
        return torch._int_mm(F.pad(rows, (0, 0, 0, missing + 15)), weight)[: len(rows)]
    return torch._int_mm(rows, weight)


def expected(format: str, values: Tensor) -> dict[str, Expected]:
    """What rows of `values` (float64) become, with half a step of the format as tolerance."""
    if format == "bf16":
        return {"out": Expected(values, rtol=BF16_RTOL, atol=1e-7)}
    amax = values.abs().amax(dim=-1, keepdim=True) if values.numel() else values.new_zeros(values.shape[0], 1)
    scale = (amax / _LARGEST[format]).clamp(min=_FLOOR[format])
    if format == "fp8-row":
        out = Expected(values, rtol=2**-4 + BF16_RTOL, atol=scale * 2**-10 * 1.01)
    else:
        out = Expected(values, rtol=BF16_RTOL, atol=scale * 0.51)
    return {"out": out, "scale": Expected(scale, rtol=BF16_RTOL)}
