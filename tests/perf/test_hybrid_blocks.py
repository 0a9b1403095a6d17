"""Blocks that vLLM makes of models with linear attention: figures of vLLM 0.32's own code, and that code itself."""

import json
import os
import subprocess
from pathlib import Path

import pytest

import fwopt.targets.models
from fwopt.perf.kv_layout import engine_layout
from fwopt.perf.memory import KvCapacity, kv_capacity, sequence_bytes
from fwopt.spec.candidate import Batching, Bf16, Candidate, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.outcome import Rejected
from fwopt.targets import load_hardware, load_model

PYTHON = os.environ.get("FWOPT_VLLM_PYTHON")
POOL, LONGEST = 64 * 2**30, 8192
H200 = load_hardware("h200").device

# Tokens a block and blocks in 64 GiB: Platform._align_hybrid_block_size and get_kv_cache_configs of vLLM 0.32.
BLOCKS = [
    ("Qwen/Qwen3.5-27B", 1, "bf16", 784, 1337),
    ("Qwen/Qwen3.5-27B", 1, "fp8", 1568, 1337),
    ("Qwen/Qwen3.5-27B", 2, "bf16", 784, 2674),
    ("Qwen/Qwen3.5-27B", 2, "fp8", 1568, 2674),
    ("Qwen/Qwen3.5-27B", 4, "bf16", 784, 5349),
    ("Qwen/Qwen3.5-27B", 4, "fp8", 1568, 5349),
    ("Qwen/Qwen3.5-27B", 8, "bf16", 400, 10485),
    ("Qwen/Qwen3.5-27B", 8, "fp8", 784, 10699),
    ("Qwen/Qwen3.5-35B-A3B", 1, "bf16", 1056, 3177),
    ("Qwen/Qwen3.5-35B-A3B", 1, "fp8", 2096, 3201),
    ("Qwen/Qwen3.5-35B-A3B", 2, "bf16", 1056, 6355),
    ("Qwen/Qwen3.5-35B-A3B", 2, "fp8", 2096, 6403),
    ("Qwen/Qwen3.5-35B-A3B", 4, "bf16", 528, 12710),
    ("Qwen/Qwen3.5-35B-A3B", 4, "fp8", 1056, 12710),
    ("Qwen/Qwen3.5-35B-A3B", 8, "bf16", 272, 24672),
    ("Qwen/Qwen3.5-35B-A3B", 8, "fp8", 528, 25420),
    ("Qwen/Qwen3.5-397B-A17B", 1, "bf16", 2096, 1067),
    ("Qwen/Qwen3.5-397B-A17B", 1, "fp8", 4176, 1071),
    ("Qwen/Qwen3.5-397B-A17B", 2, "bf16", 2096, 2134),
    ("Qwen/Qwen3.5-397B-A17B", 2, "fp8", 4176, 2142),
    ("Qwen/Qwen3.5-397B-A17B", 4, "bf16", 1056, 4236),
    ("Qwen/Qwen3.5-397B-A17B", 4, "fp8", 2096, 4269),
    ("Qwen/Qwen3.5-397B-A17B", 8, "bf16", 528, 8473),
    ("Qwen/Qwen3.5-397B-A17B", 8, "fp8", 1056, 8473),
]
# Pipeline stages: blocks in 64 GiB at tp 1, bf16. A block is as wide as the widest group of any stage.
STAGED = [
    ("Qwen/Qwen3.5-27B", {2: 2674, 3: 3566, 4: 5349, 8: 10699}),
    ("Qwen/Qwen3.5-35B-A3B", {2: 6355, 3: 7943, 4: 10591, 8: 15887}),
    ("Qwen/Qwen3.5-397B-A17B", {2: 2001, 3: 3201, 4: 4002, 8: 8004}),
]


def deployed(tp=1, kv="bf16", pp=1, **batching) -> Candidate:
    return Candidate(
        quantization=Bf16(), kv_dtype=kv, parallelism=Parallelism(tp=tp, pp=pp),
        batching=Batching(max_model_len=LONGEST, **batching),
    )  # fmt: skip


def laid_out(name, candidate, *, processor=False):
    """(tokens a block, blocks in the pool, blocks of a sequence of the longest length, blocks of its states)"""
    layout, batching = engine_layout(load_model(name), None, candidate, "vllm", processor=processor)
    block_bytes = batching.block_size * layout.full
    longest = sequence_bytes(layout, batching, LONGEST)
    assert longest % block_bytes == 0
    assert layout.state % block_bytes == 0
    return batching.block_size, POOL // block_bytes, longest // block_bytes, layout.state // block_bytes


