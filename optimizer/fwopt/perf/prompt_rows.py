"""Tuned times of prompt chunks as times of whole prompts, which is what plans are made of: a chunk of c tokens after p
costs A(p + c) - A(p)."""

from __future__ import annotations

import numpy as np

from fwopt.perf.roofline import attended
from fwopt.perf.store import Columns

LEAST_SHARE = 0.5
"""Of a prompt's products that a chunk must have to stand for it. What a short chunk takes after a long context says
nothing of the prompt: it waits for memory, not for products."""


def prompt_rows(rows: Columns) -> Columns:
    """Rows of the table `prefill_attention`. A chunk after a context stands for the prompt of both at the chunk's own
    rate; of several that stand for one prompt the longest counts."""
    tokens, context = rows["tokens"], rows["context"]
    share = 1 - attended(context - tokens, 0) / attended(context, 0)
    order = np.argsort(-tokens, kind="stable")
    order = order[share[order] >= LEAST_SHARE]
    names = ("heads", "kv_heads", "head_dim")
    keys = zip(*(rows[name][order].tolist() for name in ("format", *names, "sequences", "context")), strict=True)
    first: dict[tuple[str | int, ...], int] = {}
    for key, at in zip(keys, order.tolist(), strict=True):
        first.setdefault(key, at)
    kept = np.asarray(sorted(first.values()), dtype=np.int64)
    return {
        "dtype": np.full(len(kept), "bf16"), "kv_dtype": rows["format"][kept],
        **{name: rows[name][kept] for name in names}, "window": np.full(len(kept), 0),
        "batch": rows["sequences"][kept], "length": context[kept], "p50_s": rows["p50_s"][kept] / share[kept],
    }  # fmt: skip
