"""Tensor parallelism: which slice of each weight a rank holds, and the sums over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist

from fwopt.errors import InputError


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `size` that share one model."""

    rank: int = 0
    size: int = 1

    def share(self, count: int, what: str) -> int:
        """`count` split evenly."""
        if count % self.size:
            raise InputError(f"{what} must be divisible by tp, got {count} over tp={self.size}")
        return count // self.size

    def part(self, count: int, what: str) -> slice:
        each = self.share(count, what)
        return slice(self.rank * each, (self.rank + 1) * each)

    def kv_slice(self, kv_heads: int) -> slice:
        """KV heads of this rank; replicated where there are fewer of them than ranks."""
        if kv_heads >= self.size:
            return self.part(kv_heads, "key/value heads")
        if self.size % kv_heads:
            raise InputError(f"tp must be a multiple of the key/value heads, got tp={self.size} over {kv_heads}")
        at = self.rank * kv_heads // self.size
        return slice(at, at + 1)

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """In place, over all ranks."""
        if self.size > 1:
            dist.all_reduce(x)
        return x

    def join(self, x: torch.Tensor) -> torch.Tensor:
        """Slices of the last dimension put together."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, dim=-1)


def connect(ranks: Ranks, device: torch.device, rendezvous: str) -> None:
    """Join the process group; `rendezvous` is a `tcp://` or `file://` address that all ranks know."""
    if ranks.size == 1:
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=rendezvous, rank=ranks.rank, world_size=ranks.size)


def disconnect() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
