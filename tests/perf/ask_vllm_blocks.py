"""Run by an interpreter that has vLLM: the KV blocks it makes of a model with linear attention; no model runs.

python ask_vllm_blocks.py CASES.json     [{"model": folder, "tp": …, "pp": …, "kv": "auto" | "fp8", "prefix": …,
"block": …, "longest": …, "pool": bytes, "serve": [[token, …], …]}, …] -> one JSON line each
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")
OUTPUTS = 900


def lay_out(case: dict[str, Any]) -> tuple[Any, Any]:
    """(config, KV cache config) as vLLM has them on a GPU, where FlashAttention is the kernel."""
    from vllm.distributed.utils import get_pp_indices
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models import ModelRegistry
    from vllm.platforms.interface import Platform
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE
    from vllm.v1.attention.backends.flash_attn import FlashAttentionBackend
    from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec

    class Gpu(Platform):
        @classmethod
        def _find_non_ssm_backends(cls, vllm_config: Any) -> list[Any]:
            return [FlashAttentionBackend]

    config = EngineArgs(
        model=case["model"], skip_tokenizer_init=True, enforce_eager=True, async_scheduling=False, dtype="bfloat16",
        mamba_ssm_cache_dtype="float32", enable_prefix_caching=case["prefix"], block_size=case["block"],
        max_model_len=case["longest"], max_num_batched_tokens=case["longest"],
    ).create_engine_config()  # fmt: skip
    cache, model = config.cache_config, config.model_config
    config.parallel_config.tensor_parallel_size, cache.cache_dtype = case["tp"], case["kv"]
    cache.kv_cache_layout = "LBNHC"
    Gpu._align_hybrid_block_size(config, FlashAttentionBackend)
    of, _ = ModelRegistry.resolve_model_cls(model.architecture, model_config=model)
    full = FullAttentionSpec(
        block_size=cache.block_size, num_kv_heads=model.get_num_kv_heads(config.parallel_config),
        head_size=model.get_head_size(),
        dtype=model.dtype if case["kv"] == "auto" else STR_DTYPE_TO_TORCH_DTYPE[case["kv"]],
    )  # fmt: skip
    linear = MambaSpec(
        shapes=of.get_mamba_state_shape_from_config(config), dtypes=of.get_mamba_state_dtype_from_config(config),
        block_size=cache.mamba_block_size, page_size_padded=cache.mamba_page_size_padded,
        mamba_cache_mode=cache.mamba_cache_mode,
    )  # fmt: skip
    kinds = model.hf_text_config.layer_types
    specs = {f"layers.{i}": full if kind == "full_attention" else linear for i, kind in enumerate(kinds)}
    stages = [get_pp_indices(len(kinds), rank, case["pp"]) for rank in range(case["pp"])]
    workers = [dict(list(specs.items())[start:end]) for start, end in stages]
    return config, get_kv_cache_configs(config, workers, [case["pool"]] * case["pp"])[0]


def serve(config: Any, layout: Any, prompts: list[list[int]]) -> dict[str, list[Any]]:
    """One prompt after the other: the cached tokens, and [computed tokens, blocks in use] of every step."""
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import (
        get_request_block_hasher,
        init_none_hash,
        resolve_kv_cache_block_sizes,
    )
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    init_none_hash(sha256)
    size, hashed = resolve_kv_cache_block_sizes(layout, config)
    config.cache_config.num_gpu_blocks = layout.num_blocks
    scheduler = Scheduler(
        vllm_config=config, kv_cache_config=layout, structured_output_manager=StructuredOutputManager(config),
        block_size=size, hash_block_size=hashed,
    )  # fmt: skip
    pool, cached, steps = scheduler.kv_cache_manager.block_pool, [], []
    free = pool.get_num_free_blocks()
    for i, prompt in enumerate(prompts):
        request = Request(
            request_id=str(i), prompt_token_ids=prompt, pooling_params=None,
            sampling_params=SamplingParams(max_tokens=OUTPUTS, ignore_eos=True),
            block_hasher=get_request_block_hasher(hashed, sha256),
        )  # fmt: skip
        scheduler.add_request(request)
        steps.append([])
        while scheduler.running or scheduler.waiting:
            step = scheduler.schedule()
            if not steps[-1]:
                cached.append(request.num_computed_tokens - step.num_scheduled_tokens[str(i)])
            steps[-1].append([request.num_computed_tokens, free - pool.get_num_free_blocks()])
            ready = request.num_computed_tokens == request.num_tokens
            scheduler.update_from_output(
                step,
                ModelRunnerOutput(
                    req_ids=[str(i)], req_id_to_index={str(i): 0}, sampled_token_ids=[[10**6 + i]] if ready else [[]],
                    logprobs=None, prompt_logprobs_dict={}, pooler_output=[],
                ),
            )  # fmt: skip
    return {"cached": cached, "steps": steps}


def answer(case: dict[str, Any]) -> dict[str, Any]:
    from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

    if case.get("whole"):
        return {"refused": refusal(case)}
    config, layout = lay_out(case)
    longest = layout.num_blocks / get_max_concurrency_for_kv_cache_config(config, layout)
    found = {"block": config.cache_config.block_size, "blocks": layout.num_blocks, "longest": round(longest)}
    return found | (serve(config, layout, case["serve"]) if case.get("serve") else {})


def refusal(case: dict[str, Any]) -> str:
    """What vLLM says to a prefix cache where prompts are computed whole; empty if it takes that."""
    from vllm.engine.arg_utils import EngineArgs

    try:
        EngineArgs(
            model=case["model"], skip_tokenizer_init=True, dtype="bfloat16", enable_prefix_caching=case["prefix"],
            enable_chunked_prefill=False, max_model_len=case["longest"], max_num_batched_tokens=case["longest"],
        ).create_engine_config()  # fmt: skip
    except ValueError as error:
        return str(error)
    return ""


def main() -> None:
    with redirect_stdout(sys.stderr):
        answers = [answer(case) for case in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))]
    for line in answers:
        print(json.dumps(line), flush=True)
    os._exit(0)  # an interpreter with vLLM in it may abort while it ends, with the answer given


if __name__ == "__main__":
    main()
