"""llama.cpp, SGLang and the reference engine: what is exported is the candidate, and is read back as it."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass

import pytest
import yaml

from fwopt.deploy import TARGETS, render, write
from fwopt.deploy.llamacpp_config import read
from fwopt.errors import InputError
from fwopt.live.servers.settings_file import assignments
from fwopt.spec.candidate import Batching, Bf16, Candidate, Fp8, Gguf, Parallelism
from fwopt.spec.engine import EngineSpec
from fwopt.spec.speculation import ModelDrafter
from fwopt.targets import load_model
from fwopt.targets.gguf import file_name, find

SMALL = Batching(max_num_seqs=8, max_num_batched_tokens=256, max_model_len=2048, block_size=32)
LLAMA = {
    "plain": Candidate(quantization=Gguf(type="Q8_0"), batching=SMALL),
    "8-bit cache, prefixes off": Candidate(
        quantization=Gguf(type="Q4_K_M"),
        kv_dtype="fp8",
        batching=SMALL.model_copy(update={"prefix_caching": False, "gpu_memory_utilization": 0.5}),
    ),
    "replicas": Candidate(
        quantization=Gguf(), batching=SMALL, parallelism=Parallelism(replicas=3), router="round_robin"
    ),
    "stages": Candidate(quantization=Gguf(), batching=SMALL, parallelism=Parallelism(pp=2)),
}


@pytest.mark.parametrize("name", LLAMA)
def test_a_llamacpp_export_is_read_back_as_the_candidate(make_plan, tmp_path, name):
    write(make_plan(LLAMA[name]), tmp_path, "llamacpp")
    assert read(tmp_path / "llamacpp" / "llama-server.env") == LLAMA[name]


def test_every_llamacpp_slot_has_the_whole_context(make_plan, tmp_path):
    write(make_plan(LLAMA["plain"]), tmp_path, "llamacpp")
    found = assignments(tmp_path / "llamacpp" / "llama-server.env")
    assert found["LLAMA_ARG_CTX_SIZE"] == str(8 * 2048)
    assert found["LLAMA_ARG_MODEL"] == "Qwen3-8B-Q8_0.gguf"
    assert found["LLAMA_ARG_UBATCH"] == "256"


def test_llamacpp_slots_share_one_pool_so_that_any_of_them_decode_together(make_plan, tmp_path):
    """A cache per slot computes only neighbouring slots in one go."""
    write(make_plan(LLAMA["plain"]), tmp_path, "llamacpp")
    assert assignments(tmp_path / "llamacpp" / "llama-server.env")["LLAMA_ARG_KV_UNIFIED"] == "true"


def test_llamacpp_clears_idle_slots_and_keeps_their_prompts_where_prefixes_are_cached(make_plan, tmp_path):
    """Attention passes over what idle slots hold; with CACHE_RAM=0 they would keep it."""
    found = {}
    for name in ("plain", "8-bit cache, prefixes off"):
        write(make_plan(LLAMA[name]), tmp_path / name, "llamacpp")
        found[name] = assignments(tmp_path / name / "llamacpp" / "llama-server.env")["LLAMA_ARG_CACHE_RAM"]
    assert found["plain"] == str(8 * 2048 * 36 * 2 * 8 * 128 * 2 // 2**20)  # Qwen3-8B in bf16
    assert found["8-bit cache, prefixes off"] == "1"


def test_on_a_processor_nothing_is_put_on_a_gpu(make_plan, cpu):
    text = render(make_plan(LLAMA["plain"], device=cpu), "llamacpp")["llama-server.env"]
    assert "LLAMA_ARG_DEVICE=none" in text
    assert "N_GPU_LAYERS" not in text
    assert "LLAMA_ARG_N_GPU_LAYERS=all" in render(make_plan(LLAMA["plain"]), "llamacpp")["llama-server.env"]


@pytest.mark.parametrize(
    ("candidate", "rule"),
    [
        (Candidate(), "serves GGUF files, this candidate is bf16"),
        (Candidate(quantization=Gguf(), parallelism=Parallelism(tp=2)), "got tp=2"),
        (Candidate(quantization=Gguf(), batching=Batching(chunked_prefill=False)), "in chunks"),
    ],
)
def test_what_llamacpp_cannot_be_told_is_refused(make_plan, candidate, rule):
    with pytest.raises(InputError, match=rule):
        render(make_plan(candidate), "llamacpp")


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("LLAMA_ARG_N_PARALLEL=many", "LLAMA_ARG_N_PARALLEL: must be a whole number"),
        ("LLAMA_ARG_CACHE_TYPE_K=q4_0", "must be equal, and one of f16, q8_0"),
        ("parallel 4", r"env:\d+: must be NAME=VALUE"),
        ("# fwopt: weights=Q9", "quantization"),
    ],
)
def test_a_broken_llamacpp_file_is_one_line(make_plan, tmp_path, line, rule):
    write(make_plan(LLAMA["plain"]), tmp_path, "llamacpp")
    path = tmp_path / "llamacpp" / "llama-server.env"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(InputError, match=rule):
        read(path)


def test_the_reference_engine_gets_the_candidate_itself(make_plan):
    candidate = Candidate(quantization=Fp8(), batching=SMALL, parallelism=Parallelism(tp=2, replicas=2))
    content = yaml.safe_load(render(make_plan(candidate), "fwopt")["candidate.yaml"])
    assert content.pop("model") == "Qwen/Qwen3-8B"
    assert Candidate.model_validate(content) == candidate


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_states_plan_promises_and_shape(make_plan, target):
    weights = Gguf() if target == "llamacpp" else Bf16()
    texts = render(make_plan(Candidate(quantization=weights, parallelism=Parallelism(replicas=2))), target)
    own, *rest = texts
    assert rest == ["fwopt.env", "run.sh", "nginx.conf"]
    assert "ttft:p99<2s" in texts[own]
    assert all("Generated by fwopt" in "".join(text.splitlines(keepends=True)[:2]) for text in texts.values())
    assert "@REPLICA@" not in texts["run.sh"]


def test_vllm_on_a_processor_gets_the_simulated_cache_in_bytes(make_plan, cpu):
    """8 heads of 128 in 36 layers are 147,456 bytes a token; one block of 128 more is vLLM's own."""
    candidate = Candidate(batching=SMALL.model_copy(update={"block_size": 128}))
    text = render(make_plan(candidate, device=cpu, kv_blocks=10), "vllm")["config.yaml"]
    assert yaml.safe_load(text)["kv-cache-memory-bytes"] == 11 * 128 * 147_456
    assert "kv-cache-memory-bytes" not in render(make_plan(candidate), "vllm")["config.yaml"]


