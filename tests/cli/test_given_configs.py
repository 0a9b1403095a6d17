"""A configuration that the user names stands for what the engine would do with it, on the hardware planned for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fwopt.cli.tuning import _baseline
from fwopt.cli.what_if import prepare_what_if
from fwopt.paths import data_folder
from fwopt.search.settings import Settings
from fwopt.spec.candidate import Candidate
from fwopt.targets import load_model
from fwopt.targets.models import find_config

MODEL = "Qwen/Qwen3-8B"
LINE = '{"arrival_s": 0, "prompt_tokens": 50, "output_tokens": 20}\n'


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of an A100: the H100's under its name, for no time of theirs is looked at."""
    folder = tmp_path_factory.mktemp("profiles")
    own = folder / "a100" / "vllm-0.24.0"
    shutil.copytree(data_folder("profiles") / "h100" / "vllm-0.24.0", own)
    said = json.loads((own / "environment.json").read_text())
    (own / "environment.json").write_text(json.dumps(said | {"device": "a100"}))
    return folder


def cached_in_fp8(folder: Path, name: str) -> str:
    """A model whose checkpoint asks for an fp8 cache."""
    config = json.loads(find_config(name)[0].read_text())
    stated = {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    return str(folder / "config.json")


def planned(folder: Path, text: str | None, **changes: Any) -> Candidate:
    """What `fwopt simulate` takes a config for."""
    (folder / "t.jsonl").write_text(LINE)
    config = None
    if text is not None:
        config = folder / "c.yaml"
        config.write_text(text)
    options: dict[str, Any] = {
        "model": MODEL, "hardware": "h100:8", "replicas": None, "router": None, "rate_scale": 1.0, "slos": (),
        "price": 1.0, "format": None, "skip_bad": False, "only_model": None, "profiles": None,
    }  # fmt: skip
    return prepare_what_if(folder / "t.jsonl", config=config, **options | changes).candidate


def test_what_a_config_leaves_out_is_the_default_of_the_device(tmp_path: Path, profiles: Path) -> None:
    """vLLM takes 256 sequences and 2,048 tokens on an A100, whatever an H100 would take."""
    own = {"hardware": "a100:1", "profiles": profiles}
    unset = planned(tmp_path, None, **own)
    assert (unset.batching.max_num_seqs, unset.batching.max_num_batched_tokens) == (256, 2048)
    assert planned(tmp_path, f"model: {MODEL}\n", **own) == unset
    stated = planned(tmp_path, "max-num-seqs: 64\n", **own).batching
    assert (stated.max_num_seqs, stated.max_num_batched_tokens) == (64, 2048)
    assert planned(tmp_path, f"model: {MODEL}\n") == Candidate()


def test_so_it_is_for_a_baseline(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"model: {MODEL}\n")
    for gpus, limits in (("a100:1", (256, 2048)), ("h200:1", (1024, 8192))):
        baseline, _ = _baseline(Settings(hardware=gpus, baseline=tmp_path / "c.yaml"), load_model(MODEL))
        assert baseline is not None
        assert (baseline.batching.max_num_seqs, baseline.batching.max_num_batched_tokens) == limits


def test_false_in_a_file_is_read_as_that_version_reads_it(tmp_path: Path) -> None:
    """vLLM 0.24 leaves the key out, 0.32 turns it into `--no-enable-prefix-caching`."""
    for version, caching in (("0.24.0", True), ("0.32.0", False)):
        found = planned(tmp_path, "enable-prefix-caching: false\n", engine=f"vllm=={version}")
        assert found.batching.prefix_caching == caching


@pytest.mark.parametrize(("name", "block"), [(MODEL, 16), ("deepseek-ai/DeepSeek-V3", 64)])
def test_without_a_config_the_cache_is_as_the_checkpoint_asks(name: str, block: int, tmp_path: Path) -> None:
    model = cached_in_fp8(tmp_path, name)
    config = f"model: {MODEL}\ntensor-parallel-size: 8\n"
    given = planned(tmp_path, config, model=model, hardware="h200:8")
    assert (given.kv_dtype, given.batching.block_size) == ("fp8", block)
    if name == MODEL:
        unset = planned(tmp_path, None, model=model, hardware="h200:8")
        assert unset == planned(tmp_path, f"model: {MODEL}\n", model=model, hardware="h200:8")
