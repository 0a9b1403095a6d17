"""A transformers model of which one layer at a time is in memory.

The model is built without storage (torch's meta device) and its own code computes everything: its decoder layers are
replaced by stand-ins that note with which arguments each layer is called for a batch of some shape, and a layer whose
weights were just loaded is then called with exactly those. Masks, rotary embeddings and scaling are the model's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fwopt.errors import InputError, UnknownNameError
from fwopt.quality.shards import Shards

Attention = Literal["sdpa", "eager"]

FAMILIES = (
    "gpt_oss", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe",
)  # fmt: skip
"""`model_type` of what is streamed; tests compare each with the whole model's logits. Others may keep state between
layers that this file knows nothing of."""


class StreamedModel:
    """`hidden = embed(tokens)`; for each layer, within `layer(i)`: `hidden = call(i, hidden)`; `logits(hidden)`."""

    def __init__(self, folder: Path, dtype: torch.dtype, shards: Shards | None = None) -> None:
        """`shards`: given where the checkpoint is quantized, and reads as if it were not."""
        import transformers

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.folder, self.dtype = folder, dtype
        config = transformers.AutoConfig.from_pretrained(folder)
        if shards is not None and hasattr(config, "quantization_config"):
            del config.quantization_config
        _check(config, folder)
        self._shards = shards or Shards(folder)
        with torch.device("meta"):
            self._whole: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
        self._whole.eval().requires_grad_(False)
        self.config = config
        self._decoder = self._whole.get_decoder()
        self._real = list(self._decoder.layers)
        self._standins = nn.ModuleList(StandIn(layer) for layer in self._real)
        self._prefix: str = next(name for name, module in self._whole.named_modules() if module is self._decoder.layers)
        self._load(self._outside())
        self._whole.tie_weights()
        _real_buffers(self._whole)
        self.arguments = lru_cache(maxsize=4)(self._arguments)

    @property
    def prefix(self) -> str:
        """Of the layers' names in the checkpoint."""
        return self._prefix

    @property
    def layers(self) -> int:
        return len(self._real)

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Implementations to choose from, the usual one first."""
        return ("sdpa", "eager") if self._whole._supports_sdpa else ("eager",)

    def stored_dtype(self) -> torch.dtype:
        """Of the matrices in the checkpoint: quantizers round in it."""
        return self._shards.dtype(next(n for n in self._shards.names if n.endswith("_proj.weight")))

    @property
    def modules(self) -> list[nn.Module]:
        """The layers, without weights outside `layer`."""
        return list(self._real)

    def _outside(self) -> list[str]:
        """Names in the checkpoint of everything that is in no layer."""
        return [name for name in self._shards.names if not name.startswith(f"{self._prefix}.")]

    def _load(self, names: list[str]) -> None:
        """Tensors into the model, through transformers' own renaming and stacking of experts."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        mapping: Any = get_model_conversion_mapping(self._whole)
        loading = LoadStateDictConfig(dtype=self.dtype, weight_mapping=mapping)
        with self._shards.slices(names) as slices:
            report, _ = convert_and_load_state_dict_in_model(self._whole, slices, loading)
        if report.mismatched_keys:
            name, found, wanted = min(report.mismatched_keys, key=str)
            raise InputError(
                f"{self.folder}: {name} must have shape {tuple(wanted)} by config.json, got {tuple(found)}"
            )
        if report.conversion_errors:
            raise InputError(f"{self.folder}: {next(iter(report.conversion_errors))} cannot be put together")

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """The layer with its weights in memory; without them again at the end."""
        real: nn.Module = self._real[index]
        self._load([name for name in self._shards.names if name.startswith(f"{self._prefix}.{index}.")])
        missing = [name for name, value in real.named_parameters() if value.is_meta]
        if missing:
            raise InputError(
                f"{self.folder}: the checkpoint has no {self._prefix}.{index}.{missing[0]}; download the missing shard"
            )
        try:
            yield real
        finally:
            real.to("meta")

    @contextmanager
    def _layers(self, modules: nn.ModuleList) -> Iterator[None]:
        before, self._decoder.layers = self._decoder.layers, modules
        try:
            yield
        finally:
            self._decoder.layers = before

    def embed(self, tokens: Tensor) -> Tensor:
        """(batch, length) -> (batch, length, hidden): what the first layer is given."""
        first = Catch()
        with self._layers(nn.ModuleList([first, *self._standins[1:]])):
            self._decoder(input_ids=tokens, use_cache=False)
        assert first.caught is not None
        return first.caught

    def _arguments(self, batch: int, length: int, attention: Attention) -> list[Mapping[str, Any]]:
        """What the model passes to each layer, beside the hidden states, for a batch of that shape."""
        self._whole.set_attn_implementation(attention)
        with self._layers(self._standins):
            self._decoder(input_ids=torch.zeros(batch, length, dtype=torch.long), use_cache=False)
        return [standin.arguments for standin in self._standins]  # type: ignore[misc]

    def call(self, index: int, hidden: Tensor, attention: Attention, cache: Any = None) -> Tensor:
        """One layer; `cache` hears of its keys and values where given."""
        arguments = dict(self.arguments(hidden.shape[0], hidden.shape[1], attention)[index])
        if cache is not None:
            arguments["cache"] = cache
        if self._whole.config._attn_implementation != attention:
            self._whole.set_attn_implementation(attention)
        found = self._real[index](hidden, **arguments)
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out

    def to_float32(self) -> None:
        """The final norm and the head: so that distributions are not those of rounded logits."""
        self._decoder.norm.float()
        self._whole.get_output_embeddings().float()

    def logits(self, hidden: Tensor) -> Tensor:
        """(tokens, hidden) after the last layer -> float32 (tokens, vocabulary); after `to_float32`."""
        give = Give(hidden[None].float())
        with self._layers(nn.ModuleList([*self._standins[:-1], give])):
            tokens = torch.zeros(1, len(hidden), dtype=torch.long)
            found: Tensor = self._whole(input_ids=tokens, use_cache=False).logits[0]
        return found.float()


class StandIn(nn.Module):
    """In a layer's place: notes the arguments, passes the hidden states on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layer = [layer]  # in a list: not a submodule
        self.arguments: Mapping[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """What the model asks its layers for, such as the kind of their attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return hidden_states


class Catch(nn.Module):
    """First layer's stand-in that keeps what comes in."""

    attention_type = "full_attention"
    caught: Tensor | None = None

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        self.caught = hidden_states
        return hidden_states


class Give(nn.Module):
    """Last layer's stand-in that answers with hidden states computed before."""

    attention_type = "full_attention"

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return self._hidden


def _check(config: Any, folder: Path) -> None:
    """Refuse what this cannot stream, and what is quantized already."""
    if config.model_type not in FAMILIES:
        raise UnknownNameError(
            "model family for `fwopt quality`", config.model_type, FAMILIES, f"asked for by {folder}/config.json"
        )
    if getattr(config, "quantization_config", None) is not None:
        method = config.quantization_config.get("quant_method", "an unknown method")
        raise InputError(f"{folder}: is quantized already ({method}); the reference must be the unquantized model")


def _real_buffers(model: Any) -> None:
    """Rotary frequencies are computed, not loaded: give them storage, and let the model fill them."""
    for module in model.modules():
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
            model._init_weights(module)
