"""A checkpoint that is quantized already (compressed-tensors), read as levels times scales."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fwopt.errors import InputError
from fwopt.quality.schemes import Scheme
from fwopt.quality.shards import Shards, weights_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fwopt.quality.model import StreamedModel

_PACKED = ("weight_packed", "weight_scale")
_OWN = (*_PACKED, "weight", "weight_shape", "weight_zero_point", "weight_global_scale", "weight_g_idx")
_BESIDE = ("input_scale", "input_zero_point", "input_global_scale", "k_scale", "v_scale", "q_scale", "output_scale")
_SAME = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")


@dataclass(frozen=True, slots=True)
class StoredConfig:
    """`quantization_config` of a checkpoint."""

    folder: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> StoredConfig:
        path = folder / "config.json"
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a model's config ({error})") from None
        values = config.get("quantization_config") if isinstance(config, dict) else None
        method = values.get("quant_method") if isinstance(values, dict) else None
        if not isinstance(values, dict) or method != "compressed-tensors":
            found = f"quant_method is {method}" if values else "it is not quantized"
            raise InputError(f"{folder}: must be a compressed-tensors checkpoint, but {found}")
        return cls(folder, values)

    def group(self, module: str) -> Any:
        """The QuantizationScheme of a linear layer: one that names it, else that of all linear layers."""
        from compressed_tensors.quantization import QuantizationScheme
        from compressed_tensors.utils.match import match_name

        groups = list(self.values.get("config_groups", {}).values())
        named = [g for g in groups if any(match_name(module, t) for t in g["targets"])]
        found = named or [g for g in groups if "Linear" in g["targets"]]
        if not found:
            raise InputError(f"{self.folder}: {module} is quantized, but no config group of config.json names it")
        scheme = QuantizationScheme.model_validate(found[0])
        scheme.format = scheme.format or self.values.get("format")
        return scheme

    def activations(self, module: str) -> dict[str, Any] | None:
        """Fields of QuantizationArgs for what a layer multiplies; None: 16 bits."""
        args = self.group(module).input_activations
        if args is None:
            return None
        if not args.dynamic or args.strategy not in ("token", "group") or not args.symmetric:
            raise InputError(
                f"{self.folder}: activations of {module} have fixed or asymmetric scales, which `fwopt quality` does "
                "not compute; it needs symmetric dynamic ones by token or group"
            )
        fields = {"num_bits": args.num_bits, "type": str(args.type), "symmetric": True}
        fields |= {"strategy": str(args.strategy), "dynamic": True}
        return fields | ({"group_size": args.group_size} if args.strategy == "group" else {})

    def says(self) -> str:
        """For a reader: what is stored how."""
        parts = []
        for group in self.values.get("config_groups", {}).values():
            weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
            width = (
                f" groups of {weights['group_size']}" if weights.get("group_size") else f" by {weights.get('strategy')}"
            )
            what = f"{weights.get('type')}{weights.get('num_bits')}{width}"
            parts.append(what + (f", activations {inputs['type']}{inputs['num_bits']}" if inputs else ""))
        cache = "; its quantized cache is not computed here" if self.values.get("kv_cache_scheme") else ""
        return f"as stored in {self.folder.name}: {'; '.join(dict.fromkeys(parts))}{cache}"


def stored_scheme(folder: Path, reference: Path, home: Path) -> Scheme:
    """What `fwopt quality --checkpoint` compares, named by its content; it must be of the reference's model."""
    config = StoredConfig.read(folder)
    own, other = (json.loads((f / "config.json").read_text(encoding="utf-8")) for f in (folder, reference))
    for key in _SAME:
        if own.get(key) != other.get(key):
            raise InputError(f"{folder}: {key} is {own.get(key)}, of the unquantized model {other.get(key)}")
    tokenizers = [f / "tokenizer.json" for f in (folder, reference)]
    if tokenizers[0].is_file() and vocabulary(tokenizers[0]) != vocabulary(tokenizers[1]):
        raise InputError(f"{tokenizers[0]}: has other tokens than {tokenizers[1]}; both must read the same text")
    digest = weights_digest(folder, home / "digests.json")[:12]
    return Scheme(f"{folder.resolve().name}@{digest}", config.says(), checkpoint=folder)


