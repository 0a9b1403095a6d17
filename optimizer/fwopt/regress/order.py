"""In which order arms are measured, and whether a stored order allows a verdict.

A block is A B B A, or B A A B by a fresh coin: a machine that speeds up or slows down steadily inside a block moves
both arms alike, and one that changes from block to block moves the block, not the difference.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fwopt.spec.bench import ArmName
from fwopt.spec.bench_result import Run

MOST_APART = 1.0
"""Mean positions of the two arms inside a block may differ by so many runs: A B is a block, A A B B is none."""
MOST_APART_OVERALL = 0.75
"""The same, averaged over blocks: A B, A B, A B is no order for a verdict, A B, B A, A B is."""


def block_order(rng: random.Random) -> tuple[ArmName, ...]:
    """One block."""
    return ("base", "head", "head", "base") if rng.random() < 0.5 else ("head", "base", "base", "head")


@dataclass(frozen=True, slots=True)
class Block:
    """Runs of both arms that lie side by side in time."""

    number: int
    base: tuple[Run, ...]
    head: tuple[Run, ...]

    @property
    def lead(self) -> float:
        """By how many positions head ran later than base, on average."""
        return _mean_position(self.head) - _mean_position(self.base)


@dataclass(frozen=True, slots=True)
class Blocks:
    """What two sets of runs have in common."""

    blocks: tuple[Block, ...]
    left_out: int
    """Blocks in which an arm has no run that counts."""
    reason: str | None
    """Why the order allows no verdict; None: it does."""


def pair(base: Sequence[Run], head: Sequence[Run]) -> Blocks:
    """Blocks of two arms of one session; runs with a problem are left out, whole blocks where an arm has no other."""
    runs: dict[int, tuple[list[Run], list[Run]]] = defaultdict(lambda: ([], []))
    for arm, found in enumerate((base, head)):
        for run in found:
            runs[run.block][arm].append(run)
    blocks, left_out, apart = [], 0, 0
    for number, (of_base, of_head) in sorted(runs.items()):
        good = tuple(tuple(r for r in arm if r.problem is None) for arm in (of_base, of_head))
        if not all(good):
            left_out += 1
            continue
        block = Block(number, *good)
        if not _together([*of_base, *of_head]) or abs(Block(number, tuple(of_base), tuple(of_head)).lead) > MOST_APART:
            apart += 1
            continue
        blocks.append(block)
    reason = None
    if apart:
        reason = (
            "the arms were measured one after the other, not side by side: drift of the machine looks like a change"
        )
    elif blocks and abs(sum(b.lead for b in blocks) / len(blocks)) > MOST_APART_OVERALL:
        first = "base" if blocks[0].lead > 0 else "head"
        reason = f"{first} ran first in every block: drift of the machine looks like a change"
    return Blocks(tuple(blocks), left_out, reason)


def split_equal(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """Runs of one arm as if they were two: the outer two of each block of four, and the inner two."""
    blocks: dict[int, list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda r: r.position):
        blocks[run.block].append(run)
    whole = [block for block in blocks.values() if len(block) == 4]
    return tuple(b[i] for b in whole for i in (0, 3)), tuple(b[i] for b in whole for i in (1, 2))


def _together(runs: Sequence[Run]) -> bool:
    positions = sorted(run.position for run in runs)
    return positions[-1] - positions[0] == len(positions) - 1


def _mean_position(runs: Sequence[Run]) -> float:
    return sum(run.position for run in runs) / len(runs)
