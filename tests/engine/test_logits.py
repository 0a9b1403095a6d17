"""Logits through the paged cache, in chunks and token by token, against transformers' full forward pass."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from fwopt.engine.batch import Batch, ChunkInput, Plan, decode_groups, make_plan
from fwopt.engine.linear import make_linear
from fwopt.engine.parallel import Ranks
from fwopt.engine.paths import Attended
from fwopt.engine.runner import Runner
from fwopt.engine.scheduler import Scheduler
from fwopt.engine.sequence import Sampling, Sequence
from fwopt.engine.settings import Settings
from fwopt.spec.candidate import W4A16, Int8
from fwopt_kernels.choice import Choice, Choices
from fwopt_kernels.contract import FALLBACK, variant

from .conftest import MODELS

QUICK = (Path(__file__).parents[1] / "quick_interpreter.py").read_text()


def prompts(vocabulary: int) -> list[list[int]]:
    rng = np.random.default_rng(3)
    return [rng.integers(3, vocabulary, n).tolist() for n in (1, 50, 90, 17)]


def steps(
    settings: Settings, texts: list[list[int]], prompt_tokens: list[int], group_blocks: int | None = None
) -> Iterator[tuple[Plan, list[int]]]:
    """Steps that compute each text from its prompt on, what follows the prompt being forced, and whose logits they
    give."""
    scheduler = Scheduler(settings.candidate.batching, 64, settings.max_model_len)
    for i, (text, prompt) in enumerate(zip(texts, prompt_tokens, strict=True)):
        scheduler.add(Sequence.new(i, text[:prompt], Sampling(max_tokens=len(text) - prompt + 1)))
    while scheduler.busy:
        step = scheduler.schedule()
        ids = [sequence.id for sequence in step.sampling]
        yield make_plan(step, settings.candidate.batching.block_size, group_blocks), ids
        scheduler.complete(step, [(texts[s.id] + [5])[len(s.tokens)] for s in step.sampling])


def logits_by_steps(
    runner: Runner, texts: list[list[int]], prompt_tokens: list[int], group_blocks: int | None = None
) -> list[torch.Tensor]:
    """Logits after each prefix of each text from its prompt on."""
    runner.allocate(64)
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    for plan, ids in steps(runner.settings, texts, prompt_tokens, group_blocks):
        for i, row in zip(ids, runner.run(plan), strict=True):
            found[i].append(row)
    return [torch.stack(rows) for rows in found]


def reference(folder, dtype: torch.dtype, texts: list[list[int]]) -> list[torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.tensor([text])).logits[0].float() for text in texts]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("tokens", "group_blocks"), [(32, None), (32, 0), (256, None), (256, 0)])
def test_logits_equal_transformers_in_float32(name, tokens, group_blocks, model_folder, make_settings):
    """Prompts in chunks of up to 32 tokens beside decodes, or whole; decodes all together, or by equal lengths."""
    folder, texts = model_folder(name), prompts(320)
    starts = [1, 30, 70, 16]
    settings = make_settings(folder, {"max_num_batched_tokens": tokens, "max_num_seqs": 3})
    ours = logits_by_steps(Runner(settings, Ranks()), texts, starts, group_blocks)
    for mine, theirs, start in zip(ours, reference(folder, torch.float32, texts), starts, strict=True):
        torch.testing.assert_close(mine, theirs[start - 1 :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_near_transformers_in_bfloat16(name, model_folder, make_settings):
    """As near as transformers in bf16 is itself to the exact logits, give or take rounding in another order."""
    folder, texts = model_folder(name), prompts(320)
    starts = [1, 30, 70, 16]
    settings = make_settings(folder, {"max_num_batched_tokens": 48, "max_num_seqs": 3}, dtype="bf16")
    ours = logits_by_steps(Runner(settings, Ranks()), texts, starts)
    assert_near_in_bfloat16(ours, folder, texts, starts)


def assert_near_in_bfloat16(ours, folder, texts, starts):
    exact, theirs = reference(folder, torch.float32, texts), reference(folder, torch.bfloat16, texts)
    after = [slice(start - 1, None) for start in starts]
    assert_nearly_as_near(
        ours, [e[a] for e, a in zip(exact, after, strict=True)], [t[a] for t, a in zip(theirs, after, strict=True)]
    )


def assert_nearly_as_near(ours, exact, theirs):
    """A token whose experts flip at a tie is far off in both."""
    our_error, their_error = (
        torch.cat([(got - want).norm(dim=1) for got, want in zip(found, exact, strict=True)])
        for found in (ours, theirs)
    )
    assert our_error.median() < 1.5 * their_error.median()


_RUN_INTERPRETED = """
import pickle, sys, torch
from fwopt.engine.linear import make_linear
from fwopt.engine.parallel import Ranks
from fwopt.engine.runner import Runner
settings, plans = pickle.load(sys.stdin.buffer)
runner = Runner(settings, Ranks())
runner.allocate(64)
pickle.dump([runner.run(plan).tolist() for plan in plans], sys.stdout.buffer)
"""


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3-moe"])
def test_logits_of_the_triton_kernels_are_near_too(name, model_folder, make_settings):
    folder, texts, starts = model_folder(name), TRITON_TEXTS, TRITON_STARTS
    assert_near_in_bfloat16(logits_interpreted(make_settings, folder), folder, texts, starts)


def test_gpt_oss_on_the_triton_kernels_is_near_transformers(model_folder, make_settings, tmp_path):
    """A checkpoint as published: attention sinks in layers with and without a window that a prompt outgrows, biases,
    experts that stay in MXFP4. Attention interpreted, in chunks and token by token; the rest by the kernels' fallbacks,
    whose kernels other tests interpret."""
    packed, plain = in_mxfp4(model_folder("gpt-oss"), tmp_path)
    texts, starts = [prompts(320)[2][:33], prompts(320)[3][:9]], [30, 8]
    scheme = {"quantization": {"kind": "mxfp4"}}
    ours = logits_interpreted(make_settings, packed, texts, starts, candidate=scheme, choices=ATTENTION_INTERPRETED)
    assert_near_in_bfloat16(ours, plain, texts, starts)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gpt-oss"])
def test_on_a_processor_the_kernels_torch_fallbacks_give_them(name, model_folder, make_settings):
    pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")
    folder = model_folder(name)
    settings = make_settings(folder, LIMITS, dtype="bf16", operators="triton")
    ours = logits_by_steps(Runner(settings, Ranks()), TRITON_TEXTS, TRITON_STARTS)
    assert_near_in_bfloat16(ours, folder, TRITON_TEXTS, TRITON_STARTS)


@pytest.mark.parametrize(
    "quantization", [{"kind": "w4a16", "group_size": 32}, {"kind": "int8"}], ids=lambda scheme: scheme["kind"]
)
def test_quantized_weights_by_the_triton_kernels_give_the_engines_own_logits(quantization, model_folder, make_settings):
    folder, scheme = model_folder("llama"), {"quantization": quantization}
    exact, rounded = (
        logits_by_steps(
            Runner(make_settings(folder, LIMITS, dtype=dtype, candidate=scheme), Ranks()), TRITON_TEXTS, TRITON_STARTS
        )
        for dtype in ("fp32", "bf16")
    )
    sizes = {"m": 1, "n": 64, "k": 64}
    chosen = Choice("w4a16", "g32", sizes, TUNED), Choice("int8_gemm", "int8-row", sizes, TUNED_INT8), TUNED_PREFILL
    found = logits_interpreted(make_settings, folder, candidate=scheme, choices=chosen)
    assert_nearly_as_near(found, exact, rounded)


@pytest.mark.parametrize(("tokens", "splits"), [(64, 8), (512, 1)])
def test_prompts_are_split_only_where_their_tiles_leave_room(tokens, splits, monkeypatch):
    """Parts that were tuned for a short chunk stay with it: the next step's long one has tiles enough."""
    pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")
    from fwopt.engine import kernel_path

    shape = {"sequences": 1, "heads": 32, "kv_heads": 8, "head_dim": 8, "block_size": 16, "tokens": 64,
             "shortest": 640, "context": 640}  # fmt: skip
    tuned = variant(4, 3, BLOCK_M=64, BLOCK_N=64, HEADS_FIRST=1, SPLITS=8)
    choices = Choices([Choice("prefill_attention", "bf16", shape, tuned)])
    path = kernel_path.KernelPath((torch.zeros(9, 4), torch.zeros(9, 4)), choices)
    cache = path.allocate(40, 8, 16, 8, torch.bfloat16, torch.device("cpu"))
    none = torch.zeros(tokens, dtype=torch.int64)
    batch = Batch(none, none, none, none, chunks=[ChunkInput(slice(0, tokens), torch.arange(40)[None], 640, {})])
    run = []
    monkeypatch.setattr(kernel_path, "prefill_attention", lambda *_, variant, **__: run.append(variant))
    qkv = torch.zeros(tokens, 48, 8, dtype=torch.bfloat16)
    path.step(batch, cache).prefill(qkv, 32, cache, Attended(1.0, None, None))
    assert run == [tuned if splits == 8 else None]