def test_vllm_on_a_processor_lengthens_the_blocks_that_hold_states(make_plan, cpu):
    """A state of 3,207,168 bytes takes 896 tokens of 4,096 bytes: the least multiple of 128; 16 layers hold keys."""
    candidate = Candidate(batching=SMALL.model_copy(update={"block_size": 128}))
    plan = make_plan(candidate, device=cpu, kv_blocks=10, model=load_model("Qwen/Qwen3.5-27B"))
    said = yaml.safe_load(render(plan, "vllm")["config.yaml"])
    assert (said["block-size"], said["kv-cache-memory-bytes"]) == (128, 11 * 896 * 65_536)


def test_a_draft_model_on_a_processor_gets_its_part_of_the_cache(make_plan, cpu):
    """Its keys and values lie in the same blocks: here as many again."""
    candidate = Candidate(
        batching=SMALL.model_copy(update={"block_size": 128}), speculation=ModelDrafter(model="./small")
    )
    plan = make_plan(candidate, device=cpu, kv_blocks=10)
    plan = plan.model_copy(update={"chosen": plan.chosen.model_copy(update={"draft": plan.model})})
    assert yaml.safe_load(render(plan, "vllm")["config.yaml"])["kv-cache-memory-bytes"] == 11 * 128 * 2 * 147_456


