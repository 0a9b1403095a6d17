"""`fwopt simulate` with a model of linear attention: prefixes are cached in the blocks that vLLM makes for it."""

import json
import subprocess
import sys

RUN = [sys.executable, "-c", "from fwopt.cli.app import main; main()"]
BY = ("--model", "Qwen/Qwen3.5-27B", "--hardware", "h200:1")


def fwopt(*arguments, cwd):
    return subprocess.run([*RUN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=300)


def trace(folder):
    """Two requests, the second long after the first; they share 1,600 tokens."""
    shared = list(range(100))
    rows = [
        {"schema_version": 1, "name": "two", "block_tokens": 16},
        {"arrival_s": 0, "prompt_tokens": 2000, "output_tokens": 60, "prefix_blocks": [*shared, *range(1000, 1025)]},
        {"arrival_s": 30, "prompt_tokens": 1900, "output_tokens": 60, "prefix_blocks": [*shared, *range(2000, 2018)]},
    ]
    (folder / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "two.jsonl"


def test_prefixes_are_cached_in_the_blocks_that_vllm_makes(tmp_path):
    """Of 1,600 shared tokens two blocks of 784 are found, as vLLM's own scheduler finds them
    (`test_same_blocks_as_vllm`); 2,059 tokens and three states take six blocks."""
    done = fwopt("simulate", trace(tmp_path), *BY, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["evaluation"]
    assert found["metrics"]["cached_prompt_tokens"] == 1568
    assert found["peak_kv_blocks"] == 6


def test_a_config_that_vllm_refuses_is_refused(tmp_path):
    (tmp_path / "whole.yaml").write_text(
        "no-enable-chunked-prefill: true\nenable-prefix-caching: true\nmax-num-batched-tokens: 8192\n"
        "max-model-len: 8192\n",
        encoding="utf-8",
    )
    done = fwopt("simulate", trace(tmp_path), *BY, "--config", "whole.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "fwopt: Qwen/Qwen3.5-27B does not start like this: vLLM caches prefixes of linear attention only with "
        "chunked prefill"
    )
