"""All arms through all layers: a layer's weights are read once, used by every arm, and let go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fwopt.errors import InputError
from fwopt.quality.arms import Arm, computing
from fwopt.quality.model import StreamedModel
from fwopt.quality.states import EMBEDDED, States
from fwopt.quality.windows import Windows

Tell = Callable[[str, int, int], None]


@dataclass(slots=True)
class Walk:
    """`states` holds how far each arm has come, on disk."""

    model: StreamedModel
    windows: Windows
    states: States
    stored: torch.dtype
    failed: dict[str, str] = field(default_factory=dict)
    """Arms whose numbers stopped being finite, and where."""

    @torch.inference_mode()
    def run(self, arms: Sequence[Arm], tell: Tell) -> None:
        """The first arm is the reference: it must stay finite."""
        layers = self.model.layers
        if not self.states.has(EMBEDDED, 0):
            self._embed()
        at = {arm.name: self.states.reached(arm.name, layers) for arm in arms}
        done = sum(at.values())
        for index in range(min(at.values()), layers):
            waiting = [arm for arm in arms if at[arm.name] == index and arm.name not in self.failed]
            if not waiting:
                continue
            with self.model.layer(index) as layer:
                for arm in waiting:
                    tell(f"layer {index + 1} of {layers}: {arm.name}", done, layers * len(arms))
                    with computing(arm, index, layer, self.stored) as cache:
                        self._layer(arm, index, cache)
                    self.states.forget(arm.name, index)
                    at[arm.name] += 1
                    done += 1
            self._refuse(arms[0])

    def _refuse(self, reference: Arm) -> None:
        if reference.name in self.failed:
            raise InputError(f"{self.model.folder}: the unquantized model {self.failed[reference.name]}")

    def _embed(self) -> None:
        with self.states.write(EMBEDDED, 0) as out:
            for batch in batches(self.windows, 8192):
                rows = self.model.embed(_tokens(self.windows, batch, 0))
                _scatter(out, self.windows, batch, rows)

    def _layer(self, arm: Arm, index: int, cache: object | None) -> None:
        attention = arm.attention or self.model.attentions[0]
        before = self.states.read(arm.name, index)
        finite = True
        with self.states.write(arm.name, index + 1) as out:
            for batch in batches(self.windows, arm.batch_tokens, backwards=arm.backwards):
                rows = self.model.call(index, _gather(before, self.windows, batch, arm.padding), attention, cache)
                _scatter(out, self.windows, batch, rows)
            finite = bool(torch.isfinite(out).all())
        if not finite:
            self.failed[arm.name] = f"computes numbers that are not finite from layer {index + 1} on"


def batches(windows: Windows, tokens: int, *, backwards: bool = False) -> Iterator[list[int]]:
    """Windows of like length together, at most `tokens` with padding; at least one window."""
    order = sorted(range(len(windows)), key=lambda i: -windows.lengths[i])
    if backwards:
        order.reverse()
    batch: list[int] = []
    for i in order:
        longest = max(windows.lengths[j] for j in [*batch, i])
        if batch and longest * (len(batch) + 1) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _tokens(windows: Windows, batch: Sequence[int], padding: int) -> Tensor:
    rows = torch.zeros(len(batch), max(windows.lengths[i] for i in batch) + padding, dtype=torch.long)
    for row, i in enumerate(batch):
        rows[row, : windows.lengths[i]] = torch.from_numpy(windows.tokens[windows.rows(i)])
    return rows


def _gather(states: Tensor, windows: Windows, batch: Sequence[int], padding: int) -> Tensor:
    """Padding follows a window's own tokens, so causal attention keeps it out of sight."""
    length = max(windows.lengths[i] for i in batch) + padding
    rows = torch.zeros(len(batch), length, states.shape[1], dtype=states.dtype)
    for row, i in enumerate(batch):
        rows[row, : windows.lengths[i]] = states[windows.rows(i)]
    return rows


def _scatter(out: Tensor, windows: Windows, batch: Sequence[int], rows: Tensor) -> None:
    for row, i in enumerate(batch):
        out[windows.rows(i)] = rows[row, : windows.lengths[i]]
