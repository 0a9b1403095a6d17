"""One deployment that could be: the only thing that is searched, simulated, exported and measured."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt

from fwopt.spec.base import Frozen, content_hash
from fwopt.spec.kernels import SetDigest
from fwopt.spec.router import RouterPolicy
from fwopt.spec.speculation import Drafter


class Bf16(Frozen):
    """Weights and activations in bfloat16."""

    kind: Literal["bf16"] = "bf16"


class Fp8(Frozen):
    """FP8 E4M3 weights and activations."""

    kind: Literal["fp8"] = "fp8"
    scale: Literal["tensor", "block"] = "tensor"
    """`tensor`: one scale a tensor; `block`: 128x128 weight blocks, 1x128 activation groups."""


class Int8(Frozen):
    """INT8 weights (per channel) and activations (per token): w8a8."""

    kind: Literal["int8"] = "int8"


class W4A16(Frozen):
    """4-bit integer weights in groups, bf16 activations."""

    kind: Literal["w4a16"] = "w4a16"
    group_size: PositiveInt = 128
    scope: Literal["all", "experts"] = "all"
    """`experts`: routed experts alone, the rest stays bf16 (Kimi K2 checkpoints)."""


class Mxfp4(Frozen):
    """MXFP4 expert weights (gpt-oss checkpoints), bf16 activations and attention."""

    kind: Literal["mxfp4"] = "mxfp4"


class Gguf(Frozen):
    """A GGUF file's own mixture of block formats, served by llama.cpp."""

    kind: Literal["gguf"] = "gguf"
    type: Literal["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0"] = "F16"
    """As `llama-quantize` names it."""


Quantization = Annotated[Bf16 | Fp8 | Int8 | W4A16 | Mxfp4 | Gguf, Field(discriminator="kind")]
KvDtype = Literal["bf16", "fp8"]


def scheme_name(quantization: Quantization) -> str:
    """One word for a scheme, whatever the group size: `fp8-block`, `w4a16`, `gguf-q8_0`."""
    if quantization.kind == "fp8" and quantization.scale == "block":
        return "fp8-block"
    if quantization.kind == "w4a16" and quantization.scope == "experts":
        return "w4a16-experts"
    if quantization.kind == "gguf":
        return f"gguf-{quantization.type.lower()}"
    return quantization.kind


def outside_experts(quantization: Quantization) -> Quantization:
    """The scheme of attention, dense MLPs and shared experts: some checkpoints quantize routed experts alone."""
    if quantization.kind == "mxfp4" or (quantization.kind == "w4a16" and quantization.scope == "experts"):
        return Bf16()
    return quantization


class Parallelism(Frozen):
    """How one copy of the model is spread, and how many independent copies run.

    GPUs used = tp * pp * dp * replicas.
    """

    tp: PositiveInt = 1
    pp: PositiveInt = 1
    dp: PositiveInt = 1
    """Attention data-parallel ranks inside one engine (experts sharded over tp*dp when `ep`)."""
    ep: bool = False
    """Shard experts over all tp*dp ranks instead of slicing each expert."""
    replicas: PositiveInt = 1
    """Independent engine processes behind the router."""

    @property
    def gpus_per_replica(self) -> int:
        return self.tp * self.pp * self.dp

    @property
    def gpus(self) -> int:
        return self.gpus_per_replica * self.replicas


class Batching(Frozen):
    """The scheduler's limits, in the engine's own terms."""

    max_num_seqs: PositiveInt = 1024
    max_num_batched_tokens: PositiveInt = 8192
    block_size: PositiveInt = 16
    """Tokens in one KV-cache block."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.92
    prefix_caching: bool = True
    chunked_prefill: bool = True
    max_model_len: PositiveInt | None = None
    """None: the model's own maximum."""


class Candidate(Frozen):
    """A complete deployment; `id` is the hash of its content."""

    quantization: Quantization = Bf16()
    kv_dtype: KvDtype = "bf16"
    parallelism: Parallelism = Parallelism()
    batching: Batching = Batching()
    router: RouterPolicy = "least_requests"
    """How requests are spread over replicas; part of the deployment, so it is exported too."""
    kernels: SetDigest | None = None
    """Digest of the tuned kernels that the reference engine runs with; None: each kernel's default."""

    speculation: Drafter | None = None
    """What guesses tokens ahead; None: nothing does."""

    @cached_property
    def id(self) -> str:
        """Without tuned kernels and speculation as before there were any: ids of earlier runs stay."""
        content = self.model_dump(mode="json")
        for later in ("kernels", "speculation"):
            if content[later] is None:
                del content[later]
        return content_hash(content)

    @property
    def tokens_per_decode(self) -> int:
        """Most that a decoding sequence brings to a step: one, and those guessed."""
        return 1 + (self.speculation.tokens if self.speculation is not None else 0)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's, without carrying the cached `id` over to other content."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("id", None)
        return copy

    @property
    def label(self) -> str:
        """Short human name, for example `fp8 kv-fp8 tp2 x4 seqs256 tok8192`; what it leaves out is the default."""
        q, p, b = self.quantization, self.parallelism, self.batching
        parts: list[str] = [q.kind]
        if q.kind == "fp8" and q.scale != "tensor":
            parts = [f"fp8-{q.scale}"]
        if q.kind == "w4a16" and q.scope != "all":
            parts = [f"w4a16-{q.scope}"]
        if q.kind == "gguf":
            parts = [q.type.lower()]
        if self.kv_dtype != "bf16":
            parts.append(f"kv-{self.kv_dtype}")
        parts.append(f"tp{p.tp}")
        parts += [f"pp{p.pp}"] * (p.pp > 1) + [f"dp{p.dp}"] * (p.dp > 1) + ["ep"] * p.ep
        parts.append(f"x{p.replicas}")
        parts += [f"seqs{b.max_num_seqs}", f"tok{b.max_num_batched_tokens}"]
        if b.gpu_memory_utilization != Batching.model_fields["gpu_memory_utilization"].default:
            parts.append(f"mem{b.gpu_memory_utilization:g}")
        if b.max_model_len is not None:
            parts.append(f"len{b.max_model_len}")
        if b.block_size != Batching.model_fields["block_size"].default:
            parts.append(f"block{b.block_size}")
        parts += ["no-prefix-cache"] * (not b.prefix_caching) + ["no-chunked-prefill"] * (not b.chunked_prefill)
        if p.replicas > 1 and self.router != Candidate.model_fields["router"].default:
            parts.append(self.router.replace("_", "-"))
        parts += [f"kernels-{self.kernels[:8]}"] if self.kernels is not None else []
        parts += [self.speculation.name] if self.speculation is not None else []
        return " ".join(parts)
