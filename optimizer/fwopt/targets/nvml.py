"""Which GPUs this machine has, asked of the NVIDIA driver."""

from __future__ import annotations

import os
from collections import Counter

from fwopt.errors import InputError

_ADD = "add for example --hardware h200:8"

PRODUCTS: dict[str, str] = {
    "NVIDIA A10G": "a10g",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA A100 80GB PCIe": "a100-pcie",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA B200": "b200",
    "NVIDIA GB200": "gb200",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 5090": "rtx5090",
}
"""NVML product name -> catalogue name."""


class NoDriverError(InputError):
    """A machine without NVIDIA GPUs: its processor is what there is."""


def discover() -> tuple[str, int]:
    """(catalogue name, count) of this machine's GPUs, restricted to CUDA_VISIBLE_DEVICES where it lists indices."""
    products = visible(_products(), os.environ.get("CUDA_VISIBLE_DEVICES"))
    if not products:
        raise InputError(f"no GPU is visible on this machine; {_ADD}")
    kinds = Counter(products)
    if len(kinds) > 1:
        found = ", ".join(f"{n} x {name}" for name, n in sorted(kinds.items()))
        raise InputError(f"this machine has different GPUs ({found}) and a plan is for equal ones; {_ADD}")
    product, count = next(iter(kinds.items()))
    if product not in PRODUCTS:
        raise InputError(f"GPU '{product}' is not in the catalogue; name the nearest one yourself, {_ADD}")
    return PRODUCTS[product], count


def visible(products: list[str], setting: str | None) -> list[str]:
    """Apply CUDA_VISIBLE_DEVICES as CUDA does for a list of indices."""
    if setting is None:
        return products
    indices = [part.strip() for part in setting.split(",") if part.strip()]
    if not all(i.isdigit() and int(i) < len(products) for i in indices):
        raise InputError(f"CUDA_VISIBLE_DEVICES='{setting}' is not a list of this machine's GPU indices; {_ADD}")
    return [products[int(i)] for i in indices]


def _products() -> list[str]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value in (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED):
            raise NoDriverError(f"no NVIDIA driver on this machine; {_ADD}") from None
        raise InputError(f"the NVIDIA driver does not answer ({error}); {_ADD}") from None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError as error:
        raise InputError(f"the NVIDIA driver does not answer ({error}); {_ADD}") from None
    finally:
        pynvml.nvmlShutdown()