def vocabulary(tokenizer: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    found: dict[str, int] = Tokenizer.from_file(str(tokenizer)).get_vocab()
    return found


class StoredShards(Shards):
    """Tensors under the names that they had before they were quantized, in float32 where they were."""

    def __init__(self, folder: Path, config: StoredConfig) -> None:
        super().__init__(folder)
        self._config, self._raw = config, dict(self._files)
        self.quantized: dict[str, list[str]] = {}
        for name in self._raw:
            module, _, part = name.rpartition(".")
            if part in _PACKED:
                self.quantized[module] = [f"{module}.{p}" for p in _OWN if f"{module}.{p}" in self._raw]
        taken = {name for parts in self.quantized.values() for name in parts}
        kept = [n for n in self._raw if n not in taken and n.rpartition(".")[2] not in _BESIDE]
        self._plain = frozenset(kept)
        self._names = [*kept, *(f"{module}.weight" for module in self.quantized)]

    @property
    def names(self) -> list[str]:
        return list(self._names)

    @contextmanager
    def slices(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        plain = [name for name in names if name in self._plain]
        modules = [name.removesuffix(".weight") for name in names if name not in self._plain]
        parts = [part for module in modules for part in self.quantized[module]]
        with super().slices([*plain, *parts]) as found:
            yield {name: found[name] for name in plain} | {
                f"{module}.weight": self._dequantized(
                    module, {part: found[part][...] for part in self.quantized[module]}
                )
                for module in modules
            }

    def _dequantized(self, module: str, parts: dict[str, Tensor]) -> Tensor:
        import torch
        from compressed_tensors.compressors.base import BaseCompressor

        scheme = self._config.group(module)
        state = {name.rpartition(".")[2]: value for name, value in parts.items()}
        scale = state["weight_scale"]
        if scale.dtype.is_floating_point and scale.dtype.itemsize > 1:
            state["weight_scale"] = scale.float()
        compressor = BaseCompressor.get_value_from_registry(str(getattr(scheme.format, "value", scheme.format)))
        found: Tensor = compressor.decompress(state, scheme)["weight"]
        return found.to(torch.float32)


@dataclass(slots=True)
class StoredCheckpoint:
    """The model that such a checkpoint holds; `model` computes in the study's dtype."""

    config: StoredConfig
    shards: StoredShards
    model: StreamedModel
    _wide: StreamedModel | None = field(default=None)

    @classmethod
    def open(cls, folder: Path, dtype: torch.dtype) -> StoredCheckpoint:
        import torch

        from fwopt.quality.model import StreamedModel

        config = StoredConfig.read(folder)
        shards = StoredShards(folder, config)
        model = StreamedModel(folder, dtype, shards)
        found = cls(config, shards, model)
        if found.rounds_activations:
            found._wide = StreamedModel(folder, torch.float32, shards)
        return found

    @property
    def rounds_activations(self) -> bool:
        return any(g.get("input_activations") for g in self.config.values.get("config_groups", {}).values())

    def activations(self, index: int, matrix: str) -> dict[str, Any] | None:
        return self.config.activations(self._module(index, matrix))

    def exact(self, index: int) -> dict[str, Tensor]:
        """Of one layer, matrix by matrix as `matrices` names them, levels times scales in float32, where activations
        are rounded too."""
        from fwopt.quality.arms import matrices

        assert self._wide is not None
        with self._wide.layer(index) as layer:
            return {
                name: weight.clone()
                for name, weight in matrices(layer)
                if self._is_quantized(index, name) and self.activations(index, name) is not None
            }

    def _module(self, index: int, matrix: str) -> str:
        """The module in the checkpoint; of stacked experts, the first expert's."""
        whole = f"{self.model.prefix}.{index}.{matrix}"
        if whole in self.shards.quantized or ".experts." not in whole:
            return whole
        prefix = f"{self.model.prefix}.{index}."
        return next((m for m in self.shards.quantized if m.startswith(prefix) and ".experts." in m), whole)

    def _is_quantized(self, index: int, matrix: str) -> bool:
        return self._module(index, matrix) in self.shards.quantized
