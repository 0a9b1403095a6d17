"""GPUs from the bundled catalogue (`h200:8`) or from NVML, with dated prices; or this machine's processor (`cpu`)."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from fwopt.errors import InputError, UnknownNameError
from fwopt.spec.hardware import DeviceSpec, HardwareSpec, Price

_DATA = Path(__file__).parent / "data"
_EXAMPLE = "--hardware h200:8"
MOST_GPUS = 1024
"""A larger number is a slip of the hand: every replica is simulated."""

NAMES: dict[str, str] = {
    "a10g": "A10G",
    "l4": "L4",
    "l40s": "L40S",
    "a100-40gb": "A100-SXM4-40GB",
    "a100": "A100-SXM4-80GB",
    "a100-pcie": "A100-PCIe-80GB",
    "h100": "H100-SXM5-80GB",
    "h100-pcie": "H100-PCIe-80GB",
    "h200": "H200-SXM-141GB",
    "b200": "B200-SXM-180GB",
    "gb200": "GB200-NVL72",
    "mi300x": "MI300X",
    "mi325x": "MI325X",
    "rtx4090": "RTX-4090",
    "rtx5090": "RTX-5090",
}
"""Short name -> row of hw.csv."""

ALIASES: dict[str, str] = {
    "a100-80gb": "a100",
    "a100-sxm": "a100",
    "a100_sxm": "a100",
    "h100-sxm": "h100",
    "h100_sxm": "h100",
    "h100-80gb": "h100",
    "h200-sxm": "h200",
    "h200_sxm": "h200",
    "b200-sxm": "b200",
    "b200_sxm": "b200",
    "rtx-4090": "rtx4090",
    "4090": "rtx4090",
    "rtx-5090": "rtx5090",
    "5090": "rtx5090",
}

_PCIE_BYTES_PER_S = {"PCIe4": 32e9, "PCIe5": 64e9}
"""One direction, 16 lanes."""


def load_hardware(text: str | None, price: float | None = None) -> HardwareSpec:
    """`NAME` or `NAME:COUNT`; `cpu` is this machine's processor. None discovers the GPUs of this machine, or takes its
    processor where no NVIDIA driver is. `price`: dollars per GPU-hour (of a processor: per machine), overrides."""
    if text is None:
        from fwopt.targets.nvml import NoDriverError, discover

        try:
            device_name, count, source = *discover(), "nvml"
        except NoDriverError:
            return _processor(price)
    elif _is_processor(text):
        return _processor(price)
    else:
        device_name, count, source = *_parse(text), "catalogue"
    device, catalogue_price = device_and_price(device_name)
    return HardwareSpec(device=device, count=count, price=_given(price) or catalogue_price, source=source)


def _given(price: float | None) -> Price | None:
    if price is None:
        return None
    if not 0 <= price < float("inf"):
        raise InputError(f"--price must be dollars per GPU-hour, zero or more, got {price}")
    return Price(usd_per_gpu_hour=price, basis="given with --price", dates="now", source="user")


def _is_processor(text: str) -> bool:
    """`cpu`, `cpu:1`, or the full name of this machine's own."""
    name, colon, count = text.strip().lower().partition(":")
    if name != "cpu" and not name.startswith("cpu-"):
        return False
    if colon and count != "1":
        raise InputError(f"hardware '{text}': a machine has one processor to plan for; write --hardware cpu")
    if name != "cpu":
        from fwopt.targets.cpu import this_processor

        own = this_processor().name
        if name != own:
            raise InputError(f"hardware '{text}': only this machine's own processor can be planned for, {own}")
    return True


def _processor(price: float | None) -> HardwareSpec:
    from fwopt.targets.cpu import this_processor

    return HardwareSpec(device=this_processor(), count=1, price=_given(price), source="this machine")


def _parse(text: str) -> tuple[str, int]:
    if "," in text:
        raise InputError(f"hardware '{text}': one kind of GPU is planned for at a time; tune for each and compare")
    name, colon, number = text.strip().partition(":")
    if colon and (not number.isascii() or not number.isdigit() or int(number) < 1):
        raise InputError(f"hardware '{text}': the count after ':' must be a whole number above zero; e.g. {_EXAMPLE}")
    count = int(number[:9]) if colon else 1
    if count > MOST_GPUS:
        raise InputError(f"hardware '{text}': at most {MOST_GPUS:,} GPUs are planned for at a time; e.g. {_EXAMPLE}")
    return resolve(name), count


def resolve(name: str) -> str:
    """Short catalogue name of a device, whatever the case or alias."""
    key = name.strip().lower()
    by_row = {row.lower(): short for short, row in NAMES.items()}
    short = key if key in NAMES else ALIASES.get(key) or by_row.get(key)
    if short is None:
        raise UnknownNameError("GPU", name, NAMES, hint=f"e.g. {_EXAMPLE}")
    return short


@cache
def device_and_price(short: str) -> tuple[DeviceSpec, Price | None]:
    """The catalogue's figures for one device; the price is the median of on-demand observations."""
    row = _rows("hw.csv")[NAMES[short]]
    visible = _rows("cuda_memory.csv")[NAMES[short]]
    fabric = row["fabric"]
    link = float(row["nvlink_bidir_gb_s_per_gpu"]) / 2 * 1e9 or _PCIE_BYTES_PER_S[fabric.split()[0]]
    device = DeviceSpec(
        name=short,
        full_name=NAMES[short],
        memory_bytes=round(float(visible["gib"]) * 2**30),
        bandwidth_bytes_per_s=float(row["mem_bw_gb_s"]) * 1e9,
        bf16_flops=float(row["bf16_dense_tflops"]) * 1e12,
        fp8_flops=_tera(row["fp8_dense_tflops"]),
        int8_ops=_tera(row["int8_dense_tops"]),
        fp4_flops=_tera(row["fp4_dense_tflops"]),
        link_bytes_per_s=link,
        fabric=fabric,
        tdp_w=float(row["tdp_w"]) if row["tdp_w"] else None,
        source=f"{row['spec_source']}; memory as CUDA reports it: {visible['basis']}",
    )
    if not row["usd_h_median_on_demand"]:
        return device, None
    price = Price(
        usd_per_gpu_hour=float(row["usd_h_median_on_demand"]),
        basis="median on-demand",
        dates=row["price_dates"],
        source=row["price_provider_median_basis"] + _caveat(NAMES[short]),
    )
    return device, price


def _caveat(row: str) -> str:
    unverified = [p["provider"] for p in _price_rows() if p["gpu"] == row and "not verified" in p["source"]]
    return f" (from memory, not verified: {', '.join(unverified)})" if unverified else ""


def _tera(text: str) -> float | None:
    return float(text) * 1e12 if text else None


@cache
def _rows(file: str) -> dict[str, dict[str, str]]:
    with (_DATA / file).open(newline="", encoding="utf-8") as stream:
        return {row["gpu"]: row for row in csv.DictReader(stream)}


@cache
def _price_rows() -> list[dict[str, str]]:
    with (_DATA / "prices.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
