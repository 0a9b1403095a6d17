"""Rows in, columns out: every field of every request is checked here, once, whatever the format."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import TraceError
from fwopt.workload.blocks import MAX_RAW, prefix_ids, raw_hash
from fwopt.workload.columns import Workload
from fwopt.workload.digest import with_digest

MAX_TOKENS = (1 << 31) - 1
MAX_NAMES = (1 << 15) - 1
_INT = {int}


class Builder:
    """Accumulates checked requests in compact arrays; a bad row raises `TraceError` and leaves no trace.

    `labels` are the file's own names for the fields, so that a message points at what the user sees.
    `ticks_per_s` is set for formats that count time in integers; others give float seconds.
    `sort` is for logs written at completion; elsewhere arrivals must not decrease.
    """

    def __init__(
        self, file: str, labels: Mapping[str, str], *, ticks_per_s: int | None = None, sort: bool = False
    ) -> None:
        self.file, self.line = file, 0
        self.block_tokens = 0
        self.skip: Callable[[TraceError], None] | None = None
        """Set when bad requests are to be left out: receives each error."""
        self._labels, self._ticks, self._sort = labels, ticks_per_s, sort
        self._arrival = array("q" if ticks_per_s else "d")
        self._last: float = 0.0
        self.out_of_order = 0
        self._prompt, self._output, self._max = array("i"), array("i"), array("i")
        self._block_ends, self._blocks = array("q", [0]), array("Q")
        self._session, self._parent = array("i"), array("i")
        self._model, self._adapter, self._tools = array("h"), array("h"), array("h")
        self._sessions: dict[str | int, int] = {}
        self._requests: dict[str | int, int] = {}
        self._models: dict[str, int] = {}
        self._adapters: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._prompt)

    def bad(self, field: str, rule: str, value: object) -> NoReturn:
        name = self._labels.get(field, field)
        raise TraceError(self.file, self.line, name if name.isprintable() else repr(name), rule, value)

    def add(
        self,
        arrival: Any,
        prompt: Any,
        output: Any,
        *,
        max_tokens: Any = None,
        blocks: Any = None,
        session: Any = None,
        request: Any = None,
        parent: Any = None,
        model: Any = None,
        adapter: Any = None,
        tools: Any = None,
    ) -> None:
        """Check one request and append it; arguments are values as parsed, None where absent."""
        self._check_numbers(arrival, prompt, output, max_tokens)
        if arrival < self._last and not self._sort:
            rule = f"must not decrease (the request before has {self._last}); sort the file"
            self.bad("arrival_s", rule, arrival)
        raw = () if blocks is None else self._checked_blocks(blocks, prompt)
        if session is not None:
            self._check_id("session_id", session)
        if request is not None:
            self._check_request(request)
        index = -1 if parent is None else self._parent_index(parent)
        if model is not None:
            self._check_name("model", model, self._models)
        if adapter is not None:
            self._check_name("adapter", adapter, self._adapters)
        if tools is not None and (type(tools) is not int or not 0 <= tools <= MAX_NAMES):
            self.bad("tools", f"must be a whole number from 0 to {MAX_NAMES}", tools)

        if request is not None:
            self._requests[request] = len(self._prompt)
        self.out_of_order += arrival < self._last
        self._last = max(arrival, self._last)
        self._arrival.append(arrival)
        self._prompt.append(prompt)
        self._output.append(output)
        self._max.append(max_tokens or 0)
        self._blocks.extend(raw)
        self._block_ends.append(len(self._blocks))
        self._session.append(-1 if session is None else self._sessions.setdefault(session, len(self._sessions)))
        self._parent.append(index)
        self._model.append(-1 if model is None else self._models.setdefault(model, len(self._models)))
        self._adapter.append(-1 if adapter is None else self._adapters.setdefault(adapter, len(self._adapters)))
        self._tools.append(tools or 0)

    def _check_numbers(self, arrival: Any, prompt: Any, output: Any, max_tokens: Any) -> None:
        kind = type(arrival)
        if kind is not int and (kind is not float or self._ticks):
            self.bad("arrival_s", "must be a whole number" if self._ticks else "must be a number", arrival)
        if not 0 <= arrival < (1 << 62):
            self.bad("arrival_s", "must be a finite time, not below zero", arrival)
        if type(prompt) is not int or not 1 <= prompt <= MAX_TOKENS:
            self._bad_tokens("prompt_tokens", prompt)
        if type(output) is not int or not 1 <= output <= MAX_TOKENS:
            self._bad_tokens("output_tokens", output)
        if max_tokens is not None:
            if type(max_tokens) is not int or not 1 <= max_tokens <= MAX_TOKENS:
                self._bad_tokens("max_tokens", max_tokens)
            if max_tokens < output:
                self.bad("max_tokens", f"must be at least the output tokens ({output})", max_tokens)

    def _bad_tokens(self, field: str, value: object) -> NoReturn:
        why = (
            "; a request that produced nothing was refused or failed" if value == 0 and field == "output_tokens" else ""
        )
        self.bad(field, f"must be a whole number from 1 to {MAX_TOKENS}{why}", value)

    def _checked_blocks(self, blocks: Any, prompt: int) -> list[int]:
        field = "prefix_blocks"
        if type(blocks) is not list:
            self.bad(field, "must be a list of block hashes", type(blocks).__name__)
        if not blocks:
            return []
        if not self.block_tokens:
            self.bad(field, "needs block_tokens, which only a header line can give", f"{len(blocks)} blocks")
        if (len(blocks) - 1) * self.block_tokens >= prompt:
            rule = f"must be at most one block for every {self.block_tokens} of the {prompt} prompt tokens"
            self.bad(field, rule, f"{len(blocks)} blocks")
        if set(map(type, blocks)) != _INT:
            blocks = [raw_hash(b) if type(b) is str else b if type(b) is int else None for b in blocks]
            if None in blocks:
                self.bad(field, "must hold whole numbers or hexadecimal strings", f"entry {blocks.index(None)}")
        if min(blocks) < 0 or max(blocks) > MAX_RAW:
            self.bad(field, "must lie between 0 and 2**64-1", min(blocks) if min(blocks) < 0 else max(blocks))
        return blocks  # type: ignore[no-any-return]

    def _check_id(self, field: str, value: Any) -> None:
        if (type(value) is not str or not value) and type(value) is not int:
            self.bad(field, "must be a non-empty string or a whole number", value)

    def _check_request(self, request: Any) -> None:
        self._check_id("id", request)
        if request in self._requests:
            self.bad("id", "must be unique in the trace", request)

    def _parent_index(self, parent: Any) -> int:
        self._check_id("parent_id", parent)
        index = self._requests.get(parent)
        if index is None:
            self.bad(
                "parent_id", "must be the id of an earlier request; leave it out if that came before the trace", parent
            )
        return index

    def _check_name(self, field: str, value: Any, table: dict[str, int]) -> None:
        if type(value) is not str or not value:
            self.bad(field, "must be a non-empty string", value)
        if value not in table and len(table) >= MAX_NAMES:
            self.bad(field, f"must be one of at most {MAX_NAMES} names in a trace", value)

    def sort_by_arrival(self) -> None:
        """From here on requests may come in any order; the workload is in order of arrival all the same."""
        self._sort = True

    def set_block_tokens(self, block_tokens: int) -> None:
        """Fix the block size after reading, when it follows from the data; blocks beyond a prompt's end are cut."""
        self.block_tokens = block_tokens
        if not block_tokens or not len(self._blocks):
            return
        ends = np.frombuffer(self._block_ends, np.int64)
        lengths = np.diff(ends)
        kept = np.minimum(lengths, -(-np.frombuffer(self._prompt, np.int32) // block_tokens))
        position = np.arange(len(self._blocks)) - np.repeat(ends[:-1], lengths)
        blocks = np.frombuffer(self._blocks, np.uint64)[position < np.repeat(kept, lengths)]
        self._blocks = array("Q", blocks.tobytes())
        self._block_ends = array("q", np.concatenate([[0], np.cumsum(kept)]).astype(np.int64).tobytes())

    def build(self, name: str, source_format: str) -> Workload:
        """The workload so far, in order of arrival (ties keep the file's order)."""
        raw = np.frombuffer(self._arrival, np.int64 if self._ticks else np.float64)
        order = np.argsort(raw, kind="stable") if self.out_of_order else None
        first = raw.min()

        def column(values: array[int], dtype: type[np.generic]) -> NDArray[Any]:
            out = np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)
            return out[order] if order is not None else out.copy()

        model, adapter = column(self._model, np.int16), column(self._adapter, np.int16)
        offsets, hashes = self._ordered_blocks(order)
        owner = (model.astype(np.int64) + 1) * (MAX_NAMES + 2) + adapter + 1
        elapsed = (raw - first if order is None else raw[order] - first).astype(np.float64)
        workload = Workload(
            name=name,
            source_format=source_format,
            arrival_s=elapsed / self._ticks if self._ticks else elapsed,
            prompt_tokens=column(self._prompt, np.int32),
            output_tokens=column(self._output, np.int32),
            max_tokens=column(self._max, np.int32),
            block_tokens=self.block_tokens,
            block_offsets=offsets,
            block_ids=prefix_ids(hashes, offsets, owner),
            session=_renumbered(column(self._session, np.int32), order),
            parent=self._ordered_parents(order),
            model=model,
            models=tuple(self._models),
            adapter=adapter,
            adapters=tuple(self._adapters),
            tools=column(self._tools, np.int16),
            digest="",
        )
        return with_digest(canonical_names(workload))

    def _ordered_blocks(self, order: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        ends = np.frombuffer(self._block_ends, np.int64)
        hashes = np.frombuffer(self._blocks, np.uint64) if len(self._blocks) else np.zeros(0, np.uint64)
        if order is None:
            return ends.copy(), hashes
        lengths = np.diff(ends)[order]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        where = np.arange(len(hashes)) + np.repeat(ends[:-1][order] - offsets[:-1], lengths)
        return offsets, hashes[where]

    def _ordered_parents(self, order: NDArray[np.int64] | None) -> NDArray[np.int32]:
        parent = np.frombuffer(self._parent, np.int32)
        if order is None:
            return parent.copy()
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        moved = parent[order]
        return np.where(moved >= 0, place[moved], np.int32(-1)).astype(np.int32)


def _renumbered(codes: NDArray[np.int32], order: NDArray[np.int64] | None) -> NDArray[np.int32]:
    """Codes in order of first appearance again, after a sort."""
    if order is None or not (codes >= 0).any():
        return codes
    unique, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    absent = int(unique[0] < 0)
    rank = np.empty(len(unique), np.int32)
    by_first = np.argsort(first[absent:]) + absent
    rank[by_first] = np.arange(len(by_first), dtype=np.int32)
    rank[:absent] = -1
    return rank[inverse]


def canonical_names(workload: Workload) -> Workload:
    """Model and adapter tables in order of first appearance, so that equal content has an equal digest."""
    from dataclasses import replace

    tables: dict[str, Any] = {}
    for codes_name, names_name in (("model", "models"), ("adapter", "adapters")):
        codes, names = getattr(workload, codes_name), getattr(workload, names_name)
        used = codes[codes >= 0]
        unique, first = np.unique(used, return_index=True)
        by_first = unique[np.argsort(first)]
        if np.array_equal(by_first, np.arange(len(names))):
            continue
        rank = np.full(len(names) + 1, -1, np.int16)
        rank[by_first] = np.arange(len(by_first), dtype=np.int16)
        tables |= {codes_name: rank[codes], names_name: tuple(names[i] for i in by_first)}
    return replace(workload, **tables) if tables else workload
