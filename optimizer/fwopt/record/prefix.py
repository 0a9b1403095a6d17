"""Prefix blocks of a prompt, hashed in slices so that no other request waits for a long prompt."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence

from fwopt.record.key import PrefixKey

BLOCK_TOKENS = 16
"""Tokens in a block, vLLM's own size."""
BLOCK_BYTES = 64
"""Without a tokenizer, bytes of prompt text in a block: about 16 tokens of English."""
_SLICE_BLOCKS = 100
"""Blocks hashed before other work gets its turn: about 0.1 ms."""


async def text_blocks(key: PrefixKey, text: bytes) -> list[int]:
    """One hash for each whole block of text."""
    return await _blocks(key, text, BLOCK_BYTES)


async def token_blocks(key: PrefixKey, tokens: Sequence[int]) -> list[int]:
    """One hash for each whole block of tokens."""
    whole = array("I", tokens)
    return await _blocks(key, whole.tobytes(), BLOCK_TOKENS * whole.itemsize)


async def _blocks(key: PrefixKey, data: bytes, size: int) -> list[int]:
    hasher, found = key.blocks(), []
    for count, start in enumerate(range(0, len(data) - size + 1, size), 1):
        hasher.update(data[start : start + size])
        found.append(int.from_bytes(hasher.copy().digest(), "little"))
        if count % _SLICE_BLOCKS == 0:
            await asyncio.sleep(0)
    return found
