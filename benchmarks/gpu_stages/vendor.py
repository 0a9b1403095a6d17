"""What fwopt's kernels are held against: cuBLAS, also adapter by adapter, `torch._scaled_mm`, `torch._int_mm`, torch's
attention and sort."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_stages import Result, Session
from gpu_stages.shapes import ADAPTERS, ATTENTION, DECODE, FEW, LARGE, MODELS, PROMPTS, SAMPLED, VOCABULARY


def baselines(session: Session, seconds: float) -> list[Result]:
    """cuBLAS through F.linear, `torch._scaled_mm`, `torch._int_mm`, torch's attention, tokens drawn after a sort,
    LoRA by two products an adapter: each on rotating memory, in a CUDA graph."""
    import torch

    device, small = session.device, session.small
    rows, ends = [], time.monotonic() + seconds
    linears = sorted({nk for model in MODELS.values() for nk in model["linears"].values()})
    jobs: list[tuple[Result, Callable[[], list[Callable[[], Any]]]]] = []
    for m in (1, 4) if small else (*DECODE, *LARGE):
        for n, k in [(256, 256)] if small else linears:
            shape = {"m": m, "n": n, "k": k}
            jobs.append(({"what": "cublas bf16", **shape}, partial(_linear, device, m, n, k)))
            if not small:
                jobs.append(({"what": "int_mm", **shape}, partial(_int_mm, device, m, n, k)))
                for scales in ("tensor", "row"):
                    build = partial(_scaled, device, m, n, k, scales)
                    jobs.append(({"what": f"scaled_mm {scales}", **shape}, build))
    for model in MODELS.values():
        for sequences, context in [(1, 64)] if small else ATTENTION:
            shape = {"sequences": sequences, "context": context, "heads": model["heads"], "kv_heads": model["kv_heads"]}
            jobs.append(({"what": "torch sdpa", **shape}, partial(_sdpa, device, sequences, 1, context, model)))
        for sequences, tokens, context in [(1, 20, 64)] if small else PROMPTS:
            shape = {"sequences": sequences, "tokens": tokens, "context": context, "heads": model["heads"],
                     "kv_heads": model["kv_heads"]}  # fmt: skip
            jobs.append(
                ({"what": "torch sdpa, chunks", **shape}, partial(_sdpa, device, sequences, tokens, context, model))
            )
    vocabulary = 1000 if small else VOCABULARY
    for count in (1, 4) if small else SAMPLED:
        shape = {"rows": count, "vocabulary": vocabulary}
        jobs.append(({"what": "torch sort and draw", **shape}, partial(_sampling, device, count, vocabulary)))
    n, k = (256, 256) if small else MODELS["Qwen3-8B"]["linears"]["qkv"]
    for adapters, rank in ADAPTERS[: 1 if small else None]:
        for count in (1, 4) if small else FEW:
            shape = {"rows": count, "adapters": adapters, "rank": rank, "inputs": k, "outputs": n}
            jobs.append(({"what": "cublas lora", **shape}, partial(_lora, device, shape)))
    for row, build in jobs:
        if time.monotonic() > ends:
            break
        try:
            from fwopt_kernels.timing import time_calls

            with torch.inference_mode():
                result = time_calls(build(), device, 0.03)
            rows.append({**row, "s": result.p50_s, "noise": result.noise})
        except (RuntimeError, NotImplementedError) as error:
            rows.append({**row, "error": str(error).splitlines()[0][:200]})
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def _copies(nbytes: int, device: str) -> int:
    from fwopt_kernels.timing import CACHES, MOST_COPIES, cache_bytes

    return max(1, min(MOST_COPIES[device], -(-CACHES * cache_bytes(device) // nbytes)))


def _linear(device: str, m: int, n: int, k: int) -> list[Callable[[], Any]]:
    import torch

    x = torch.randn(m, k, device=device).bfloat16()
    weights = [torch.randn(n, k, device=device).bfloat16() for _ in range(_copies(2 * n * k, device))]
    return [partial(torch.nn.functional.linear, x, w) for w in weights]


def _scaled(device: str, m: int, n: int, k: int, scales: str) -> list[Callable[[], Any]]:
    import torch

    x = torch.randn(m, k, device=device).to(torch.float8_e4m3fn)
    weights = [torch.randn(n, k, device=device).to(torch.float8_e4m3fn).t() for _ in range(_copies(n * k, device))]
    a, b = (torch.ones(m, 1), torch.ones(1, n)) if scales == "row" else (torch.ones(()), torch.ones(()))
    a, b = a.to(device), b.to(device)
    return [partial(torch._scaled_mm, x, w, scale_a=a, scale_b=b, out_dtype=torch.bfloat16) for w in weights]


def _int_mm(device: str, m: int, n: int, k: int) -> list[Callable[[], Any]]:
    """int32 sums without scales, so less than an `int8_gemm` does but for wider results; 17 rows at least."""
    import torch

    from fwopt_kernels.row_formats import int8_product

    x = torch.randint(-128, 128, (m, k), device=device, dtype=torch.int8)
    weights = [
        torch.randint(-128, 128, (n, k), device=device, dtype=torch.int8).t() for _ in range(_copies(n * k, device))
    ]
    return [partial(int8_product, x, w) for w in weights]


def _sdpa(device: str, sequences: int, tokens: int, context: int, model: Result) -> list[Callable[[], Any]]:
    """The last `tokens` of each context as queries; caches are not paged here."""
    import torch
    from torch.nn.attention.bias import causal_lower_right

    size, kv = model["head_dim"], model["kv_heads"]
    make = partial(torch.randn, device=device, dtype=torch.bfloat16)
    q = make(sequences, model["heads"], tokens, size)
    count = _copies(4 * sequences * kv * context * size, device)
    caches = [(make(sequences, kv, context, size), make(sequences, kv, context, size)) for _ in range(min(count, 16))]
    seen = causal_lower_right(tokens, context) if tokens > 1 else None
    attend = partial(torch.nn.functional.scaled_dot_product_attention, attn_mask=seen, enable_gqa=True)
    return [partial(attend, q, *c) for c in caches]


def _sampling(device: str, rows: int, vocabulary: int) -> list[Callable[[], Any]]:
    """Logits in float32 sorted, cut to top-k and top-p, and raced, as vLLM does without a kernel of its own."""
    from fwopt_kernels.sampling_case import GREEDY_BELOW, SamplingCase, kept, random_case

    def draw(case: SamplingCase) -> Any:
        heat = case.parameters.temperature.clamp(min=GREEDY_BELOW)[:, None]
        scores = kept(case.logits / heat, case.parameters.top_k, case.parameters.top_p)
        chances = scores.softmax(dim=-1)
        return (chances / chances.new_empty(chances.shape).exponential_()).argmax(dim=-1)

    shape, copies = {"rows": rows, "vocabulary": vocabulary}, min(_copies(4 * rows * vocabulary, device), 16)
    return [partial(draw, random_case("fp32", shape, seed, 0, device)) for seed in range(copies)]


def _lora(device: str, shape: dict[str, int]) -> list[Callable[[], Any]]:
    """Two products an adapter that has rows, between an index and an addition; which rows are whose is known before."""
    from fwopt_kernels.lora_case import LoraCase, random_case

    def add(case: LoraCase, whose: list[tuple[int, Any]]) -> None:
        for adapter, rows in whose:
            hidden = case.x[rows] @ case.adapters.a[adapter, 0].T
            case.y.index_add_(0, rows, hidden @ case.adapters.b[adapter, 0].T)

    sizes, calls = {**shape, "tokens": shape["rows"]}, []
    nbytes = 2 * shape["adapters"] * shape["rank"] * (shape["inputs"] + shape["outputs"])
    for seed in range(_copies(nbytes, device)):
        case = random_case(sizes, seed, 0, device, "each")
        owned = [(adapter, (case.ids == adapter).nonzero()[:, 0]) for adapter in range(shape["adapters"])]
        calls.append(partial(add, case, [(adapter, rows) for adapter, rows in owned if len(rows)]))
    return calls
