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
    groups: tuple[tuple[int, int], ...]
    """(decodes, blocks) of runs of decodes that attend together, none longer than so many blocks."""


def make_plan(step: Scheduled, block_size: int, group_blocks: int | None = None) -> Plan:
    """Flatten a step; a chunk's tokens are consecutive.

    `group_blocks`: how many blocks less to read are worth one more group of decodes of about equal length. The
    decodes then stand in the order of their lengths, and `sampled` leads back to the step's own. None: one group.
    """
    decodes = len(step.decodes)
    total = decodes + sum(c.length for c in step.chunks)
    tokens, positions, slots = (np.empty(total, dtype=np.int64) for _ in range(3))
    lengths = np.asarray([len(d.sequence.blocks) for d in step.decodes], dtype=np.int64)
    order = np.arange(decodes) if group_blocks is None else np.argsort(lengths, kind="stable")
    sampled = np.argsort(order).tolist()
    table = np.empty((decodes, lengths.max(initial=0)), dtype=np.int64)
    for i, decode in enumerate(step.decodes[j] for j in order):
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
    groups = tuple(decode_groups(lengths[order], group_blocks))
    return Plan(tokens, positions, slots, np.asarray(sampled, dtype=np.int64), decodes, table, tuple(chunks), groups)


def decode_groups(lengths: Integers, cost: int | None) -> list[tuple[int, int]]:
    """(sequences, longest) of runs of ascending `lengths`, split wherever that spares more than `cost` of padding.
    None: never split, and in any order."""
    n = len(lengths)
    if n == 0:
        return []
    if cost is None:
        return [(n, int(lengths.max()))]
    shorter = np.arange(1, n)
    spared = shorter * (lengths[-1] - lengths[:-1])
    if n == 1 or spared.max() <= cost:
        return [(n, int(lengths[-1]))]
    at = int(shorter[spared.argmax()])
    return [*decode_groups(lengths[:at], cost), *decode_groups(lengths[at:], cost)]


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
    table: Tensor
    """(1, blocks)"""
    context: int
    """Tokens up to its last one; as many as it has itself: nothing precedes it."""
    masks: dict[int | None, Tensor | None]
    """By window; None as a mask: plainly causal. Empty where kernels go by lengths."""

    @property
    def whole(self) -> bool:
        """Its own keys are all there are."""
        length: int = self.rows.stop - self.rows.start
        return self.context == length


@dataclass(slots=True)
class DecodeInput:
    """Decodes that attend together."""

    rows: slice
    """Their tokens in the batch."""
    table: Tensor
    """(decodes, blocks)"""
    masks: dict[int | None, Tensor]
    """(decodes, 1, 1, positions) by window: 0 where a decode attends, minus infinity elsewhere. Empty where kernels
    go by lengths."""


@dataclass(slots=True)
class Batch:
    """A plan on the device."""

    tokens: Tensor
    positions: Tensor
    slots: Tensor
    sampled: Tensor
    decodes: list[DecodeInput] = field(default_factory=list)
    chunks: list[ChunkInput] = field(default_factory=list)


def decode_mask(positions: Tensor, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What the token at each position may see of `length` cached ones; (N, 1, 1, length)."""
    at = torch.arange(length, device=positions.device)
    hidden = at > positions[:, None]
    if window is not None:
        hidden |= at <= positions[:, None] - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=positions.device).masked_fill_(hidden, -torch.inf)
    return mask[:, None, None, :]


@dataclass(frozen=True, slots=True)
class Masks:
    """Which attention masks a model's steps need."""

    windows: frozenset[int | None]
    """Of its layers; None: one that sees everything. Empty where no mask is needed at all."""
    chunks: bool
    """Also of prompt chunks that are plainly causal (attention sinks)."""
    dtype: torch.dtype


def decode_input(rows: slice, table: Tensor, positions: Tensor, block_size: int, masks: Masks) -> DecodeInput:
    """What the tokens at `rows` of `positions` need to attend over `table`."""
    length = table.shape[1] * block_size
    seen = {w: decode_mask(positions[rows], length, w, masks.dtype) for w in masks.windows}
    return DecodeInput(rows, table, seen)


def make_batch(plan: Plan, block_size: int, masks: Masks, device: torch.device) -> Batch:
    def put(array: Integers) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    positions = put(plan.positions)
    batch = Batch(put(plan.tokens), positions, put(plan.slots), put(plan.sampled))
    begin = 0
    for count, blocks in plan.groups:
        rows = slice(begin, begin + count)
        begin += count
        batch.decodes.append(decode_input(rows, put(plan.table[rows, :blocks]), positions, block_size, masks))
    begin = plan.decodes
    for start, length, held in plan.chunks:
        rows = slice(begin, begin + length)
        begin += length
        seen: dict[int | None, Tensor | None] = {}
        for window in masks.windows:
            if start == 0 and not masks.chunks and (window is None or window >= length):
                seen[window] = None
            else:
                seen[window] = decode_mask(positions[rows], start + length, window, masks.dtype)[:, 0, 0]
        batch.chunks.append(ChunkInput(rows, put(held)[None], start + length, seen))
    return batch
