"""What vLLM calls things: the vocabulary that the exporter and the reader share (0.24 to 0.33 where the same)."""

from __future__ import annotations

import re

from fwopt.errors import InputError
from fwopt.spec.candidate import W4A16, Bf16, Fp8, Int8, Mxfp4, Quantization, outside_experts
from fwopt.spec.model import ModelSpec
from fwopt.targets.quantization import native_quantization

NEEDS_MODEL = "CONVERTED-CHECKPOINT-REQUIRED"
"""Stands where the path of a converted checkpoint must be put; no such model exists, so vLLM refuses it."""

ON_LOAD: dict[str, Quantization] = {
    "fp8_per_tensor": Fp8(scale="tensor"),
    "fp8_per_block": Fp8(scale="block"),
}
"""`--quantization` names that vLLM applies itself while loading a bf16 checkpoint (0.24 and later)."""

CONVERTED = "compressed-tensors"
"""The format of converted checkpoints. Stated in the file, so that vLLM refuses a checkpoint that is not one."""

ALIASES: dict[str, Quantization] = {
    **ON_LOAD,
    "fp8": Fp8(scale="tensor"),
    "mxfp4": Mxfp4(),
    "gpt_oss_mxfp4": Mxfp4(),
}
"""What a `--quantization` name means where the name alone decides; `fp8` follows a checkpoint that is fp8 already."""

STORED_ONLY = frozenset(
    (CONVERTED, "awq", "auto_awq", "awq_marlin", "gptq", "auto_gptq", "gptq_marlin", "modelopt", "fbgemm_fp8", "quark")
)
"""Names that say how a checkpoint is packed; which scheme it is stands in the checkpoint's own config.json."""

KV_DTYPES = {"bfloat16": "bf16", "auto": "bf16", "fp8": "fp8", "fp8_e4m3": "fp8"}
"""`--kv-cache-dtype` -> fwopt. Exports say `bfloat16`: `auto` means fp8 where a checkpoint's own config asks for it."""


def weights_name(quantization: Quantization) -> str:
    """How a scheme is written in a `# fwopt: weights=` line."""
    if quantization.kind == "fp8":
        return "fp8" if quantization.scale == "tensor" else "fp8-block"
    if quantization.kind == "w4a16":
        scope = "" if quantization.scope == "all" else f"-{quantization.scope}"
        return f"w4a16{scope}-g{quantization.group_size}"
    return quantization.kind


def parse_weights(text: str) -> Quantization | None:
    """Inverse of `weights_name`; None for a name that it never writes."""
    if found := re.fullmatch(r"w4a16(-experts)?-g([1-9][0-9]*)", text):
        return W4A16(group_size=int(found[2]), scope="experts" if found[1] else "all")
    known: tuple[Quantization, ...] = (Bf16(), Fp8(), Fp8(scale="block"), Int8(), Mxfp4())
    return next((q for q in known if weights_name(q) == text), None)


def _as_stored(quantization: Quantization, model: ModelSpec) -> bool:
    """Whether the published weights are what was searched (4-bit: in any group size)."""
    native = native_quantization(model)
    if native.kind == quantization.kind == "w4a16":
        return native.scope == quantization.scope
    return native == quantization


def engine_quantization(quantization: Quantization, model: ModelSpec, converted: bool) -> str | None:
    """Value of vLLM's `quantization` key; None: nothing to say, the checkpoint already is what was searched."""
    stored = model.checkpoint_quantization
    published_only = outside_experts(quantization) != quantization
    if converted or (stored is None and quantization.kind in ("int8", "w4a16") and not published_only):
        return CONVERTED
    if _as_stored(quantization, model):
        return None
    if stored is None:
        for name, scheme in ON_LOAD.items():
            if scheme == quantization:
                return name
    raise InputError(
        f"vLLM cannot serve {model.name} as {weights_name(quantization)}: its checkpoint is stored as "
        f"{stored or 'bf16'}; convert it first and tune on the converted model"
    )


MODELLED = {
    "max-num-seqs": ("batching", "max_num_seqs"),
    "max-num-batched-tokens": ("batching", "max_num_batched_tokens"),
    "block-size": ("batching", "block_size"),
    "gpu-memory-utilization": ("batching", "gpu_memory_utilization"),
    "max-model-len": ("batching", "max_model_len"),
    "enable-prefix-caching": ("batching", "prefix_caching"),
    "enable-chunked-prefill": ("batching", "chunked_prefill"),
    "tensor-parallel-size": ("parallelism", "tp"),
    "pipeline-parallel-size": ("parallelism", "pp"),
    "data-parallel-size": ("parallelism", "dp"),
    "enable-expert-parallel": ("parallelism", "ep"),
}
"""vLLM key -> part and field of `Candidate`."""

OTHER = frozenset(("model", "model-tag", "dtype", "quantization", "kv-cache-dtype", "performance-mode"))
"""Keys that are read too, each by a rule of its own."""

CHANGES_SPEED = frozenset(
    """
    async-scheduling attention-backend compilation-config cpu-offload-gb cudagraph-capture-sizes enable-dbo
    enable-eplb enable-lora enforce-eager hf-overrides kv-cache-memory-bytes kv-offloading-size
    kv-transfer-config load-format long-prefill-token-threshold long-prefill-token-threshold-adaptive
    mamba-block-size mamba-cache-dtype mamba-cache-mode mamba-ssm-cache-dtype max-num-active-seqs
    max-num-partial-prefills num-gpu-blocks-override optimization-level prefill-context-parallel-size
    decode-context-parallel-size prefill-schedule-interval prefix-cache-retention-interval prefix-match-unit
    rope-scaling scheduler-reserve-full-isl scheduling-policy sliding-window speculative-config
    stream-interval swap-space watermark
    """.split()
)
"""Keys that change what a request waits for, and that the simulator leaves out: said louder than the rest."""