def test_gguf_files_are_found_by_format(tmp_path):
    wanted = Gguf(type="Q4_0")
    with pytest.raises(InputError, match=r"llama-quantize \S+/M-F16.gguf \S+/M-Q4_0.gguf Q4_0"):
        find(tmp_path, "owner/M", wanted)
    for name in ("Other.Q4_0.gguf", "M-Q4_0_4_4.gguf", "M-Q8_0.gguf"):
        (tmp_path / name).touch()
    assert find(tmp_path, "owner/M", wanted).name == "Other.Q4_0.gguf"
    (tmp_path / "third-q4_0.gguf").touch()
    with pytest.raises(InputError, match="several files are in Q4_0"):
        find(tmp_path, "owner/M", wanted)
    (tmp_path / file_name("owner/M", wanted)).touch()
    assert find(tmp_path, "owner/M", wanted).name == "M-Q4_0.gguf"


SGLANG = os.environ.get("FWOPT_SGLANG_PYTHON")
ASK = """
import json, sys
from sglang.srt.server_args import prepare_server_args
a = prepare_server_args(["--config", sys.argv[1], "--model-path", sys.argv[2]])
names = "dtype quantization kv_cache_dtype tp_size pp_size dp_size ep_size max_running_requests chunked_prefill_size"
names += " context_length page_size mem_fraction_static disable_radix_cache attn_dp_size device"
print(json.dumps({name: getattr(a, name) for name in names.split()}))
"""


@dataclass(frozen=True)
class Case:
    candidate: Candidate
    shown: dict[str, object]


@pytest.mark.parametrize("target", ["sglang", "fwopt"])
def test_files_for_another_engine_than_the_plans_say_whose_promises_they_repeat(make_plan, target):
    """vLLM 0.24.0 was simulated: there is no SGLang 0.24.0, and nobody simulated SGLang."""
    names = {"sglang": "SGLang", "fwopt": "fwopt"}
    file = {"sglang": "config.yaml", "fwopt": "candidate.yaml"}[target]
    foreign = render(make_plan(Candidate(batching=SMALL)), target)[file]
    said = f"Planned for vLLM 0.24.0: what is promised here was found for that engine, not for {names[target]}."
    assert said in foreign
    assert f"{names[target]} 0.24.0" not in foreign
    own = render(make_plan(Candidate(batching=SMALL), engine=EngineSpec(name=target, version="7.8.9")), target)[file]
    assert f"; {names[target]} 7.8.9.\n" in own
    assert "Planned for" not in own


SGLANG_CASES = {
    "plain": Case(Candidate(batching=SMALL), {"quantization": None, "disable_radix_cache": False}),
    "fp8, prefixes off": Case(
        Candidate(quantization=Fp8(), kv_dtype="fp8", batching=SMALL.model_copy(update={"prefix_caching": False})),
        {"quantization": "fp8", "kv_cache_dtype": "fp8_e4m3", "disable_radix_cache": True},
    ),
    "sharded": Case(
        Candidate(parallelism=Parallelism(tp=2, pp=2), batching=SMALL), {"tp_size": 2, "pp_size": 2, "attn_dp_size": 1}
    ),
    "data parallel": Case(
        Candidate(parallelism=Parallelism(tp=2, dp=2), batching=SMALL),
        {"tp_size": 4, "attn_dp_size": 2, "max_running_requests": 16},
    ),
}


@pytest.mark.live
@pytest.mark.skipif(not SGLANG, reason="FWOPT_SGLANG_PYTHON is not set")
@pytest.mark.parametrize("name", SGLANG_CASES)
def test_sglang_shows_the_plans_own_values(make_plan, tmp_path, name):
    assert SGLANG
    case = SGLANG_CASES[name]
    write(make_plan(case.candidate, engine=EngineSpec(name="sglang", version="0.5.23")), tmp_path, "sglang")
    command = [SGLANG, "-c", ASK, str(tmp_path / "sglang" / "config.yaml"), os.environ["FWOPT_SMOLLM2"]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    b = case.candidate.batching
    expected = {
        "dtype": "bfloat16",
        "context_length": b.max_model_len,
        "page_size": b.block_size,
        "mem_fraction_static": b.gpu_memory_utilization,
        "chunked_prefill_size": b.max_num_batched_tokens * case.candidate.parallelism.dp,
        **case.shown,
    }
    assert {key: found[key] for key in expected} == expected
