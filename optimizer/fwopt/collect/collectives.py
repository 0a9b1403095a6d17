"""All-reduce between processes of this machine: gloo on a processor, NCCL on GPUs."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from fwopt.collect.probes import Row

ELEMENTS = (512, 4096, 32768, 262144, 2097152)
_JOIN_S = 60


def all_reduce_rows(ranks: int, device: str, variant: str) -> list[Row]:
    """Rows of the `all_reduce` table, launched eagerly; none for one rank."""
    import torch.multiprocessing

    processes: Any = torch.multiprocessing
    if ranks < 2:
        return []
    with tempfile.TemporaryDirectory(prefix="fwopt-all-reduce-") as folder:
        context: Any = processes.get_context("spawn")
        answers = context.SimpleQueue()
        place = str(Path(folder) / "store")
        processes.spawn(_rank, args=(ranks, device, place, answers), nprocs=ranks, join=True)
        found: list[dict[str, float | int]] = answers.get()
    return [{"mode": "eager", "gpus": ranks, **row, "variant": variant} for row in found]


def _rank(rank: int, ranks: int, device: str, place: str, answers: Any) -> None:
    """One process; the first reports."""
    import torch
    import torch.distributed as dist

    from fwopt.collect.timing import time_processor_loop

    if device == "cuda":
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, init_method=f"file://{place}", rank=rank, world_size=ranks, timeout=timedelta(seconds=_JOIN_S)
    )
    try:
        rows = []
        for elements in ELEMENTS:
            message = torch.ones(elements, dtype=torch.bfloat16, device=device)

            def reduce(message: torch.Tensor = message) -> None:
                dist.all_reduce(message)
                if device == "cuda":
                    torch.cuda.synchronize()

            timing = time_processor_loop(reduce, rounds=20)
            rows.append({"elements": elements, **timing.columns})
        if rank == 0:
            answers.put(rows)
    finally:
        dist.destroy_process_group()
