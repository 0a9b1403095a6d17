"""One step's work as tensors."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fwopt.engine.scheduler import Chunk, Scheduled

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """What every rank needs to know of a step, on the host. Tokens of decodes come first, then chunk after chunk."""

    tokens: Integers
    positions: Integers
    slots: Integers
    """Where each token's keys and values go: block * block size + offset."""
    sampled: Integers
    """Indices of the tokens whose logits are wanted."""
    decodes: int
    table: Integers
    """(decodes, blocks) of each decoding sequence, padded with its first block."""
    chunks: tuple[tuple[int, int, Integers], ...]
    """(tokens before it, length, blocks) of each prompt chunk."""


def make_plan(step: Scheduled, block_size: int) -> Plan:
    """Flatten a step; a chunk's tokens are consecutive."""
    decodes = len(step.decodes)
    total = decodes + sum(c.length for c in step.chunks)
    tokens, positions, slots = (np.empty(total, dtype=np.int64) for _ in range(3))
    sampled = list(range(decodes))
    longest = max((len(d.sequence.blocks) for d in step.decodes), default=0)
    table = np.empty((decodes, longest), dtype=np.int64)
    for i, decode in enumerate(step.decodes):
        held = decode.sequence.blocks
        tokens[i], positions[i] = decode.sequence.tokens[decode.start], decode.start
        table[i, : len(held)] = held
        table[i, len(held) :] = held[0]
    at = np.arange(decodes)
    slots[:decodes] = table[at, positions[:decodes] // block_size] * block_size + positions[:decodes] % block_size
    begin = decodes
    chunks: list[tuple[int, int, Integers]] = []
    for chunk in step.chunks:
        end = begin + chunk.length
        blocks = _fill(chunk, block_size, tokens[begin:end], positions[begin:end], slots[begin:end])
        chunks.append((chunk.start, chunk.length, blocks))
        if chunk.samples:
            sampled.append(end - 1)
        begin = end
    return Plan(tokens, positions, slots, np.asarray(sampled, dtype=np.int64), decodes, table, tuple(chunks))


def _fill(chunk: Chunk, block_size: int, tokens: Integers, positions: Integers, slots: Integers) -> Integers:
    stop = chunk.start + chunk.length
    tokens[:] = chunk.sequence.tokens[chunk.start : stop]
    positions[:] = np.arange(chunk.start, stop)
    blocks = np.asarray(chunk.sequence.blocks, dtype=np.int64)
    slots[:] = blocks[positions // block_size] * block_size + positions % block_size
    return blocks


@dataclass(slots=True)
class ChunkInput:
    rows: slice
    """Its tokens in the batch."""
    table: Tensor | None
    """(1, blocks); None: nothing precedes the chunk, its own keys are all there are."""
    context: int
    masks: dict[int | None, Tensor | None]
    """By window; None as a mask: plainly causal."""


@dataclass(slots=True)
class Batch:
    """A plan on the device."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    sampled: Tensor
    decodes: int
    table: Tensor
    masks: dict[int | None, Tensor] = field(default_factory=dict)
    """(decodes, 1, 1, positions) by window: 0 where a decode attends, minus infinity elsewhere."""
    chunks: list[ChunkInput] = field(default_factory=list)


def decode_mask(positions: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What the token at each position may see of `length` cached ones; (N, 1, 1, length)."""
    at = torch.arange(length, device=positions.device)
    hidden = at > positions[:, None]
    if window is not None:
        hidden |= at <= positions[:, None] - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(hidden, -torch.inf)
    return mask[:, None, None, :]


def make_batch(
    plan: Plan, block_size: int, windows: frozenset[int | None], masked: bool, dtype: torch.dtype, device: torch.device
) -> Batch:
    """`masked`: prompt chunks need explicit masks (attention sinks)."""

    def put(array: Integers) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    positions = put(plan.positions)
    batch = Batch(put(plan.tokens), positions, put(plan.slots), put(plan.sampled), plan.decodes, put(plan.table))
    if plan.decodes:
        length = plan.table.shape[1] * block_size
        for window in windows:
            batch.masks[window] = decode_mask(positions[: plan.decodes], length, window, dtype)
    begin = plan.decodes
    for start, length, blocks in plan.chunks:
        rows = slice(begin, begin + length)
        begin += length
        masks: dict[int | None, Tensor | None] = {}
        for window in windows:
            if start == 0 and not masked and (window is None or window >= length):
                masks[window] = None
            else:
                masks[window] = decode_mask(positions[rows], start + length, window, dtype)[:, 0, 0]
        table = put(blocks)[None] if start else None
        batch.chunks.append(ChunkInput(rows, table, start + length, masks))
    return batch