@pytest.mark.parametrize(("scheme", "k"), [(W4A16(group_size=16), 64), (Int8(), 40)])
def test_groups_and_widths_that_the_kernels_do_not_know_stay_with_torch(scheme, k):
    pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")
    weight, x = torch.randn(48, k), torch.randn(3, k)
    cpu = torch.device("cpu")
    by_torch = make_linear(weight, None, scheme, cpu)(x)
    torch.testing.assert_close(make_linear(weight, None, scheme, cpu, Choices())(x), by_torch)


def test_int8_weights_are_multiplied_by_the_kernels_own_fallback_where_nothing_else_runs():
    """As torch's own layer, but for the bias, added after rounding to bfloat16, and an activation's code at a tie."""
    pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")
    weight, bias, x = (torch.randn(*shape).bfloat16() for shape in ((48, 64), (48,), (3, 64)))
    cpu = torch.device("cpu")
    by_torch = make_linear(weight, bias, Int8(), cpu)(x)
    layer = make_linear(weight, bias, Int8(), cpu, Choices(default=FALLBACK))
    assert type(layer).__name__ == "KernelInt8"
    torch.testing.assert_close(layer(x), by_torch, rtol=3 * 2**-8, atol=0.1)


TRITON_TEXTS = [prompts(320)[i][:n] for i, n in ((1, 37), (3, 9))]
TRITON_STARTS = [33, 6]
"""A prompt of two chunks and three blocks; each token of each layer is some 0.2 s of the interpreter's."""
TUNED = variant(4, 4, BLOCK_M=8, BLOCK_N=64, BLOCK_K=128, SPLIT_K=1, GROUP_M=1)
"""Of w4a16, not its default."""
TUNED_INT8 = variant(4, 4, BLOCK_M=8, BLOCK_N=64, BLOCK_K=128, SPLIT_K=2, GROUP_M=1, SWAP_AB=1, TMA=0)
TUNED_PREFILL = Choice(
    "prefill_attention", "bf16",
    {"sequences": 1, "heads": 4, "kv_heads": 2, "head_dim": 16, "block_size": 16, "tokens": 32, "shortest": 32,
     "context": 32},
    variant(4, 2, BLOCK_M=64, BLOCK_N=32, HEADS_FIRST=0, SPLITS=4),
)  # fmt: skip
"""Likewise not its default: the keys in parts."""
ATTENTION_INTERPRETED = tuple(
    Choice(operator, format, dict.fromkeys(dimensions.split(), 1), chosen)
    for operator, format, dimensions, chosen in (
        ("rms_norm", "bf16", "rows columns", FALLBACK),
        ("rope_cache", "bf16", "tokens heads kv_heads head_dim rotary_dim block_size", FALLBACK),
        ("fused_moe", "mxfp4", "tokens experts top_k hidden intermediate", FALLBACK),
        ("decode_attention", "bf16", "sequences heads kv_heads head_dim block_size shortest context",
         variant(1, 3, BLOCK_N=32, SPLITS=2)),
    )
)  # fmt: skip
LIMITS = {"max_num_batched_tokens": 32, "max_num_seqs": 3}


