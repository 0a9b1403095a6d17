"""Drafters: from the tokens so far to the tokens that may come next. They propose what vLLM's would (0.24-0.33)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from fwopt.errors import InputError
from fwopt.spec.speculation import NgramDrafter


class Drafting(Protocol):
    def propose(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that may follow; empty where there is nothing to go by."""
        ...


class Lookup:
    """vLLM's `ngram_proposer`: the longest n-gram at the end that occurred before, at its earliest place; what followed
    there. It may run into the n-gram itself."""

    def __init__(self, drafter: NgramDrafter) -> None:
        self._drafter = drafter
        self._seen: list[int] = []
        self._first: dict[tuple[int, ...], int] = {}
        """N-gram -> where its earliest occurrence ends."""

    def propose(self, tokens: Sequence[int]) -> list[int]:
        self._read(tokens)
        longest = min(self._drafter.lookup_max, len(tokens) - 1)
        for size in range(longest, self._drafter.lookup_min - 1, -1):
            end = self._first.get(tuple(tokens[-size:]))
            if end is not None and end < len(tokens):
                return list(tokens[end : end + self._drafter.tokens])
        return []

    def _read(self, tokens: Sequence[int]) -> None:
        """Index what is new; a reply only grows, so that each n-gram is read once."""
        if list(tokens[: len(self._seen)]) != self._seen:
            self._seen, self._first = [], {}
        for end in range(len(self._seen) + 1, len(tokens) + 1):
            for size in range(self._drafter.lookup_min, min(self._drafter.lookup_max, end) + 1):
                self._first.setdefault(tuple(tokens[end - size : end]), end)
        self._seen = list(tokens)


class DraftModel:
    """A transformers model that goes on greedily; its cache keeps what was accepted."""

    def __init__(self, folder: Path, tokens: int) -> None:
        self._model = load(folder)
        self._tokens = tokens
        self._seen: list[int] = []
        self._cache: Any = None

    def propose(self, tokens: Sequence[int]) -> list[int]:
        import torch
        from transformers import DynamicCache

        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self._seen, tokens, strict=False)))
        kept = min(same, len(tokens) - 1)
        if self._cache is None or kept == 0:
            self._cache, kept = DynamicCache(), 0
        elif kept < len(self._seen):
            self._cache.crop(kept - len(self._seen))
        feed, proposed = list(tokens[kept:]), []
        with torch.inference_mode():
            for _ in range(self._tokens):
                out = self._model(input_ids=torch.tensor([feed]), cache=self._cache, use_cache=True)
                proposed.append(int(out.logits[0, -1].argmax()))
                feed = proposed[-1:]
        self._seen = [*tokens, *proposed[:-1]]
        return proposed


def load(folder: Path) -> Any:
    """The whole model in bf16, in memory."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{folder}: cannot be loaded as a model with its weights: {first}") from None
    return model.eval().requires_grad_(False)
