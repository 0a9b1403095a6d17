"""A live bench of run folders: real reference engines, started in turn, explained by their own step records."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fwopt.regress.explain import explain
from fwopt.regress.samplers.live import LiveSampler
from fwopt.spec.bench import Arm, LiveBench
from fwopt.spec.bench_result import Run
from fwopt.spec.candidate import Batching, Candidate
from fwopt.spec.engine import EngineSpec

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama with a tokenizer of bytes and words."""
    folder = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    names = ["<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    names += [f"w{i}" for i in range(len(names), 512)]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def serves() -> list[str]:
    listed = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if "fwopt serve" in line and "fwopt-bench-" in line and "keeper.py" not in line]


def test_servers_take_turns_and_their_steps_say_what_moved(
    make_plan: Callable, cpu: object, model: Path, tmp_path: Path
) -> None:
    """Head may run one request at a time where base runs eight: it queues."""
    arms = {}
    for arm, sequences in (("base", 8), ("head", 1)):
        folder = tmp_path / arm
        folder.mkdir()
        batching = Batching(max_num_seqs=sequences, max_num_batched_tokens=128, max_model_len=256)
        plan = make_plan(Candidate(batching=batching), device=cpu, engine=EngineSpec(name="fwopt", version="0.1.0"))
        (folder / "plan.json").write_text(plan.model_dump_json())
        arms[arm] = Arm(run=folder)
    lines = [{"arrival_s": 0.0, "prompt_tokens": 30, "output_tokens": 20} for _ in range(8)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    bench = LiveBench(
        name="b", trace=tmp_path / "t.jsonl", concurrency=8, model=str(model), tokenizer=model / "tokenizer.json"
    )
    with LiveSampler(bench, arms) as sampler:
        visits = {}
        for arm in arms:
            visits[arm] = sampler.visit(arm)
            assert len(serves()) == 1, visits
        keys = [sampler.key(arm) for arm in arms]
    assert not serves()
    assert {len(v.samples["e2e"]) for v in visits.values()} == {8}, visits
    assert keys[0].config != keys[1].config
    assert keys[0].engine.startswith("fwopt ")
    runs = [
        Run(block=0, position=i, started_s=0, samples=v.samples, parts=v.parts) for i, v in enumerate(visits.values())
    ]
    assert explain(runs[:1], runs[1:])[0].kind == "queueing"
    assert runs[0].parts["tokens:prefill"] == 30