@pytest.mark.parametrize(("name", "tp", "kv", "tokens", "blocks"), BLOCKS)
def test_a_block_holds_a_state(name, tp, kv, tokens, blocks):
    of_tokens = -(-LONGEST // tokens)
    cached = laid_out(name, deployed(tp, kv))
    assert cached == (tokens, blocks, of_tokens + 6, 3), "the previous states are kept while the next are written"
    assert laid_out(name, deployed(tp, kv, prefix_caching=False)) == (tokens, blocks, of_tokens + 3, 3)


@pytest.mark.parametrize(("name", "blocks"), STAGED)
def test_a_block_is_as_wide_as_the_widest_group_of_a_stage(name, blocks):
    assert {pp: laid_out(name, deployed(pp=pp))[1] for pp in blocks} == blocks
    assert all(laid_out(name, deployed(pp=pp))[3] == 3 for pp in blocks)


@pytest.mark.parametrize(("asked", "taken"), [(16, 784), (32, 800), (64, 832), (784, 784), (1024, 1024)])
def test_a_block_size_that_was_asked_for_is_raised_where_it_is_too_short(asked, taken):
    assert laid_out("Qwen/Qwen3.5-27B", deployed(block_size=asked))[0] == taken
    assert laid_out("Qwen/Qwen3.5-27B", deployed(block_size=16), processor=True)[0] == 800


def test_a_sequence_takes_whole_blocks_and_three_for_its_states():
    model = load_model("Qwen/Qwen3.5-27B")
    found = kv_capacity(model, H200, deployed(), EngineSpec())
    assert isinstance(found, KvCapacity)
    assert (found.block_size, found.sequence_blocks) == (784, 3)
    assert found.max_concurrency(2000) == found.blocks / 6
    assert found.blocks == found.kv_bytes_per_gpu // (784 * 65_536) - 1
    of_sglang = kv_capacity(model, H200, deployed(block_size=1, gpu_memory_utilization=0.8), EngineSpec(name="sglang"))
    assert isinstance(of_sglang, KvCapacity)
    assert of_sglang.block_size == 1
    plain = kv_capacity(load_model("Qwen/Qwen3-8B"), H200, deployed(), EngineSpec())
    assert isinstance(plain, KvCapacity)
    assert (plain.block_size, plain.sequence_blocks) == (16, 0)


def test_layers_that_fill_up_a_group_take_memory_too():
    """Eleven layers of each kind less one: vLLM makes two groups of eleven, and the full one has a layer in vain."""
    model = load_model("Qwen/Qwen3.5-27B")
    linear, full = model.layers
    layers = (linear.model_copy(update={"count": 11}), full.model_copy(update={"count": 10}))
    layout, batching = engine_layout(
        model.model_copy(update={"layers": layers}), None, deployed(), "vllm", processor=False
    )
    assert (layout.full, layout.state) == (11 * 4096, 11 * 4096 * 784)
    assert batching.block_size == 784


def test_vllm_refuses_a_prefix_cache_without_chunked_prefill():
    batching = {"chunked_prefill": False, "max_num_batched_tokens": LONGEST}
    refused = kv_capacity(load_model("Qwen/Qwen3.5-27B"), H200, deployed(**batching), EngineSpec())
    assert isinstance(refused, Rejected)
    assert refused.reason == "vLLM caches prefixes of linear attention only with chunked prefill"
    for model, more in (("Qwen/Qwen3.5-27B", {"prefix_caching": False}), ("Qwen/Qwen3-8B", {})):
        assert isinstance(kv_capacity(load_model(model), H200, deployed(**batching, **more), EngineSpec()), KvCapacity)


def as_qwen3_next(name: str, folder: Path) -> str:
    """The same layers under the name of Qwen3-Next, which vLLM loads without torchvision: it computes the states of
    both with one function."""
    stored = Path(fwopt.targets.models.__file__).parent / "data" / "models" / f"{name.replace('/', '--')}.json"
    text = json.loads(stored.read_text(encoding="utf-8"))["text_config"]
    rest = {
        "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "torch_dtype": "bfloat16",
        "decoder_sparse_step": 1, "mlp_only_layers": [], "num_experts": text.get("num_experts", 0),
    }  # fmt: skip
    kept = {key: value for key, value in text.items() if key not in ("rope_parameters", "rope_scaling", "dtype")}
    made = folder / name.replace("/", "--")
    made.mkdir()
    (made / "config.json").write_text(json.dumps(kept | rest), encoding="utf-8")
    return str(made)


@pytest.mark.skipif(PYTHON is None, reason="FWOPT_VLLM_PYTHON names no interpreter with vLLM")
def test_same_blocks_as_vllm(tmp_path):
    folders = {name: as_qwen3_next(name, tmp_path) for name in dict.fromkeys(row[0] for row in BLOCKS)}
    mine, asked = [], []
    wanted = [(name, tp, kv, 1, 16) for name, tp, kv, _, _ in BLOCKS]
    wanted += [(name, 1, "bf16", pp, 16) for name, blocks in STAGED for pp in blocks]
    for name, tp, kv, pp, size in [*wanted, ("Qwen/Qwen3.5-27B", 1, "bf16", 1, 32)]:
        for prefix in (True, False):
            mine.append(laid_out(name, deployed(tp, kv, pp, prefix_caching=prefix, block_size=size)))
            asked.append(
                {"model": folders[name], "tp": tp, "pp": pp, "kv": "auto" if kv == "bf16" else kv, "prefix": prefix}
                | {"block": size, "longest": LONGEST, "pool": POOL}
            )
    first = list(range(2000))
    asked[0]["serve"] = asked[1]["serve"] = [first, first[:1600] + list(range(5000, 5300))]
    asked += [{**asked[0], "whole": True}, {**asked[1], "whole": True}]
    (tmp_path / "cases.json").write_text(json.dumps(asked), encoding="utf-8")
    script = Path(__file__).with_name("ask_vllm_blocks.py")
    done = subprocess.run(
        [PYTHON, str(script), str(tmp_path / "cases.json")],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *real, refused, taken = [json.loads(line) for line in done.stdout.splitlines()]
    assert "Chunked prefill is required" in refused["refused"]
    assert not taken["refused"]
    assert [found[:3] for found in mine] == [(line["block"], line["blocks"], line["longest"]) for line in real]
    assert [line["cached"] for line in real[:2]] == [[0, 1568], [0, 0]]
    for line in real[:2]:
        decoding = [step for prompt in line["steps"] for step in prompt[3:]]
        usual = [held == -(-computed // 784) + 3 for computed, held in decoding]
        assert len(usual) > 1700
        assert usual.count(False) <= 4, "all but the steps that begin a block"
