"""Iteration-level serving simulator: clock, scheduler, KV cache, router. Knows nothing of GPUs."""

from __future__ import annotations

from fwopt.sim.simulator import SimResult, simulate

__all__ = ["SimResult", "simulate"]
