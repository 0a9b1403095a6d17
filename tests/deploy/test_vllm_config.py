"""Reading vLLM configurations: fwopt's own round trip, and what people really write."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fwopt.deploy import render
from fwopt.deploy.vllm_config import read
from fwopt.errors import InputError
from fwopt.spec.candidate import W4A16, Batching, Bf16, Candidate, Fp8, Int8, Mxfp4, Parallelism, outside_experts
from fwopt.spec.engine import EngineSpec
from fwopt.targets import load_model

_STORED = {"fp8": {"tensor": "fp8_tensor", "block": "fp8_block"}, "mxfp4": "mxfp4"}
_small = st.integers(1, 16)


@st.composite
def _candidates(draw) -> tuple[Candidate, str | None]:
    """A candidate that vLLM would start, and how the checkpoint it is served from is stored."""
    quantization = draw(
        st.sampled_from([Bf16(), Fp8(), Fp8(scale="block"), Int8(), Mxfp4()])
        | st.builds(W4A16, group_size=st.integers(1, 256), scope=st.sampled_from(["all", "experts"]))
    )
    stored = _STORED.get(quantization.kind)
    stored = stored[quantization.scale] if isinstance(stored, dict) else stored
    if quantization.kind == "w4a16":
        stored = "int4_group" if quantization.scope == "all" else "int4_experts"
    if outside_experts(quantization) == quantization and draw(st.booleans()):
        stored = None
    chunked = draw(st.booleans())
    longest = draw(st.integers(1, 1 << 20) if not chunked else st.none() | st.integers(1, 1 << 20))
    seqs = draw(st.integers(1, 4096))
    batching = Batching(
        max_num_seqs=seqs,
        max_num_batched_tokens=draw(st.integers(max(seqs, longest or 1) if not chunked else seqs, 1 << 21)),
        block_size=draw(st.sampled_from([1, 16, 32, 64, 128])),
        gpu_memory_utilization=draw(st.floats(0, 1, exclude_min=True)),
        prefix_caching=draw(st.booleans()),
        chunked_prefill=chunked,
        max_model_len=longest,
    )
    parallelism = draw(st.builds(Parallelism, tp=_small, pp=_small, dp=_small, ep=st.booleans(), replicas=_small))
    return (
        Candidate(
            quantization=quantization,
            kv_dtype=draw(st.sampled_from(["bf16", "fp8"])),
            parallelism=parallelism,
            batching=batching,
            router=draw(st.sampled_from(["round_robin", "least_requests"])),
        ),
        stored,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=_candidates(), moe=st.booleans())
def test_what_is_exported_reads_back_as_the_same_candidate(make_plan, tmp_path, drawn, moe):
    candidate, stored = drawn
    plan = make_plan(candidate, stored=stored, moe=moe)
    path = tmp_path / "config.yaml"
    path.write_text(render(plan, "vllm")["config.yaml"])
    found = read(path)
    assert found.candidate == candidate
    assert found.for_model(plan.model) == candidate
    assert found.model == plan.model.name
    assert not [note for note in found.notes if not note.startswith("served-model-name")]


def _read(tmp_path: Path, text: str, name: str = "config.yaml", **options):
    path = tmp_path / name
    path.write_text(text)
    return read(path, **options)


def test_what_a_file_leaves_out_is_the_engines_default_on_hopper(tmp_path):
    found = _read(tmp_path, "model: Qwen/Qwen3-8B\n")
    assert found.candidate == Candidate()
    assert found.candidate.batching.max_num_seqs == 1024
    assert found.candidate.batching.max_num_batched_tokens == 8192
    assert found.stated == frozenset()


def test_underscores_replicas_and_engine_arithmetic(tmp_path):
    found = _read(tmp_path, "model: m\nmax_num_batched_tokens: 4k\ntensor_parallel_size: 2\n", replicas=3)
    assert found.candidate.batching.max_num_batched_tokens == 4000
    assert found.candidate.parallelism == Parallelism(tp=2, replicas=3)
    few = _read(tmp_path, "model: m\nmax-num-batched-tokens: 512\n").candidate.batching
    assert few.max_num_seqs == 512, "vLLM caps its default at the token budget"
    short = _read(tmp_path, "model: m\nmax-model-len: 4\nmax-num-seqs: 2\n").candidate.batching
    assert short.max_num_batched_tokens == 8, "and its default budget at what the sequences can hold"
    doubled = _read(tmp_path, "model: m\nperformance-mode: throughput\nmax-num-seqs: 64\n").candidate.batching
    assert (doubled.max_num_seqs, doubled.max_num_batched_tokens) == (64, 16384)


def test_without_chunked_prefill_the_default_budget_is_the_models_length(make_plan, tmp_path):
    found = _read(tmp_path, "model: m\nno-enable-chunked-prefill: true\n")
    assert found.for_model(make_plan().model).batching.max_num_batched_tokens == 40960


def test_false_in_yaml_means_what_that_vllm_makes_of_it(tmp_path):
    text = "model: m\nenable-prefix-caching: false\n"
    old = _read(tmp_path, text)
    assert old.candidate.batching.prefix_caching
    assert any("ignores 'false'" in note and "no-enable-prefix-caching: true" in note for note in old.notes)
    assert not _read(tmp_path, text, engine=EngineSpec(version="0.32.0")).candidate.batching.prefix_caching
    with pytest.raises(InputError, match="different things"):
        _read(tmp_path, text, engine=EngineSpec(version="0.28.1"))


def test_keys_that_are_not_modelled_are_named(tmp_path):
    notes = _read(
        tmp_path, "model: m\nenforce-eager: true\nmamba-cache-mode: none\nport: 80\nmax-num-sequences: 3\n"
    ).notes
    assert notes == (
        "enforce-eager=true: not modelled, and it changes speed or memory",
        "mamba-cache-mode=none: not modelled, and it changes speed or memory",
        "port=80: not modelled",
        "max-num-sequences=3: not modelled (nearest modelled key: max-num-seqs)",
    )


def test_a_serve_command_as_it_stands_in_a_script(tmp_path):
    (tmp_path / "base.yaml").write_text("max-num-seqs: 64\nmax-num-batched-tokens: 2048\n")
    found = _read(
        tmp_path,
        "#!/bin/sh\n# our server\nset -e\nCUDA_VISIBLE_DEVICES=0,1 vllm serve Qwen/Qwen3-8B -tp 2 \\\n"
        "  --config base.yaml --max_num_seqs=256 --kv-cache-dtype fp8 --no-enable-prefix-caching  # tuned\necho done\n",
        "start.sh",
    )
    assert found.model == "Qwen/Qwen3-8B"
    assert found.candidate == Candidate(
        kv_dtype="fp8",
        parallelism=Parallelism(tp=2),
        batching=Batching(max_num_seqs=256, max_num_batched_tokens=2048, prefix_caching=False),
    )
    assert found.notes == ("environment CUDA_VISIBLE_DEVICES=0,1: not modelled",)


def test_the_checkpoint_decides_what_the_file_leaves_open(make_plan, tmp_path):
    fp8_block = make_plan(Candidate(quantization=Fp8(scale="block")), stored="fp8_block").model
    assert _read(tmp_path, "model: m\n").for_model(fp8_block).quantization == Fp8(scale="block")
    assert _read(tmp_path, "model: m\nquantization: fp8\n").for_model(fp8_block).quantization == Fp8(scale="block")
    packed = _read(tmp_path, "model: m\nquantization: compressed-tensors\n")
    with pytest.raises(InputError, match="# fwopt: weights="):
        packed.for_model(make_plan().model)


def test_the_checkpoint_decides_the_kv_dtype_that_is_left_open(make_plan, tmp_path):
    """As vLLM's `resolve_kv_cache_dtype_string` does."""
    plain = make_plan(Candidate(quantization=Fp8()), stored="fp8_tensor").model
    asking = plain.model_copy(update={"checkpoint_kv_dtype": "fp8"})
    for text, of_plain, of_asking in (("", "bf16", "fp8"), ("auto", "bf16", "fp8"), ("bfloat16",) + ("bf16",) * 2):
        found = _read(tmp_path, f"model: m\nkv-cache-dtype: {text}\n" if text else "model: m\n")
        assert (found.for_model(plain).kv_dtype, found.for_model(asking).kv_dtype) == (of_plain, of_asking)


