"""Run by vLLM's Python: `python vllm_products_child.py ORDER.json` writes times.json. Imports nothing of fwopt.

Each scheme's linear layers are built by vLLM itself and called one after the other, as a step of the model calls them.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

REPEATS = 15


def build(products: list[list[int]], scheme: dict[str, Any] | None) -> list[Any]:
    import torch
    from vllm.model_executor.layers.linear import ReplicatedLinear
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

    config = None
    if scheme is not None:
        config = CompressedTensorsConfig.from_config(
            {
                "config_groups": {"group_0": scheme},
                "format": scheme["format"],
                "ignore": [],
                "quant_method": "compressed-tensors",
            }
        )
    layers = []
    for number, (k, n) in enumerate(products):
        layer = ReplicatedLinear(
            k, n, bias=False, quant_config=config, prefix=f"model.layers.{number}.proj", params_dtype=torch.bfloat16
        )
        for name, value in layer.named_parameters():
            if value.dtype.is_floating_point and value.dtype.itemsize > 1:
                value.data.uniform_(0.001, 0.002) if "scale" in name else value.data.normal_(0, 0.02)
            elif value.dtype == torch.int8:
                value.data.random_(-127, 128)
            elif value.dtype == torch.int32:
                value.data.random_()
        if hasattr(layer, "weight_shape"):
            layer.weight_shape.data.copy_(torch.tensor([n, k]))
        layer.quant_method.process_weights_after_loading(layer)
        layers.append(layer)
    return layers


def time_each(layers: list[Any], products: list[list[int]], tokens: int) -> list[float]:
    """Median seconds of every layer's call, all called in order."""
    import torch

    inputs = {k: torch.randn(tokens, k, dtype=torch.bfloat16) for k, _ in products}
    seconds: list[list[float]] = [[] for _ in layers]
    for _ in range(REPEATS + 3):
        for at, (layer, (k, _n)) in enumerate(zip(layers, products, strict=True)):
            begun = time.perf_counter()
            layer(inputs[k])
            seconds[at].append(time.perf_counter() - begun)
    return [sorted(each[3:])[REPEATS // 2] for each in seconds]


def main(path: str) -> None:
    import torch
    import vllm
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel

    order = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    found: dict[str, dict[str, list[float]]] = {}
    with set_current_vllm_config(VllmConfig()), torch.inference_mode():
        init_distributed_environment(1, 0, f"file://{path}.rendezvous", 0, "gloo")
        initialize_model_parallel(1)
        for name, scheme in order["schemes"].items():
            layers = build(order["products"], scheme)
            found[name] = {str(m): time_each(layers, order["products"], m) for m in order["tokens"]}
            del layers
    with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    answer = {
        "products": order["products"], "seconds": found, "version": vllm.__version__,
        "machine": f"{name}, {torch.get_num_threads()} threads",
    }  # fmt: skip
    Path(path).with_name("times.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
