"""What the numbers say of what must be shown."""

from __future__ import annotations

from gpu_stages import Result
from gpu_stages.shapes import DECODE, LARGE, MODELS

W4A16_RATIO, W4A16_COPY, W4A16_BYTES, ATTENTION_COPY, NORM_COPY = 0.4, 0.8, 32 * 2**20, 0.8, 0.85
SEARCH_RATIO, SEARCH_SHARE = 1.02, 0.05
NOISE = 1.03
"""Two timings of the same kernel differ by so much."""


def verdicts(found: Result) -> list[Result]:
    """What must be shown, the value, the limit and whether it held: only of what was measured."""
    lines: list[Result] = []
    if "rows" in found.get("time", {}) and "copy_bytes_per_s" in found.get("machine", {}):
        lines += _of_bandwidth(found["time"]["rows"], found["machine"]["copy_bytes_per_s"])
        lines += _against_vendor(found["time"]["rows"], found["time"]["baselines"])
    if "rows" in found.get("moe", {}):
        lines += _against_vllm(found["moe"])
    if "tuned" in found.get("vllm", {}):
        lines += _in_place(found["vllm"]["tuned"])
    if "over_best" in found.get("search", {}):
        search = found["search"]
        what = f"search over {search['timed']} variants of {search['family']}"
        lines.append(_verdict(f"{what}: time of the result over the best", search["over_best"], SEARCH_RATIO))
        lines.append(_verdict(f"{what}: share of the exhaustive search's time", search["share"], SEARCH_SHARE))
    if "best_e2e_s" in found.get("plan", {}) and len(found["plan"]["best_e2e_s"]) == 2:
        best = found["plan"]["best_e2e_s"]
        lines.append(
            _verdict("simulated e2e with tuned kernels over default ones", best["tuned"] / best["default"], 1.0)
        )
    return lines


def _verdict(what: str, value: float, limit: float, *, at_least: bool = False) -> Result:
    held = value >= limit if at_least else value <= limit
    return {"what": what, "value": value, "limit": limit, "held": held}


def _against_vllm(moe: Result) -> list[Result]:
    """A token count each, then summed as often as the trace has them."""
    lines = []
    for name, whose in (("shipped_s", "vLLM's shipped config in fwopt's kernel"), ("vllm_s", "vLLM's own kernel")):
        pairs = [
            (r["tokens"], r["calls"], r["best_s"], r.get(name)) for r in moe["rows"] if r["best_s"] and r.get(name)
        ]
        lines += [_verdict(f"fused MoE over {whose}, {m} tokens", best / other, NOISE) for m, _, best, other in pairs]
        if pairs and moe["of_the_trace"]:
            ratio = sum(c * best for _, c, best, _ in pairs) / sum(c * other for _, c, _, other in pairs)
            lines.append(_verdict(f"fused MoE over {whose}, the trace's own histogram", ratio, 1.0))
    return lines


def _in_place(tuned: Result) -> list[Result]:
    """vLLM's kernel with what won over vLLM's own choices, as often as the trace calls each size."""
    buckets = [b for f in tuned["families"] for b in f["buckets"] if b["default_s"] and b["best_s"]]
    if not buckets:
        return []
    best, own = (sum(b["calls_a_step"] * b[name] for b in buckets) for name in ("best_s", "default_s"))
    return [_verdict("vLLM's fused MoE tuned over its own choice, the trace's own histogram", best / own, 1.0)]


def _of_bandwidth(rows: list[Result], copy_rate: float) -> list[Result]:
    shares: dict[str, list[float]] = {}
    for row in rows:
        kind = _memory_bound(row)
        if row["best_s"] is not None and kind is not None:
            shares.setdefault(kind, []).append(row["floor_s"] / row["best_s"])
    limits = {"w4a16, packed weights over 32 MiB": W4A16_COPY, "decode attention, 32 x 8192": ATTENTION_COPY,
              "norm and activation, 4096 rows": NORM_COPY}  # fmt: skip
    what = f"share of copy bandwidth ({copy_rate / 1e12:.2f} TB/s)"
    return [_verdict(f"{what}: {kind}", min(found), limits[kind], at_least=True) for kind, found in shares.items()]


def _memory_bound(row: Result) -> str | None:
    fixed, point = row["fixed"], row["point"]
    if row["operator"] == "w4a16" and point[0] <= 16 and fixed["n"] * fixed["k"] / 2 > W4A16_BYTES:
        return "w4a16, packed weights over 32 MiB"
    if row["operator"] == "decode_attention" and tuple(point) == (32, 8192):
        return "decode attention, 32 x 8192"
    if row["operator"] in ("rms_norm", "silu_mul") and point[0] == LARGE[-1]:
        return "norm and activation, 4096 rows"
    return None


def _against_vendor(rows: list[Result], base: list[Result]) -> list[Result]:
    vendor = {(b["what"], b["m"], b["n"], b["k"]): b["s"] for b in base if "m" in b and "s" in b}
    ours = {
        (r["operator"], r["format"], r["point"][0], r["fixed"]["n"], r["fixed"]["k"]): r["best_s"]
        for r in rows
        if r["operator"] in ("w4a16", "fp8_gemm", "int8_gemm") and r["best_s"] is not None
    }
    lines = []
    linears = list(MODELS["Qwen3-8B"]["linears"].values())
    for format in sorted({key[1] for key in ours if key[0] == "w4a16"}):
        pairs = [
            (ours.get(("w4a16", format, m, *nk)), vendor.get(("cublas bf16", m, *nk))) for m in DECODE for nk in linears
        ]
        if all(a and b for a, b in pairs):
            ratio = sum(a for a, _ in pairs if a) / sum(b for _, b in pairs if b)
            what = f"w4a16 {format} over cuBLAS bf16, Qwen3-8B layer, M 1..16, sum"
            lines.append(_verdict(what, ratio, W4A16_RATIO))
    for (operator, format, m, n, k), seconds in sorted(ours.items()):
        scales = next((s for s in ("tensor", "row") if s in format.split("-")), None)
        other = vendor.get((f"scaled_mm {scales}", m, n, k))
        if operator == "fp8_gemm" and other and (m >= 1024 or m < 256):
            limit = 1.05 if m >= 1024 else 1.0
            lines.append(_verdict(f"{format} over torch._scaled_mm, m {m} n {n} k {k}", seconds / other, limit))
        sums = vendor.get(("int_mm", m, n, k))
        if operator == "int8_gemm" and sums:
            what = f"{format} over torch._int_mm, without scales, m {m} n {n} k {k}"
            lines.append(_verdict(what, seconds / sums, 1.0))
    return [*lines, *_prompts(rows, base)]


def _prompts(rows: list[Result], base: list[Result]) -> list[Result]:
    """Prompt attention over a paged cache beside torch's over one that is not."""
    names = ("sequences", "tokens", "context")
    vendor = {(*(b[n] for n in names), b["kv_heads"]): b["s"] for b in base if "tokens" in b and "s" in b}
    return [
        _verdict(f"prefill attention over torch's, {dict(zip(names, r['point'], strict=True))}", r["best_s"] / s, NOISE)
        for r in rows
        if r["operator"] == "prefill_attention" and r["format"] == "bf16" and r["best_s"] is not None
        if (s := vendor.get((*r["point"], r["fixed"]["kv_heads"])))
    ]
