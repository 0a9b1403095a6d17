"""From config.json to `Shape`: one parser per architecture family, registered by `architectures[0]`.

To add one: write `function(config: Config) -> Shape` and add a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from fwopt.errors import InputError
from fwopt.targets.config import Config
from fwopt.targets.parsers.shape import Shape

PARSERS: dict[str, str] = {
    "LlamaForCausalLM": "fwopt.targets.parsers.dense:llama",
    "MistralForCausalLM": "fwopt.targets.parsers.dense:mistral",
    "Qwen2ForCausalLM": "fwopt.targets.parsers.dense:qwen2",
    "Qwen3ForCausalLM": "fwopt.targets.parsers.dense:qwen3",
    "Qwen3MoeForCausalLM": "fwopt.targets.parsers.moe:qwen3_moe",
    "MixtralForCausalLM": "fwopt.targets.parsers.moe:mixtral",
    "MiniMaxM2ForCausalLM": "fwopt.targets.parsers.moe:minimax_m2",
    "GptOssForCausalLM": "fwopt.targets.parsers.moe:gpt_oss",
    "DeepseekV2ForCausalLM": "fwopt.targets.parsers.latent:deepseek",
    "DeepseekV3ForCausalLM": "fwopt.targets.parsers.latent:deepseek",
    "KimiK25ForConditionalGeneration": "fwopt.targets.parsers.latent:kimi",
    "Qwen3_5ForConditionalGeneration": "fwopt.targets.parsers.hybrid:qwen3_5",
    "Qwen3_5MoeForConditionalGeneration": "fwopt.targets.parsers.hybrid:qwen3_5_moe",
    "Gemma2ForCausalLM": "fwopt.targets.parsers.gemma:gemma2",
    "Gemma3ForCausalLM": "fwopt.targets.parsers.gemma:gemma3",
    "Gemma3ForConditionalGeneration": "fwopt.targets.parsers.gemma:gemma3_multimodal",
    "Gemma4ForConditionalGeneration": "fwopt.targets.parsers.gemma:gemma4_multimodal",
}

NOT_MODELLED: dict[str, str] = {
    "DeepseekV32ForCausalLM": "sparse attention with an indexer",
    "GlmMoeDsaForCausalLM": "sparse attention with an indexer",
    "Llama4ForConditionalGeneration": "chunked local attention",
}
"""Known architectures whose cost fwopt cannot state, and why."""


def parser(architecture: str, label: str) -> Callable[[Config], Shape]:
    """The registered function; `label` names the model in the error when there is none."""
    if architecture in NOT_MODELLED:
        raise InputError(f"{label}: architecture '{architecture}' is not modelled: {NOT_MODELLED[architecture]}")
    if architecture not in PARSERS:
        raise InputError(
            f"{label}: architecture '{architecture}' is not modelled; modelled are: {', '.join(sorted(PARSERS))}"
        )
    module, _, name = PARSERS[architecture].partition(":")
    function: Callable[[Config], Shape] = getattr(importlib.import_module(module), name)
    return function
