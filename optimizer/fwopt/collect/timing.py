"""How long a torch operation takes: median of repeats, on memory that no cache holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fwopt_kernels.timing import captured, gpu_clock, processor_round, quantiles, sampled

LEAST_SAMPLES, LEAST_S, MOST_S = 9, 0.1, 1.5
COLD_BYTES = {"cuda": 256 * 2**20, "cpu": 64 * 2**20}
"""Copies of an operation's weights rotate through at least so much memory: a few times a GPU's L2 cache, and a core's
own caches (a server's last-level cache is shared by dozens of cores; what of it a machine gets is not known)."""
MOST_COPIES = 16
_ENERGY_S = 0.3


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    p20_s: float
    p50_s: float
    p80_s: float
    samples: int
    energy_j: float
    """Of one call, board power; NaN where nothing measures it."""

    @property
    def columns(self) -> dict[str, float | int]:
        return {
            "p20_s": self.p20_s,
            "p50_s": self.p50_s,
            "p80_s": self.p80_s,
            "samples": self.samples,
            "energy_j": self.energy_j,
        }


def copies(nbytes: int, device: str) -> int:
    """Buffers to rotate through so that each is cold again when its turn comes."""
    return max(1, min(MOST_COPIES, -(-COLD_BYTES[device] // max(nbytes, 1))))


def time_calls(calls: Sequence[Callable[[], Any]], device: str) -> Timing:
    """`calls` do equal work on different memory. On a GPU they are one CUDA graph: launches cost nothing."""
    return _on_gpu(calls) if device == "cuda" else _on_processor(calls)


def _on_processor(calls: Sequence[Callable[[], Any]]) -> Timing:
    for call in calls:
        call()
    return _timing(sampled(processor_round(calls), LEAST_S, least=LEAST_SAMPLES, most_s=MOST_S), len(calls))


def time_processor_loop(call: Callable[[], Any], *, rounds: int) -> Timing:
    """A fixed number of rounds: ranks that talk to each other must do equally many."""
    call()
    one = processor_round([call])
    return _timing([one() for _ in range(rounds)], 1)


def _on_gpu(calls: Sequence[Callable[[], Any]]) -> Timing:
    def every() -> None:
        for call in calls:
            call()

    replay = captured(every)
    rounds = sampled(gpu_clock(replay), LEAST_S, least=LEAST_SAMPLES)
    return _timing(rounds, len(calls), _energy_j(replay, len(calls), quantiles(rounds)[1] / len(calls)))


def _energy_j(replay: Callable[[], None], calls: int, call_s: float) -> float:
    """From the board's own energy counter, over enough replays for it to move."""
    import pynvml
    import torch

    try:
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        rounds = max(1, int(_ENERGY_S / (call_s * calls)))
        before = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        for _ in range(rounds):
            replay()
        torch.cuda.synchronize()
        after = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
    except pynvml.NVMLError:
        return float("nan")
    return float(after - before) / 1e3 / (rounds * calls)


def _timing(rounds: list[float], calls: int, energy_j: float = float("nan")) -> Timing:
    p20, p50, p80 = (seconds / calls for seconds in quantiles(rounds))
    return Timing(p20, p50, p80, len(rounds), energy_j)
