"""Plan -> files for llama.cpp's `llama-server`, which reads its settings from variables `LLAMA_ARG_*`.

Its other file, the INI of `--models-preset`, puts a router process before the model: one hop more than was simulated.
A variable that llama-server does not know is ignored without a word, so a started server is asked for what it made of
them (`fwopt.live.servers.llamacpp`). Names and defaults: `llama-server --help` of b11434.
"""

from __future__ import annotations

import shlex
from pathlib import PurePosixPath

from fwopt.deploy.promises import one_line
from fwopt.deploy.shape import directives, model_name, opening, surroundings
from fwopt.errors import InputError
from fwopt.perf.kv_layout import kv_layout
from fwopt.spec.candidate import Candidate, Gguf
from fwopt.spec.plan import Entry, Plan
from fwopt.targets.gguf import base_name, file_name
from fwopt.targets.weights import ceil_div

FILE = "llama-server.env"
MICROBATCH_TOKENS = 512
"""llama.cpp's own default of `--ubatch-size`: a step's tokens are computed in parts of at most so many."""
CACHE_TYPES = {"bf16": "f16", "fp8": "q8_0"}
"""fwopt's KV dtype -> llama.cpp's: 16 bits as f16, its default; 8 bits as q8_0 (8.5 with its scales)."""

Setting = str | int | bool


def render(plan: Plan) -> dict[str, str]:
    """File name -> text. Without a chosen entry there is nothing to deploy and no file."""
    entry = plan.chosen
    if entry is None:
        return {}
    return {FILE: variables(plan, entry), **surroundings(plan, entry, "llamacpp")}


def variables(plan: Plan, entry: Entry) -> str:
    """`LLAMA_ARG_*=value` lines, also fit for systemd's `EnvironmentFile=`."""
    candidate = entry.candidate
    weights = _servable(candidate)
    b = candidate.batching
    model = model_name(plan)
    lines = [
        *opening(plan, entry, "llamacpp"),
        "# The next lines say what llama-server has no variable for; fwopt reads them back.",
        *directives(
            candidate,
            pp=candidate.parallelism.pp,
            weights=weights.type,
            block_size=b.block_size,
            gpu_memory_utilization=b.gpu_memory_utilization,
        ),
        "",
        f"# Weights unless FWOPT_MODEL of fwopt.env names the file or its folder; made by: {_made(weights)}",
        *(f"LLAMA_ARG_{key}={_text(value)}" for key, value in settings(plan, candidate, model).items()),
    ]
    return "\n".join(lines) + "\n"


def settings(plan: Plan, candidate: Candidate, model: str) -> dict[str, Setting]:
    """Variable without `LLAMA_ARG_` -> value: every searched value, and what would otherwise be settled at start-up."""
    b, weights = candidate.batching, _servable(candidate)
    longest = b.max_model_len or plan.model.max_context_tokens
    pool_tokens = b.max_num_seqs * longest
    found: dict[str, Setting] = {
        "MODEL": str(_folder(model) / file_name(model, weights)),
        "ALIAS": base_name(model),
        "N_PARALLEL": b.max_num_seqs,
        # one pool for all slots: apart, slots that are not neighbours decode one after the other (docs/deploy.md)
        "CTX_SIZE": pool_tokens,
        "KV_UNIFIED": True,
        "KV_UNIFIED_PER_SLOT": longest,
        "BATCH": b.max_num_batched_tokens,
        "UBATCH": min(MICROBATCH_TOKENS, b.max_num_batched_tokens),
        "CACHE_TYPE_K": CACHE_TYPES[candidate.kv_dtype],
        "CACHE_TYPE_V": CACHE_TYPES[candidate.kv_dtype],
        "FLASH_ATTN": "on",
        "CACHE_PROMPT": b.prefix_caching,
        # where prompts of idle slots go, so that attention does not pass over their cells; 0 would leave them there
        "CACHE_RAM": _mib(plan, candidate, pool_tokens) if b.prefix_caching else 1,
        "FIT": "off",
        "ENDPOINT_METRICS": True,
    }
    if plan.hardware.device.kind == "cpu":
        return found | {"DEVICE": "none"}
    return found | {"N_GPU_LAYERS": "all", "SPLIT_MODE": "layer" if candidate.parallelism.pp > 1 else "none"}


def _mib(plan: Plan, candidate: Candidate, tokens: int) -> int:
    """Of cached tokens. Parked prompts get as much as the slots' pool: what the simulated prefix cache holds."""
    layout = kv_layout(plan.model, candidate.kv_dtype, candidate.parallelism)
    return ceil_div(tokens * (layout.full + layout.sliding), 2**20)


def _servable(candidate: Candidate) -> Gguf:
    """The scheme; InputError for a candidate that llama-server cannot be told to serve."""
    p, weights = candidate.parallelism, candidate.quantization
    if weights.kind != "gguf":
        raise InputError(f"llama.cpp serves GGUF files, this candidate is {weights.kind}; search formats of GGUF")
    if p.tp > 1 or p.dp > 1 or p.ep:
        raise InputError(
            f"llama.cpp is deployed on one device, or in pipeline stages, got tp={p.tp} dp={p.dp} ep={p.ep}; "
            "search replicas instead"
        )
    if not candidate.batching.chunked_prefill:
        raise InputError("llama.cpp always computes prompts in chunks, this candidate does not; search with chunks")
    return weights


def _folder(model: str) -> PurePosixPath:
    """Where the weights lie: beside or in the model's folder where the plan names one, else to be said at start."""
    path = PurePosixPath(model)
    if not model.startswith(("/", ".")):
        return PurePosixPath()
    return path.parent if path.suffix == ".gguf" else path


def _made(weights: Gguf) -> str:
    if weights.type in ("F16", "BF16"):
        return f"convert_hf_to_gguf.py MODEL_FOLDER --outtype {weights.type.lower()}"
    return f"llama-quantize MODEL-F16.gguf MODEL-{weights.type}.gguf {weights.type}"


def _text(value: Setting) -> str:
    """As a shell reads it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return shlex.quote(one_line(str(value)))
