"""Run by an interpreter that has vLLM: its own scheduler serves workloads, a second for every step; no model runs.

python ask_vllm_scheduler.py MODEL_FOLDER CASES.json     [{"arrival": …, "prompts": [[token, …], …], "output": …,
"blocks": …, "states": groups of layers that keep a state, "flags": {engine argument: value}}, …] -> one JSON line each
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")


def build(model: str, case: dict[str, Any]) -> tuple[Any, list[Any]]:
    """(scheduler, requests)"""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import (
        get_request_block_hasher,
        init_none_hash,
        resolve_kv_cache_block_sizes,
    )
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, MambaSpec
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    init_none_hash(sha256)
    config = EngineArgs(
        model=model, skip_tokenizer_init=True, enforce_eager=True, async_scheduling=False, **case["flags"]
    ).create_engine_config()
    size, blocks = config.cache_config.block_size, case["blocks"] + 1  # one is the null block
    config.cache_config.num_gpu_blocks = blocks
    layers = FullAttentionSpec(block_size=size, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
    state = MambaSpec(
        shapes=((size, 2 * 64),), dtypes=(torch.bfloat16,), block_size=config.model_config.max_model_len
    )  # fmt: skip
    groups = [KVCacheGroupSpec([f"state{i}"], state) for i in range(case["states"])]
    groups.append(KVCacheGroupSpec(["layer"], layers))
    cache = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups)
    whole, hashed = resolve_kv_cache_block_sizes(cache, config)
    scheduler = Scheduler(
        vllm_config=config, kv_cache_config=cache, structured_output_manager=StructuredOutputManager(config),
        block_size=whole, hash_block_size=hashed,
    )  # fmt: skip
    requests = [
        Request(
            request_id=str(i), prompt_token_ids=prompt, pooling_params=None,
            sampling_params=SamplingParams(max_tokens=output, ignore_eos=True),
            block_hasher=get_request_block_hasher(hashed, sha256),
        )
        for i, (prompt, output) in enumerate(zip(case["prompts"], case["output"], strict=True))
    ]  # fmt: skip
    return scheduler, requests


def serve(model: str, case: dict[str, Any]) -> dict[str, list[float]]:
    from vllm.v1.outputs import ModelRunnerOutput

    scheduler, requests = build(model, case)
    arrival, clock, arrived = case["arrival"], 0.0, 0
    scheduled, first, finish, cached = ([-1.0] * len(requests) for _ in range(4))
    while min(finish) < 0:
        if not scheduler.running and not scheduler.waiting:
            clock = max(clock, arrival[arrived])
        while arrived < len(requests) and arrival[arrived] <= clock:
            scheduler.add_request(requests[arrived])
            arrived += 1
        step = scheduler.schedule()
        names = list(step.num_scheduled_tokens)
        tokens: list[list[int]] = []
        for name in names:
            i, request = int(name), requests[int(name)]
            if scheduled[i] < 0:
                scheduled[i], cached[i] = clock, request.num_computed_tokens - step.num_scheduled_tokens[name]
            ready = request.num_computed_tokens == request.num_tokens
            tokens.append([10**8 + i * 10_000 + request.num_output_tokens] if ready else [])
        clock += 1.0 if names else 0.0
        scheduler.update_from_output(
            step,
            ModelRunnerOutput(
                req_ids=names, req_id_to_index={name: k for k, name in enumerate(names)}, sampled_token_ids=tokens,
                logprobs=None, prompt_logprobs_dict={}, pooler_output=[],
            ),
        )  # fmt: skip
        for name in names:
            i, request = int(name), requests[int(name)]
            first[i] = clock if first[i] < 0 and request.num_output_tokens else first[i]
            finish[i] = clock if request.is_finished() else finish[i]
    preempted = [float(request.num_preemptions) for request in requests]
    return {"scheduled": scheduled, "first": first, "finish": finish, "cached": cached, "preempted": preempted}


def main() -> None:
    cases = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    with redirect_stdout(sys.stderr):
        answers = [serve(sys.argv[1], case) for case in cases]
    for answer in answers:
        print(json.dumps(answer), flush=True)
    os._exit(0)  # an interpreter with vLLM in it may abort while it ends, with the answer given


if __name__ == "__main__":
    main()
