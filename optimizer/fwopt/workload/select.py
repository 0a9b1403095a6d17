"""Part of a workload: some of its requests, a stretch of it, or the whole cut to a shorter context."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import InputError
from fwopt.workload.blocks import in_order
from fwopt.workload.builder import canonical_names
from fwopt.workload.columns import Workload
from fwopt.workload.digest import with_digest


def keep_requests(workload: Workload, keep: NDArray[np.bool_]) -> Workload:
    """The marked requests, arrivals counted from the first of them; parents left out become none."""
    index = np.flatnonzero(keep)
    place = np.full(len(workload) + 1, -1, dtype=np.int32)
    place[index] = np.arange(len(index), dtype=np.int32)
    lengths = np.diff(workload.block_offsets)[index]
    blocks = np.repeat(keep, np.diff(workload.block_offsets))
    arrival = workload.arrival_s[index]
    session = workload.session[index]
    session[session >= 0] = in_order(session[session >= 0])
    columns = ("prompt_tokens", "output_tokens", "max_tokens", "model", "adapter", "tools")
    kept = replace(
        workload,
        arrival_s=arrival - arrival[0] if len(arrival) else arrival,
        block_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        block_ids=in_order(workload.block_ids[blocks]),
        parent=place[workload.parent[index]],
        session=session,
        **{name: getattr(workload, name)[index] for name in columns},
    )
    return with_digest(canonical_names(kept))


def window(workload: Workload, start: int, stop: int) -> Workload:
    """Requests start..stop-1 in order of arrival; all of them is the workload itself."""
    if not 0 <= start < stop <= len(workload):
        raise InputError(f"a slice must lie within 0..{len(workload)} and hold a request, got {start}..{stop}")
    if (start, stop) == (0, len(workload)):
        return workload
    keep = np.zeros(len(workload), dtype=np.bool_)
    keep[start:stop] = True
    return keep_requests(workload, keep)


def parse_range(text: str, count: int) -> tuple[int, int]:
    """`A:B`, `A:` or `:B`, as Python slices them but for negative numbers; B may lie beyond the end."""
    start, colon, stop = text.partition(":")
    if not colon or not all(part.isdecimal() or not part for part in (start, stop)):
        raise InputError(f"requests must be A:B with whole numbers, for example 0:1000, got '{text}'")
    first, last = int(start or 0), min(int(stop or count), count)
    if first >= last:
        raise InputError(f"requests {text} holds none of the trace's {count}")
    return first, last


def cut_context(workload: Workload, most_tokens: int) -> Workload:
    """Every request cut so that prompt and output fit `most_tokens`: outputs to half of it at most, prompts from the
    end to what is left. Whole prefix blocks that remain keep their ids."""
    if most_tokens < 2:
        raise InputError(f"a context must hold a prompt and an output token, got {most_tokens}")
    output = np.minimum(workload.output_tokens, most_tokens // 2).astype(np.int32)
    prompt = np.minimum(workload.prompt_tokens, most_tokens - output).astype(np.int32)
    limit = np.where(workload.max_tokens > 0, np.minimum(workload.max_tokens, most_tokens - prompt), 0)
    lengths = np.diff(workload.block_offsets)
    size = workload.block_tokens
    kept = np.where(prompt < workload.prompt_tokens, np.minimum(lengths, prompt // size), lengths) if size else lengths
    position = np.arange(len(workload.block_ids)) - np.repeat(workload.block_offsets[:-1], lengths)
    return with_digest(
        replace(
            workload,
            prompt_tokens=prompt,
            output_tokens=output,
            max_tokens=limit.astype(np.int32),
            block_offsets=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
            block_ids=in_order(workload.block_ids[position < np.repeat(kept, lengths)]),
        )
    )
