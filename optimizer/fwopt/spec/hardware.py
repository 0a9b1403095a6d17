"""Devices, their limits and what an hour of them costs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from fwopt.spec.base import Frozen


class Price(Frozen):
    """What one GPU costs for one hour, and how that is known."""

    usd_per_gpu_hour: Annotated[float, Field(ge=0)]
    basis: str
    """For example `median on-demand` or `given with --price`."""
    dates: str
    """When the observations were made."""
    source: str


class DeviceSpec(Frozen):
    """One accelerator: vendor peak figures, dense (no sparsity); or the processor of this machine as one."""

    kind: Literal["gpu", "cpu"] = "gpu"
    name: str
    """Short catalogue name, for example `h200`; of a processor, made of its model name and cores."""
    full_name: str
    """Catalogue row, for example `H200-SXM-141GB`."""
    memory_bytes: PositiveInt
    bandwidth_bytes_per_s: PositiveFloat
    bf16_flops: PositiveFloat
    fp8_flops: PositiveFloat | None = None
    int8_ops: PositiveFloat | None = None
    fp4_flops: PositiveFloat | None = None
    link_bytes_per_s: PositiveFloat
    """One direction, per GPU: NVLink where there is one, PCIe otherwise."""
    fabric: str
    tdp_w: PositiveFloat | None = None
    source: str


class HardwareSpec(Frozen):
    """The GPUs at hand: `count` equal devices in one node."""

    device: DeviceSpec
    count: PositiveInt
    price: Price | None = None
    """None: cost cannot be computed and `cost` objectives are refused."""
    source: str
    """`catalogue`, `nvml` or `this machine`."""
