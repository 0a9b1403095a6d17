"""Run by an interpreter that has vLLM: its own scheduler serves workloads, a second for every step; no model runs.

python ask_vllm_scheduler.py MODEL_FOLDER CASES.json     [{"arrival": …, "prompts": [[token, …], …], "output": …,
"blocks": …, "states": groups of layers that keep a state, "flags": {engine argument: value}}, …] -> one JSON line each

With the flag async_scheduling vLLM's own loop drives its own asynchronous scheduler, two steps in flight.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

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
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, MambaSpec
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    init_none_hash(sha256)
    config = EngineArgs(
        model=model, skip_tokenizer_init=True, enforce_eager=True, **case["flags"]
    ).create_engine_config()
    ahead = config.scheduler_config.async_scheduling = case["flags"]["async_scheduling"]  # a CPU would have none
    size, blocks = config.cache_config.block_size, case["blocks"] + 1  # one is the null block
    config.cache_config.num_gpu_blocks = blocks
    layers = FullAttentionSpec(block_size=size, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
    cached = bool(case["states"] and case["flags"]["enable_prefix_caching"])
    mode = config.cache_config.mamba_cache_mode = "align" if cached else "none"  # as vLLM chooses for such models
    state = MambaSpec(
        shapes=((size, 2 * 64),), dtypes=(torch.bfloat16,), mamba_cache_mode=mode,
        block_size=size if cached else config.model_config.max_model_len,
    )  # fmt: skip
    groups = [KVCacheGroupSpec([f"state{i}"], state) for i in range(case["states"])]
    groups.append(KVCacheGroupSpec(["layer"], layers))
    cache = KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=groups,
        prefix_cache_retention_interval=config.cache_config.prefix_cache_retention_interval if cached else None,
    )  # fmt: skip
    whole, hashed = resolve_kv_cache_block_sizes(cache, config)
    scheduler = (AsyncScheduler if ahead else Scheduler)(
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


def output(names: list[str], tokens: list[list[int]]) -> Any:
    from vllm.v1.outputs import ModelRunnerOutput

    return ModelRunnerOutput(
        req_ids=names, req_id_to_index={name: k for k, name in enumerate(names)}, sampled_token_ids=tokens,
        logprobs=None, prompt_logprobs_dict={}, pooler_output=[],
    )  # fmt: skip


class Executor:
    """Runs steps one after another, each a second from when it is asked for or the one before has ended."""

    def __init__(self, requests: list[Any]) -> None:
        self.requests, self.clock, self.end = requests, 0.0, 0.0
        self.scheduled, self.first, self.finish, self.cached = ([-1.0] * len(requests) for _ in range(4))
        self.sampled = [0] * len(requests)

    def execute_model(self, step: Any, **_: Any) -> Any:
        start, names, tokens = max(self.clock, self.end), list(step.num_scheduled_tokens), []
        for name in names:
            i, request = int(name), self.requests[int(name)]
            if self.scheduled[i] < 0:
                self.scheduled[i], self.cached[i] = start, request.num_computed_tokens - step.num_scheduled_tokens[name]
            tokens.append([] if request.is_prefill_chunk else [10**8 + i * 10_000 + self.sampled[i]])
            self.sampled[i] += len(tokens[-1])
        self.end = end = start + bool(names)

        def result() -> Any:
            self.clock = end
            return output(names, tokens)

        self.asked = MagicMock(result=result)
        return self.asked

    def sample_tokens(self, *_: Any, **__: Any) -> Any:
        return self.asked

    def see(self) -> None:
        """The last output has been processed."""
        for i, request in enumerate(self.requests):
            if self.first[i] < 0 and request.num_output_tokens:
                self.first[i] = self.clock
            if self.finish[i] < 0 and request.is_finished():
                self.finish[i] = self.clock


def serve_ahead(model: str, case: dict[str, Any]) -> dict[str, list[float]]:
    from vllm.v1.engine.core import EngineCore

    scheduler, requests = build(model, case)
    executor, arrival, arrived = Executor(requests), case["arrival"], 0
    core = MagicMock(
        scheduler=scheduler, model_executor=executor, batch_queue=deque(maxlen=2), batch_queue_size=2,
        is_mm_encoder_only=False, is_ec_producer=False, is_pooling_model=False, check_for_draft_tokens=False,
    )  # fmt: skip
    core._should_throttle_prefills.return_value = False
    core.log_error_detail.return_value.__exit__.return_value = False
    core.capture_iteration_details.return_value.__exit__.return_value = False
    while min(executor.finish) < 0:
        if not scheduler.has_requests() and not core.batch_queue:
            executor.clock = max(executor.clock, arrival[arrived])
        while arrived < len(requests) and arrival[arrived] <= executor.clock:
            scheduler.add_request(requests[arrived])
            arrived += 1
        EngineCore.step_with_batch_queue(core)
        executor.see()
    preempted = [float(request.num_preemptions) for request in requests]
    return {
        "scheduled": executor.scheduled, "first": executor.first, "finish": executor.finish,
        "cached": executor.cached, "preempted": preempted,
    }  # fmt: skip


def serve(model: str, case: dict[str, Any]) -> dict[str, list[float]]:
    if case["flags"]["async_scheduling"]:
        return serve_ahead(model, case)
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
        scheduler.update_from_output(step, output(names, tokens))
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
