"""Run by an interpreter that has vLLM: greedy replies with speculation, and what vLLM counted on the way.

python ask_vllm_speculation.py MODEL QUESTION.json     {"config": …, "prompts": [[token, …], …], "tokens": N} -> JSON
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process: half the time to start


def main() -> None:
    from vllm import LLM, SamplingParams

    asked = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    with redirect_stdout(sys.stderr):
        engine = LLM(
            model=sys.argv[1], dtype="bfloat16", enforce_eager=True, max_model_len=1024, max_num_seqs=8,
            speculative_config=asked["config"], disable_log_stats=False, skip_tokenizer_init=True, seed=0,
        )  # fmt: skip
        limits = SamplingParams(temperature=0, max_tokens=asked["tokens"], detokenize=False, ignore_eos=True)
        outputs = engine.generate([{"prompt_token_ids": p} for p in asked["prompts"]], limits, use_tqdm=False)
        counted = {}
        for metric in engine.get_metrics():
            if metric.name.startswith("vllm:spec_decode"):
                counted[metric.name.removeprefix("vllm:spec_decode_")] = getattr(metric, "value", None) or getattr(
                    metric, "values", 0
                )
    print(json.dumps({"replies": [list(o.outputs[0].token_ids) for o in outputs], "counted": counted}), flush=True)
    engine.llm_engine.engine_core.shutdown()
    os._exit(0)  # an interpreter with vLLM in it may abort while it ends, with the answer given


if __name__ == "__main__":
    main()
