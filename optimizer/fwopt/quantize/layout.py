"""Which tensors of a checkpoint a scheme rounds, and the `quantization_config` that says so."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fwopt.errors import InputError
from fwopt.quality.groups import EXPERTS, SIBLINGS, group_of, is_rounded
from fwopt.quality.schemes import Scheme

_IN_LAYER = re.compile(r"^(?:.*\.)?layers\.(\d+)\.(.+)$")
_STACKED = re.compile(r"\.experts\.[a-z_]*proj(_blocks)?$")


@dataclass(frozen=True, slots=True)
class Place:
    """A linear layer in a checkpoint."""

    module: str
    layer: int
    matrix: str

    @property
    def group(self) -> str:
        return group_of(self.matrix)

    @property
    def siblings(self) -> tuple[str, ...]:
        """Modules that an engine fuses with this one, itself among them."""
        for parts in SIBLINGS:
            for part in parts:
                if self.module.endswith(f".{part}"):
                    return tuple(self.module.removesuffix(part) + other for other in parts)
        return (self.module,)


def places(names: Iterable[str], dimensions: dict[str, int]) -> list[Place]:
    """What schemes round, of tensors by name and number of dimensions; stacked experts are refused."""
    found = []
    for name in names:
        if dimensions[name] == 3 and _STACKED.search(name):
            raise InputError(f"{name}: stacked experts cannot be written in this format; choose another model")
        module, _, part = name.rpartition(".")
        inside = _IN_LAYER.match(module)
        if part == "weight" and inside and dimensions[name] == 2 and is_rounded(module):
            found.append(Place(module, int(inside[1]), inside[2]))
    return found


def left_alone(names: Iterable[str], dimensions: dict[str, int]) -> list[str]:
    """Patterns of linear layers that are in no group: the head, and routers."""
    modules = [name.removesuffix(".weight") for name in names if name.endswith(".weight") and dimensions[name] == 2]
    routers = sorted({module.rpartition(".")[2] for module in modules if not is_rounded(module)})
    return ["lm_head", *(rf"re:.*\.{re.escape(router)}$" for router in routers)]


def library_scheme(scheme: Scheme, targets: list[str]) -> Any:
    """compressed-tensors' QuantizationScheme, with the format that it stores such weights in."""
    import torch
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    def args(fields: dict[str, Any] | None) -> Any:
        return None if fields is None else QuantizationArgs.model_validate(fields)

    found = QuantizationScheme(
        targets=targets, weights=args(scheme.weights), input_activations=args(scheme.activations)
    )
    found.format = infer_module_format(torch.nn.Linear, found)
    return found


def quantization_config(scheme: Scheme, where: list[Place], ignored: list[str]) -> dict[str, Any]:
    """For config.json, as compressed-tensors writes it."""
    from importlib.metadata import version

    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    groups, rest = _groups(scheme, where)
    formats = {str(group.format.value) for group in groups.values()}
    config = QuantizationConfig(
        config_groups=groups,
        format=formats.pop() if len(formats) == 1 else "mixed-precision",
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=[*ignored, *rest],
    )
    values: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    return values | {"version": version("compressed-tensors")}


def _groups(scheme: Scheme, where: list[Place]) -> tuple[dict[str, Any], list[str]]:
    """(config groups, patterns of layers that stay as they are)."""
    if scheme.parts is None:
        return {"group_0": library_scheme(scheme, ["Linear"])}, []
    targets: dict[str, tuple[Scheme | None, list[str]]] = {}
    layers: dict[tuple[str, str], set[int]] = {}
    for place in where:
        part = scheme.at(place.layer, place.matrix)
        name = part.name if part is not None else ""
        targets.setdefault(name, (part, []))
        layers.setdefault((name, place.group), set()).add(place.layer)
    for (name, group), members in layers.items():
        targets[name][1].append(pattern(group, members))
    groups = {
        f"group_{number}": library_scheme(part, patterns)
        for number, (part, patterns) in enumerate((p, t) for p, t in targets.values() if p is not None)
    }
    if not groups:
        raise InputError("nothing is quantized in this mixture: every group stays as it is; raise the budget")
    return groups, targets.get("", (None, []))[1]


def pattern(group: str, layers: Iterable[int]) -> str:
    """A target that names one group of some layers by its parts, as they are called in the checkpoint."""
    numbers = "|".join(map(str, sorted(layers)))
    if group == EXPERTS:
        return rf"re:.*\.layers\.({numbers})\..*\.experts\.\d+\.\w+$"
    head, _, last = group.rpartition(".")
    parts = {"qkv_proj": SIBLINGS[0], "gate_up_proj": SIBLINGS[1]}.get(last)
    names = f"({'|'.join((*parts, last))})" if parts else last
    return rf"re:.*\.layers\.({numbers})\.{re.escape(head)}\.{names}$"
