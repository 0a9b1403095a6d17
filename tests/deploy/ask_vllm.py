"""Run by an interpreter that has vLLM: what its parser and engine config make of `--config` files; no server starts.

    python ask_vllm.py CONFIG.yaml=MODEL_FOLDER ...     one JSON line each

The model folder goes on the command line, as run.sh gives a converted checkpoint: each file is read as it stands.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import redirect_stdout

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")

PARSER_HOMES = ("launchers", "common", "openai")
"""Where vLLM has kept `cli_args`, newest first."""


def _parser():
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for home in PARSER_HOMES:
        try:
            module = importlib.import_module(f"vllm.entrypoints.{home}.cli_args")
        except ModuleNotFoundError:
            continue
        return module.make_arg_parser(FlexibleArgumentParser())
    raise SystemExit(f"no cli_args in vllm.entrypoints.{{{','.join(PARSER_HOMES)}}}")


def _drafter(config) -> dict[str, object] | None:
    if config is None:
        return None
    keys = ("method", "num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max")
    return {key: getattr(config, key) for key in keys}


def _ask(parser, path: str, folder: str) -> dict[str, object]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        arguments = parser.parse_args(["--config", path, "--model", folder, "--skip-tokenizer-init"])
        engine = AsyncEngineArgs.from_cli_args(arguments).create_engine_config()
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    cache, scheduler, parallel, model = (
        engine.cache_config,
        engine.scheduler_config,
        engine.parallel_config,
        engine.model_config,
    )
    return {
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "chunked_prefill": scheduler.enable_chunked_prefill,
        "block_size": cache.block_size,
        "gpu_memory_utilization": cache.gpu_memory_utilization,
        "prefix_caching": cache.enable_prefix_caching,
        "kv_cache_dtype": cache.cache_dtype,
        "max_model_len": model.max_model_len,
        "quantization": model.quantization,
        "dtype": str(model.dtype).removeprefix("torch."),
        "tp": parallel.tensor_parallel_size,
        "pp": parallel.pipeline_parallel_size,
        "dp": parallel.data_parallel_size,
        "ep": parallel.enable_expert_parallel,
        "speculation": _drafter(engine.speculative_config),
    }


if __name__ == "__main__":
    with redirect_stdout(sys.stderr):
        import vllm

        parser = _parser()
        answers = [_ask(parser, *pair.split("=", 1)) for pair in sys.argv[1:]]
    print(json.dumps({"vllm": vllm.__version__, "answers": answers}))
