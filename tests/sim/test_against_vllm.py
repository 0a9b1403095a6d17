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


class Both:
    """The same requests for the simulator and for vLLM's scheduler."""

    def __init__(self, make_workload, make_grid, *, ahead: bool) -> None:
        self.make_workload, self.grid, self.ahead = make_workload, equal_steps(make_grid(lookahead=ahead)), ahead
        self.mine: list = []
        self.asked: list[dict] = []

    def serve(self, made: dict, batching: Batching, blocks: int, states: int = 0) -> None:
        """`states`: groups of layers that keep a state; each takes a block a sequence."""
        self.mine.append(
            simulate(
                self.make_workload(**made), self.grid, blocks, Candidate(batching=batching), LONGEST,
                sequence_blocks=states, states=states > 0,
            )
        )  # fmt: skip
        flags = {
            "max_num_seqs": batching.max_num_seqs, "max_num_batched_tokens": batching.max_num_batched_tokens,
            "block_size": batching.block_size, "enable_prefix_caching": batching.prefix_caching,
            "enable_chunked_prefill": batching.chunked_prefill, "max_model_len": LONGEST,
            "async_scheduling": self.ahead,
        }  # fmt: skip
        self.asked.append(
            {"arrival": made["arrival"].tolist(), "prompts": prompts(made), "output": made["output"]}
            | {"blocks": blocks, "states": states, "flags": flags}
        )

    def compare(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
        (folder / "cases.json").write_text(json.dumps(self.asked), encoding="utf-8")
        script = Path(__file__).with_name("ask_vllm_scheduler.py")
        done = subprocess.run(
            [VLLM, str(script), str(folder), str(folder / "cases.json")],
            capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        for result, line in zip(self.mine, done.stdout.splitlines(), strict=True):
            records, real = result.records, json.loads(line)
            assert records.scheduled_s.tolist() == pytest.approx(real["scheduled"])
            assert records.first_token_s.tolist() == pytest.approx(real["first"])
            assert records.finish_s.tolist() == pytest.approx(real["finish"])
            assert records.cached_tokens.tolist() == real["cached"]
            assert records.preemptions.tolist() == real["preempted"]

    @property
    def preemptions(self) -> int:
        return sum(result.preemptions for result in self.mine)

    @property
    def hits(self) -> int:
        return int(sum(result.records.cached_tokens.sum() for result in self.mine))


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.skipif(VLLM is None, reason="FWOPT_VLLM_PYTHON names no interpreter with vLLM")
@pytest.mark.parametrize("states", [0, 3])
def test_same_history_as_vllm(ahead, states, tmp_path, make_workload, make_grid):
    """Small caches and large, preemption with and without a prefix cache, prompts in chunks and whole; and without one
    where a sequence takes three blocks for the states of linear attention, as in Qwen3.5. Synchronous, and with the
    next step put together while one runs."""
    rng, both = np.random.default_rng(0), Both(make_workload, make_grid, ahead=ahead)
    for k in range(48):
        shared, prefix, chunked = (k % 4 == 0, k % 2 == 0, k % 3 > 0) if not states else (False, False, k % 3 > 0)
        made = load(rng, shared=shared)
        batching = Batching(
            max_num_seqs=int(rng.choice([1, 2, 7, 64])), block_size=BLOCK, prefix_caching=prefix,
            max_num_batched_tokens=int(rng.choice([64, 100, 512, 2048])) if chunked else LONGEST,
            chunked_prefill=chunked,
        )  # fmt: skip
        both.serve(made, batching, 4000 if shared else int(rng.choice([46, 60, 100])) + states, states)
    both.compare(tmp_path)
    assert both.preemptions > 20
    assert states or both.hits > 1000


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.skipif(VLLM is None, reason="FWOPT_VLLM_PYTHON names no interpreter with vLLM")
@pytest.mark.parametrize("states", [0, 3])
def test_same_history_of_shared_prefixes(ahead, states, tmp_path, make_workload, make_grid):
    """Blocks of one, two and four of the trace's, budgets smaller than a block among them. With linear attention chunks
    end with whole blocks, and prefixes are found where a state was kept."""
    rng, both = np.random.default_rng(1), Both(make_workload, make_grid, ahead=ahead)
    for _ in range(60):
        made, block = load(rng, shared=True), int(rng.choice([16, 32, 64]))
        budget = int(rng.choice([12, 40, 70, 100, 200, 512, 2048]))
        places = min(budget, int(rng.choice([1, 2, 7, 64])))
        batching = Batching(max_num_seqs=places, block_size=block, max_num_batched_tokens=budget)
        both.serve(made, batching, 4000, states)
    both.compare(tmp_path)
    assert both.hits > 1000


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


def _found(make_workload, make_grid, load: dict, *, states: bool, budget: int = 512) -> tuple[list, list]:
    """(first tokens, prompt tokens found cached)."""
    batching = Batching(max_num_seqs=8, max_num_batched_tokens=budget, block_size=BLOCK)
    records = simulate(
        make_workload(**load), equal_steps(make_grid()), 1000, Candidate(batching=batching), LONGEST, states=states
    ).records
    return records.first_token_s.tolist(), records.cached_tokens.tolist()


def test_a_prompt_longer_than_a_block_takes_two_steps_where_states_are_cached(make_workload, make_grid):
    """40 tokens: 32, where the state is kept, then 8. Of 16, the state at the end could not be found again."""
    alone = {"arrival": [0.0, 100.0, 200.0], "prompt": [40, 16, 17], "output": [3, 3, 3]}
    assert _found(make_workload, make_grid, alone, states=False)[0] == pytest.approx([1.0, 101.0, 201.0])
    assert _found(make_workload, make_grid, alone, states=True)[0] == pytest.approx([2.0, 101.0, 202.0])


def test_who_first_shares_the_beginning_of_a_prompt_finds_no_state_there(make_workload, make_grid):
    """The second of three that share four blocks computes them again and keeps the state after them: 64, 32, 4."""
    chains = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 6, 7], [0, 1, 2, 3, 8, 9]]
    sharing = {"arrival": [0.0, 10.0, 20.0], "prompt": [100] * 3, "output": [3] * 3} | {
        "chains": chains, "block_tokens": BLOCK,
    }  # fmt: skip
    assert _found(make_workload, make_grid, sharing, states=False)[1] == [0, 64, 64]
    first, found = _found(make_workload, make_grid, sharing, states=True)
    assert found == [0, 0, 64]
    assert first == pytest.approx([2.0, 13.0, 22.0])


def test_what_whole_blocks_leave_of_the_budget_goes_to_others(make_workload, make_grid):
    """Of 40 tokens a step the first prompt takes 32, 32, 32 and its last 4; the second is computed beside the first of
    them, the third (32, 16, 2) beside the last: before, less than a block is left for it."""
    together = {"arrival": [0.0] * 3, "prompt": [100, 8, 50], "output": [4] * 3}
    first, _ = _found(make_workload, make_grid, together, states=True, budget=40)
    assert first == pytest.approx([4.0, 1.0, 6.0])