def logits_interpreted(
    make_settings, folder, texts=TRITON_TEXTS, starts=TRITON_STARTS, **options
) -> list[torch.Tensor]:
    """In a process in which Triton interprets."""
    pytest.importorskip("triton", reason="needs Triton, which has builds for Linux only")
    settings = make_settings(folder, LIMITS, dtype="bf16", operators="triton", **options)
    found = list(steps(settings, texts, starts))
    done = subprocess.run(
        [sys.executable, "-c", QUICK + _RUN_INTERPRETED],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        input=pickle.dumps((settings, [plan for plan, _ in found])),
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr.decode()
    ours: list[list[list[float]]] = [[] for _ in texts]
    for (_, ids), rows in zip(found, pickle.loads(done.stdout), strict=True):
        for i, row in zip(ids, rows, strict=True):
            ours[i].append(row)
    return [torch.tensor(rows) for rows in ours]


def in_mxfp4(folder, place) -> tuple[Path, Path]:
    """A gpt-oss checkpoint with random experts in MXFP4, as published, and with the numbers that they stand for."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    packed, plain = dict(tensors), dict(tensors)
    generator = torch.Generator().manual_seed(0)
    for name, values in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")) and "experts" in name:
            count, k, n = values.shape
            blocks = torch.randint(0, 256, (count, n, k // 32, 16), dtype=torch.uint8, generator=generator)
            scales = torch.randint(122, 126, (count, n, k // 32), dtype=torch.uint8, generator=generator)
            del packed[name]
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    for kind, weights in (("packed", packed), ("plain", plain)):
        (place / kind).mkdir()
        (place / kind / "config.json").write_text((folder / "config.json").read_text())
        save_file(weights, place / kind / "model.safetensors")
    return place / "packed", place / "plain"


def test_mxfp4_experts_are_dequantized(model_folder, make_settings, tmp_path):
    """A gpt-oss checkpoint as published, its experts in MXFP4, gives the logits of the numbers they stand for."""
    found, held = [], []
    for folder in in_mxfp4(model_folder("gpt-oss"), tmp_path):
        runner = Runner(make_settings(folder), Ranks())
        held.append([m.values for layer in runner.model.layers for m in (layer.mlp.up, layer.mlp.down)])
        found.append(logits_by_steps(runner, prompts(320), [1, 30, 70, 16]))
    for ours, expected in zip(*held, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    for ours, expected in zip(*found, strict=True):
        # equal weights elsewhere in memory: a processor's products may differ in the last bits
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "operators"), [("fp32", "torch"), ("bf16", "triton")])
def test_an_fp8_cache_is_near(dtype, operators, model_folder, make_settings):
    folder, texts, starts = model_folder("llama"), prompts(320), [1, 30, 70, 16]
    limits = {"max_num_batched_tokens": 32}
    settings = make_settings(folder, limits, dtype=dtype, operators=operators, candidate={"kv_dtype": "fp8"})
    ours = logits_by_steps(Runner(settings, Ranks()), texts, starts)
    for mine, exact, start in zip(ours, reference(folder, torch.float32, texts), starts, strict=True):
        assert 0 < (mine - exact[start - 1 :]).norm() / exact[start - 1 :].norm() < 0.2


@pytest.mark.parametrize(("cost", "groups"), [(0, [(2, 1), (1, 2), (1, 9)]), (9, [(3, 2), (1, 9)]), (99, [(4, 9)])])
def test_decodes_are_grouped_where_that_spares_more_than_it_costs(cost, groups):
    assert decode_groups(np.asarray([1, 1, 2, 9]), cost) == groups
