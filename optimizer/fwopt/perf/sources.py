"""How each operator of the source tables (AIConfigurator layout) becomes a table of the profile store.

Source: `data/<system>/<family>/<backend>/<version>/<file>_perf.parquet`. One `SourceTable` an operator; adding an
operator is adding one entry here and one lookup in `perf/operators/`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DTYPES = {
    "bfloat16": "bf16",
    "half": "bf16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "int4_wo": "w4a16",
    "w4a16_mxfp4": "mxfp4",
}
"""Source spelling -> store spelling. `half` moves and multiplies as many bits as bfloat16."""


@dataclass(frozen=True, slots=True)
class SourceTable:
    """One source file and how its columns map."""

    path: str
    """Below `data/<system>/`, with {engine} and {version}."""
    columns: dict[str, str]
    """Source column -> store column; all but p50_s together are the key."""
    seconds_per_unit: float = 1e-3
    """Of the latency column: milliseconds everywhere but in `moe_a2a`, whose latency equals its `transmit_us`."""
    keep: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Source column -> values that can be used; the rest is dropped with `drop_reason`."""
    drop_reason: str = ""
    notes: tuple[str, ...] = ()
    grows_with: str | None = None
    """Store column that time must grow with, all else equal: a row over `ARTEFACT` times slower than one with more of
    it is a measurement artefact."""
    kernels_add_up: bool = False
    """Rows of different kernels under one key are parts of one operator: their times are added."""
    grows_from: int = 1
    """Below this, kernels change for good and a smaller size may take longer."""


_ATTENTION = {
    "kv_cache_dtype": "kv_dtype",
    "num_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "window_size": "window",
    "batch_size": "batch",
}
_GEMM = {"gemm_dtype": "dtype", "n": "n", "k": "k", "m": "m"}
ARTEFACT = 1.3
"""Factor by which a smaller problem may be slower than a larger one: kernels change and timings scatter that much."""
_ELEMENTS = (
    "message_size is elements: read as bytes, 2 GPUs would reach a third of the link's bandwidth, and NCCL's int8 rows "
    "take half the time of half rows at the same message_size"
)
_OPS_UNUSED = "candidates do not carry the flag that selects this kernel"

TABLES: dict[str, SourceTable] = {
    "gemm": SourceTable(
        "gemm/{engine}/{version}/gemm_perf.parquet",
        _GEMM,
        grows_with="m",
        grows_from=64,
        notes=("fp8 rows time the whole linear layer, quantizing the activations included",),
    ),
    "prefill_attention": SourceTable(
        "attention/{engine}/{version}/context_attention_perf.parquet",
        {"attn_dtype": "dtype", **_ATTENTION, "isl": "length"},
        notes=("no prefix: a chunk of c tokens after p costs A(p + c) - A(p)",),
    ),
    "decode_attention": SourceTable(
        "attention/{engine}/{version}/generation_attention_perf.parquet",
        {**_ATTENTION, "step": "context"},
        notes=("context = step + 1: the KV length that the new token attends to",),
    ),
    "moe": SourceTable(
        "moe/{engine}/{version}/moe_perf.parquet",
        {
            "moe_dtype": "dtype",
            "distribution": "routing",
            "hidden_size": "hidden",
            "inter_size": "inter",
            "topk": "topk",
            "num_experts": "experts",
            "moe_tp_size": "tp",
            "moe_ep_size": "ep",
            "num_tokens": "tokens",
        },
        notes=("tokens are those of the whole expert-parallel group; times are of one rank",),
    ),
    "all_reduce": SourceTable(
        "comm/{engine}/{version}/custom_allreduce_perf.parquet",
        {"backend": "mode", "num_gpus": "gpus", "message_size": "elements"},
        grows_with="elements",
        notes=(_ELEMENTS,),
    ),
    "collective": SourceTable(
        "comm/nccl/{nccl}/nccl_perf.parquet",
        {"op_name": "op", "nccl_dtype": "dtype", "num_gpus": "gpus", "message_size": "elements"},
        keep={"nccl_dtype": ("half",), "op_name": ("all_gather", "reduce_scatter", "all_reduce")},
        drop_reason="only 16-bit all_gather, reduce_scatter and all_reduce are used",
        notes=("message_size is elements of the whole (gathered) message",),
    ),
    "all_to_all": SourceTable(
        "comm/{engine}/{version}/moe_a2a_perf.parquet",
        {
            "comm_backend": "backend",
            "phase": "phase",
            "ep_size": "ep",
            "hidden_size": "hidden",
            "topk": "topk",
            "num_experts": "experts",
            "num_tokens": "tokens",
        },
        seconds_per_unit=1e-6,
        notes=("latency equals transmit_us: microseconds", "DeepEP kernels; not the engine's default all-to-all"),
    ),
    "mla_decode_module": SourceTable(
        "mla/{engine}/{version}/mla_generation_module_perf.parquet",
        {
            "kv_cache_dtype": "kv_dtype",
            "gemm_type": "dtype",
            "num_heads": "heads",
            "batch_size": "batch",
            "step": "context",
        },
        notes=("whole attention module of DeepSeek-V3", "context = step + 1"),
    ),
    "mla_decode": SourceTable(
        "mla/{engine}/{version}/generation_mla_perf.parquet",
        {"kv_cache_dtype": "kv_dtype", "num_heads": "heads", "batch_size": "batch", "step": "context"},
        notes=("attention only, without projections", "context = step + 1"),
    ),
    "linear_attention": SourceTable(
        "linear_attention/{engine}/{version}/gdn_perf.parquet",
        {
            "phase": "phase",
            "num_k_heads": "key_heads",
            "num_v_heads": "value_heads",
            "head_k_dim": "key_dim",
            "head_v_dim": "value_dim",
            "d_conv": "conv",
            "batch_size": "batch",
            "seq_len": "length",
        },
        kernels_add_up=True,
        notes=("short convolution and recurrence, added; projections are products", "states in bf16"),
    ),
    "mla_bmm": SourceTable(
        "mla_bmm/{engine}/{version}/mla_bmm_perf.parquet",
        {"op_name": "op", "bmm_dtype": "dtype", "num_heads": "heads", "num_tokens": "tokens"},
    ),
}

PLUS_ONE = ("context",)
"""Store columns that are the source's column plus one: a generation row's KV length is step + 1."""

BLOCK_FP8_FROM = ("sglang", "vllm")
"""(giver, receiver): SGLang's DeepGEMM rows stand in for vLLM's fp8_block GEMMs."""
BLOCK_FP8_REASON = (
    "vLLM's fp8_block GEMM rows are bound by the host that timed them (floors of 55, 78 and 150 us for FlashInfer, "
    "DeepGEMM and CUTLASS): SGLang's rows of the same DeepGEMM kernel stand in"
)

KERNELS_UNUSED: dict[tuple[str, str], str] = {
    ("moe", "sglang_flashinfer_cutlass_moe"): f"{_OPS_UNUSED} (--moe-runner-backend)",
    ("moe", "vllm_modeloptfp8moe_flashinfer_cutlass_flashinferexperts"): (
        "vLLM selects this kernel only for checkpoints with static activation scales; "
        "fwopt's fp8 has dynamic ones, which run the Triton kernel of the fp8_block rows"
    ),
}
"""(operator, kernel) -> why its rows cannot be used."""

SYSTEMS = {"a100_sxm": "a100", "h100_sxm": "h100", "h200_sxm": "h200", "b200_sxm": "b200", "l40s": "l40s"}
"""Source folder -> the device's usual catalogue name."""
