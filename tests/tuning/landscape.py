"""Made-up but realistic times of matrix-product variants on a Hopper GPU: what the search is held against.

Roofline of each tile, waves over 132 multiprocessors, occupancy by shared memory and registers, pipelining, and a
deviation of each (variant, shape) that nothing explains.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

MULTIPROCESSORS, BANDWIDTH, FLOPS = 132, 4.0e12, 8e14
ROWS = (1, 4, 16, 48, 128, 512, 2048, 8192)


@dataclass
class Landscape:
    """seconds (B, V), and what the search may know of variants and buckets."""

    seconds: np.ndarray
    features: np.ndarray
    places: np.ndarray
    floors_s: np.ndarray
    calls: np.ndarray
    noise: float
    rng: np.random.Generator

    def measure(self, bucket: int, variant: int, effort_s: float) -> float:
        """Longer measurements are less noisy."""
        spread = self.noise / np.sqrt(effort_s / 0.004)
        return float(self.seconds[bucket, variant] * np.exp(self.rng.normal(0, spread)))


def landscape(seed: int) -> Landscape:
    rng = np.random.default_rng(seed)
    n, k = (int(rng.choice([2048, 4096, 6144, 12288, 24576])) for _ in range(2))
    weight_bytes = float(rng.choice([0.5, 1.0, 2.0]))
    axes = ([16, 32, 64, 128], [32, 64, 128, 256], [32, 64, 128], [1, 2, 4, 8], [4, 8], [2, 3, 4, 5])
    variants = np.asarray([v for v in itertools.product(*axes) if _fits(v)], dtype=float)
    keep = rng.permutation(len(variants))[: int(rng.integers(120, 320))]
    variants = variants[np.sort(keep)]
    own = {name: rng.normal(0, 0.03, 8) for name in "mnkswp"}
    seconds = np.stack([_times(m, n, k, weight_bytes, variants, own) for m in ROWS])
    seconds *= np.exp(rng.normal(0, 0.012, seconds.shape))
    default = int(np.abs(np.log2(variants / [64, 128, 64, 1, 4, 3])).sum(-1).argmin())
    order = np.concatenate(([default], np.delete(np.arange(len(variants)), default)))
    features = np.column_stack([np.log2(variants), *_resources(variants, weight_bytes)])
    floors = np.asarray(
        [max((n * k * weight_bytes + 2 * m * (n + k)) / BANDWIDTH, 2 * m * n * k / FLOPS) for m in ROWS]
    )
    calls = rng.exponential(1.0, len(ROWS)) * np.asarray([30, 80, 200, 200, 80, 20, 8, 2])
    return Landscape(
        seconds[:, order], features[order], np.log2(np.asarray(ROWS, dtype=float))[:, None], floors, calls,
        noise=0.01, rng=rng,
    )  # fmt: skip


def _fits(v: tuple[float, ...]) -> bool:
    bm, bn, bk, _, warps, stages = v
    return (bm + bn) * bk * 2 * stages <= 227 * 1024 and bm * bn / (32 * warps) <= 256


def _resources(variants: np.ndarray, weight_bytes: float) -> list[np.ndarray]:
    """What a compiler would report: registers and shared memory."""
    bm, bn, bk, _, warps, stages = variants.T
    return [np.log2(bm * bn / (32 * warps) + 40), np.log2((2 * bm + weight_bytes * bn) * bk * stages)]


def _times(m: int, n: int, k: int, weight_bytes: float, variants: np.ndarray, own: dict[str, np.ndarray]) -> np.ndarray:
    bm, bn, bk, split, warps, stages = variants.T
    blocks = np.ceil(m / bm) * np.ceil(n / bn) * split
    shared = (2 * bm + weight_bytes * bn) * bk * stages
    registers = bm * bn / (32 * warps) + 40
    occupancy = np.clip(np.minimum(227 * 1024 / shared, 65536 / (registers * 32 * warps)), 1, 8).astype(int)
    waves = np.ceil(blocks / (MULTIPROCESSORS * occupancy))
    resident = np.minimum(blocks, MULTIPROCESSORS * occupancy)
    in_flight = resident / MULTIPROCESSORS * stages * (bm * 2 + bn * weight_bytes) * bk
    reached = in_flight / (in_flight + 24_000)
    per_block = np.ceil(k / split / bk) * bk
    moved = per_block * (2 * bm * 0.3 + bn * weight_bytes)
    memory = waves * resident * moved / (BANDWIDTH * reached)
    matrix = np.clip(bm / 64, 0.25, 1) ** 0.7 * np.clip(bn / 128, 0.3, 1) ** 0.4 * np.where(warps == 4, 0.9, 1.0)
    rounds = waves * np.ceil(resident / MULTIPROCESSORS)
    math_s = rounds * 2 * bm * bn * per_block / (FLOPS / MULTIPROCESSORS * matrix * 0.8)
    reduce = (split > 1) * (1.5e-6 + split * m * n * 4 / BANDWIDTH)
    base = 1.5e-6 + np.maximum(memory, math_s) + 0.25 * np.minimum(memory, math_s) + reduce
    personal = sum(own[name][np.log2(axis).astype(int) % 8] for name, axis in zip("mnkswp", variants.T, strict=True))
    return base * np.exp(personal)