def test_latent_attention_over_an_fp8_cache_takes_blocks_of_64(tmp_path):
    """FlashMLA's only size, which vLLM takes where none is stated; a stated one is a constraint."""
    model = load_model("deepseek-ai/DeepSeek-V3")
    asking = model.model_copy(update={"checkpoint_kv_dtype": "fp8"})
    fp8 = "kv-cache-dtype: fp8\n"
    for text, spec, block in (
        (fp8, model, 64),
        (fp8 + "block-size: 16\n", model, 16),
        ("", model, 16),
        ("", asking, 64),
        (fp8, load_model("Qwen/Qwen3-8B"), 16),
    ):
        assert _read(tmp_path, f"model: m\n{text}").for_model(spec).batching.block_size == block


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must be a YAML mapping"),
        ("- a\n", "must be a YAML mapping"),
        ("a: [\n", ":2: must be YAML"),
        ("model: m\nmax-num-seqs: 1\nmax_num_seqs: 2\n", ":3: must be YAML: key 'max-num-seqs' is given twice"),
        ("max-num-seqs: 0\n", "max-num-seqs: must be greater than 0, got 0"),
        ("max-num-seqs: -5\n", "max-num-seqs: must be greater than 0, got -5"),
        ("max-num-seqs: many\n", "max-num-seqs: must be a whole number, got 'many'"),
        ("max-num-seqs: 1.5\n", "max-num-seqs: must be a whole number, got '1.5'"),
        ("max-num-seqs: [1]\n", "max-num-seqs: must be a whole number"),
        ("max-num-seqs: 9\nmax-num-batched-tokens: 8\n", "must be at least max-num-seqs"),
        ("no-enable-chunked-prefill: true\nmax-model-len: 9\nmax-num-batched-tokens: 8\nmax-num-seqs: 1\n", "chunked"),
        ("gpu-memory-utilization: 1.5\n", "gpu-memory-utilization: must be less than or equal to 1, got 1.5"),
        ("gpu-memory-utilization: .nan\n", "gpu-memory-utilization: must be"),
        ("enable-prefix-caching: maybe\n", "enable-prefix-caching: is a switch"),
        ("dtype: float32\n", "dtype: must be"),
        ("kv-cache-dtype: nvfp4\n", "kv-cache-dtype: must be one of"),
        ("quantization: bitsandbytes\n", "quantization: 'bitsandbytes' has no cost model"),
        ("max-num-seq: 4\n", "max-num-seq: abbreviates max-num-seqs"),
        ("# fwopt: replicas=none\nmodel: m\n", "replicas: must be a whole number"),
        ("# fwopt: replicas=2\nmodel: m\n# fwopt: replicas=4\n", "'# fwopt: replicas=' says 2 and 4"),
        ("# fwopt: router=random\nmodel: m\n", "router: must be"),
        ("# fwopt: colour=red\nmodel: m\n", "must be one of replicas"),
        ("# fwopt: weights=int8\nquantization: fp8\n", "contradicts"),
        ("model: CONVERTED-CHECKPOINT-REQUIRED\n", "placeholder"),
    ],
)
def test_nonsense_is_one_line_with_file_key_and_rule(tmp_path, text, rule):
    with pytest.raises(InputError) as caught:
        _read(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "config.yaml"))
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    for name, raw in {
        "a.yaml": b"\xff\xfe\x00",
        "b.yaml": b"a" * (1 << 21),
        "c.sh": b"echo hi",
        "d.sh": b'vllm serve "',
    }.items():
        path = tmp_path / name
        path.write_bytes(raw)
        with pytest.raises(InputError, match=name):
            read(path)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "none.yaml")
