"""vLLM's own schedulers and the simulator, fed the same requests, have one history: a second for every step."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fwopt.perf.grid import StepGrid
from fwopt.sim import simulate
from fwopt.spec.candidate import Batching, Candidate

VLLM = os.environ.get("FWOPT_VLLM_PYTHON")
BLOCK = 16
LONGEST = 1024
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 1000,
    "max_position_embeddings": LONGEST, "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
}  # fmt: skip


def equal_steps(grid: StepGrid) -> StepGrid:
    """Every step takes a second, and nothing is before or after it."""
    tables = ("token_graph_s", "token_eager_s", "decode_s", "prefill_s", "sample_s")
    rest = (
        "prefill_chunk_floor_s",
        "step_cpu_s",
        "sequence_cpu_s",
        "request_s",
        "prompt_token_s",
        "front_s",
        "chunk_s",
    )
    return replace(
        grid, **{name: np.zeros_like(getattr(grid, name)) for name in tables}, **dict.fromkeys(rest, 0.0), serial_s=1.0
    )


def load(rng: np.random.Generator, *, shared: bool) -> dict:
    """Up to 25 requests; prompts along the paths of a small tree of prefixes, each node one block, or all different."""
    n = int(rng.integers(5, 26))
    paths = [tuple(rng.integers(0, 2, rng.integers(0, 13)).tolist()) for _ in range(n)]
    ids: dict[tuple[int, ...], int] = {}
    chains = [[ids.setdefault(p[: k + 1], len(ids)) for k in range(len(p))] if shared else [] for p in paths]
    tails = rng.integers(1, 41 if shared else 601, n)
    return {
        "arrival": np.floor(np.cumsum(rng.choice([0, 0, 1, 20], n))) + 0.5,
        "prompt": [len(c) * BLOCK + int(t) for c, t in zip(chains, tails, strict=True)],
        "output": rng.integers(1, 121, n).tolist(),
        "chains": chains,
        "block_tokens": BLOCK,
    }


def prompts(load: dict) -> list[list[int]]:
    made = []
    for i, (chain, length) in enumerate(zip(load["chains"], load["prompt"], strict=True)):
        own = range(10**7 + i * 1000, 10**7 + i * 1000 + length - len(chain) * BLOCK)
        made.append([c * BLOCK + k for c in chain for k in range(BLOCK)] + list(own))
    return made


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.skipif(VLLM is None, reason="FWOPT_VLLM_PYTHON names no interpreter with vLLM")
@pytest.mark.parametrize("states", [0, 3])
def test_same_history_as_vllm(ahead, states, tmp_path, make_workload, make_grid):
    """Small caches and large, preemption with and without a prefix cache, prompts in chunks and whole; and without one
    where a sequence takes three blocks for the states of linear attention, as in Qwen3.5. Synchronous, and with the
    next step put together while one runs."""
    rng, asked, mine = np.random.default_rng(0), [], []
    for k in range(48):
        shared, prefix, chunked = (k % 4 == 0, k % 2 == 0, k % 3 > 0) if not states else (False, False, k % 3 > 0)
        made = load(rng, shared=shared)
        batching = Batching(
            max_num_seqs=int(rng.choice([1, 2, 7, 64])), block_size=BLOCK, prefix_caching=prefix,
            max_num_batched_tokens=int(rng.choice([64, 100, 512, 2048])) if chunked else LONGEST,
            chunked_prefill=chunked,
        )  # fmt: skip
        blocks = 4000 if shared else int(rng.choice([46, 60, 100])) + states
        mine.append(
            simulate(
                make_workload(**made), equal_steps(make_grid(lookahead=ahead)), blocks, Candidate(batching=batching),
                LONGEST, sequence_blocks=states,
            )
        )  # fmt: skip
        flags = {
            "max_num_seqs": batching.max_num_seqs, "max_num_batched_tokens": batching.max_num_batched_tokens,
            "block_size": BLOCK, "enable_prefix_caching": prefix, "enable_chunked_prefill": chunked,
            "max_model_len": LONGEST, "async_scheduling": ahead,
        }  # fmt: skip
        asked.append(
            {"arrival": made["arrival"].tolist(), "prompts": prompts(made), "output": made["output"]}
            | {"blocks": blocks, "states": states, "flags": flags}
        )
    (tmp_path / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    (tmp_path / "cases.json").write_text(json.dumps(asked), encoding="utf-8")
    script = Path(__file__).with_name("ask_vllm_scheduler.py")
    done = subprocess.run(
        [VLLM, str(script), str(tmp_path), str(tmp_path / "cases.json")],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for result, line in zip(mine, done.stdout.splitlines(), strict=True):
        records, real = result.records, json.loads(line)
        assert records.scheduled_s.tolist() == pytest.approx(real["scheduled"])
        assert records.first_token_s.tolist() == pytest.approx(real["first"])
        assert records.finish_s.tolist() == pytest.approx(real["finish"])
        assert records.cached_tokens.tolist() == real["cached"]
        assert records.preemptions.tolist() == real["preempted"]
    assert sum(result.preemptions for result in mine) > 20
    assert states or sum(result.records.cached_tokens.sum() for result in mine) > 1000


@pytest.mark.parametrize(("ahead", "third"), [(False, 3.0), (True, 4.0)])
def test_a_place_is_free_a_step_late(ahead, third, make_workload, make_grid):
    """Two places; the first request ends at 3 s, its successor was to be in the step that was put together at 2 s."""
    workload = make_workload([0.0] * 3, [16] * 3, [3, 10, 2])
    places = Candidate(batching=Batching(max_num_seqs=2, max_num_batched_tokens=512, block_size=BLOCK))
    records = simulate(workload, equal_steps(make_grid(lookahead=ahead)), 100, places, LONGEST).records
    assert records.scheduled_s.tolist() == pytest.approx([0.0, 0.0, third])
    assert records.finish_s.tolist() == pytest.approx([3.0, 10.0, third + 2.0])


def test_an_empty_step_takes_no_time(make_workload, make_grid):
    """One place: with its end unseen there is nothing to put into the next step, so the end is waited for."""
    workload = make_workload([0.0] * 2, [16] * 2, [3, 3])
    place = Candidate(batching=Batching(max_num_seqs=1, max_num_batched_tokens=512, block_size=BLOCK))
    records = simulate(workload, equal_steps(make_grid()), 100, place, LONGEST).records
    assert records.scheduled_s.tolist() == pytest.approx([0.0, 3.0])


def test_one_that_has_ended_can_be_preempted(make_workload, make_grid):
    """Four blocks, two each. At 1 s the first request wants a third; the second ends at 2 s, but that is not known, and
    nobody is admitted in a step that preempts."""
    workload = make_workload([0.0, 0.0, 0.5], [31, 16, 1], [20, 2, 1])
    few = Candidate(batching=Batching(max_num_seqs=8, max_num_batched_tokens=512, block_size=BLOCK))
    records = simulate(workload, equal_steps(make_grid()), 4, few, LONGEST).records
    assert records.preemptions.tolist() == [0, 1, 0]
    assert records.scheduled_s.tolist() == pytest.approx([0.0, 0.0, 3.0])
    assert records.finish_s.tolist() == pytest.approx([20.0, 2.0, 4.0])
