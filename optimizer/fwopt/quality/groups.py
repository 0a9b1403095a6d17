"""Matrices of a layer that must have one scheme, because engines keep them as one."""

from __future__ import annotations

EXPERTS = "experts"
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
"""Matrices that an engine fuses into one: with one scale a matrix, they share it (vLLM takes the greatest)."""
_FUSED = {part: whole for whole, parts in (("qkv_proj", SIBLINGS[0]), ("gate_up_proj", SIBLINGS[1])) for part in parts}


def group_of(matrix: str) -> str:
    """`self_attn.k_proj` -> `self_attn.qkv_proj`; all experts of a layer are one group."""
    if ".experts." in f".{matrix}.":
        return EXPERTS
    head, _, last = matrix.rpartition(".")
    return f"{head}.{_FUSED.get(last, last)}"


def is_rounded(module: str) -> bool:
    """Whether schemes round a linear layer of this name: routers and gates of experts stay as they are."""
    return not module.endswith(("gate", "router"))
