"""Run by the Python that has llm-compressor: `python llmcompressor_child.py ORDER.json`. Imports nothing of fwopt."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def modifiers(order: dict[str, Any]) -> list[Any]:
    """The recipe: what is rounded how, and by which method."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    activations = order["activations"] and QuantizationArgs(**order["activations"])
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(**order["weights"]), input_activations=activations
    )
    how = {
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head", r"re:.*\.gate$", r"re:.*router$", r"re:.*shared_expert_gate$"],
    }
    match order["method"]:
        case "gptq":
            return [GPTQModifier(**how)]
        case "awq":
            return [AWQModifier(), QuantizationModifier(**how)]  # the first scales, the second rounds
        case "smoothquant":
            return [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(**how)]
    raise SystemExit(f"unknown method {order['method']}")


def main(path: str) -> None:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    order = json.loads(Path(path).read_text(encoding="utf-8"))
    if not torch.accelerator.is_available():
        # llm-compressor 0.14's AWQ pins memory even where there is no device to copy it to, and torch refuses
        from llmcompressor.pipelines.cache import IntermediatesCache

        IntermediatesCache.pin_memory = lambda *_, **__: None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(order["source"], dtype="auto")
    rows = Dataset.from_dict({"input_ids": order["rows"], "attention_mask": [[1] * len(row) for row in order["rows"]]})
    oneshot(
        model=model, dataset=rows, recipe=modifiers(order), num_calibration_samples=len(order["rows"]),
        max_seq_length=max(map(len, order["rows"])), shuffle_calibration_samples=False, log_dir=None,
    )  # fmt: skip
    model.save_pretrained(order["target"], save_compressed=True)
    print(f"llmcompressor {version('llmcompressor')} (compressed-tensors {version('compressed-tensors')})")


if __name__ == "__main__":
    main(sys.argv[1])
