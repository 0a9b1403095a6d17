"""Which request is due next: scheduled ones at their time, later turns when the turn before has ended."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fwopt.workload.columns import Workload


class Order:
    """Requests by due time, in seconds since the start; knows no network.

    A turn whose parent ended at t is due at `t + think_s`; without `think_s` at its own scheduled time but not before
    t: traces give arrivals only, so the user's thinking is what the recorded gap leaves once the parent has ended here.
    In a closed loop every first turn is due at once, and a later turn goes before new conversations.
    """

    def __init__(
        self, workload: Workload, requests: int, due_s: NDArray[np.float64] | None, think_s: float | None
    ) -> None:
        self._due = due_s
        self._think = think_s
        self._children: defaultdict[int, list[int]] = defaultdict(list)
        parent = workload.parent[:requests]
        later = parent >= 0
        for child in np.flatnonzero(later).tolist():
            self._children[int(parent[child])].append(child)
        self._roots = np.flatnonzero(~later)
        self._next = 0
        self._ready: list[tuple[float, int]] = []
        self.unresolved = requests

    def scheduled_s(self, request: int) -> float:
        """Due time by the load alone; 0 in a closed loop."""
        return float(self._due[request]) if self._due is not None else 0.0

    def pop(self, now_s: float) -> tuple[int, float] | None:
        """(request, when it was due) of one that is due by now, else None."""
        root_due = self._root_due()
        child_due = self._ready[0][0] if self._ready else math.inf
        if child_due <= now_s and (self._due is None or child_due <= root_due):
            due, request = heapq.heappop(self._ready)
            return request, due
        if root_due <= now_s:
            request = int(self._roots[self._next])
            self._next += 1
            return request, root_due if self._due is not None else now_s
        return None

    def next_due_s(self) -> float:
        """When `pop` next has something, as far as is known now."""
        return min(self._root_due(), self._ready[0][0] if self._ready else math.inf)

    def _root_due(self) -> float:
        return self.scheduled_s(int(self._roots[self._next])) if self._next < len(self._roots) else math.inf

    def upcoming(self, start: int) -> Iterator[tuple[int, int]]:
        """(position, request) of first turns not yet popped, from position `start` on."""
        for position in range(max(start, self._next), len(self._roots)):
            yield position, int(self._roots[position])

    def ended(self, request: int, finished: bool, now_s: float) -> tuple[list[int], list[int]]:
        """(turns that this made ready, turns that will never be sent because it failed, theirs included)."""
        self.unresolved -= 1
        children = self._children.pop(request, [])
        if not finished:
            lost, stack = [], children
            while stack:
                child = stack.pop()
                lost.append(child)
                stack.extend(self._children.pop(child, []))
            self.unresolved -= len(lost)
            return [], sorted(lost)
        for child in children:
            due = now_s + self._think if self._think is not None else max(self.scheduled_s(child), now_s)
            heapq.heappush(self._ready, (due, child))
        return children, []
