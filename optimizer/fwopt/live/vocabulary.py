"""Which tokens rebuilt prompts are made of: ordinary ones, never special."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fwopt.errors import InputError

LEAST_TOKENS = 64
"""Fewer different tokens than this make no prompts worth the name."""
_WORD = re.compile(" [A-Za-z]{2,12}")


@dataclass(frozen=True)
class Vocabulary:
    """Token ids to choose from; `texts` are set when prompts are to be sent as text."""

    ids: NDArray[np.int32]
    source: Literal["tokenizer", "given", "assumed"]
    texts: tuple[str, ...] = ()
    """Text of each id: a space and a word that encodes to this one token, whatever words stand beside it."""
    tokenizer: Any = None
    """The `tokenizers.Tokenizer` that text prompts are checked with."""

    @cached_property
    def added_tokens(self) -> int:
        """Tokens that the server's tokenizer puts around every text prompt (usually a begin-of-text)."""
        return len(self.tokenizer.encode("", add_special_tokens=True).ids) if self.tokenizer is not None else 0


def assumed() -> Vocabulary:
    """Ids 1,000 to 30,999: ordinary tokens in every tokenizer of 32,000 entries or more known to us.

    Special tokens stand at the beginning (Llama 2, SmolLM2, Gemma) or behind the ordinary ones (Llama 3, Qwen).
    """
    return Vocabulary(_range(1_000, 31_000), "assumed")


def given(first: int, end: int) -> Vocabulary:
    """Ids from `first` up to, not including, `end`."""
    if first < 0 or end - first < LEAST_TOKENS:
        raise InputError(f"a vocabulary range needs at least {LEAST_TOKENS} ids from 0 on, got {first}:{end}")
    return Vocabulary(_range(first, end), "given")


def _range(first: int, end: int) -> NDArray[np.int32]:
    return np.arange(first, end, dtype=np.int32)


def load_tokenizer(path: Path) -> Any:
    """A `tokenizer.json`, or the folder that holds one."""
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such tokenizer; name a tokenizer.json or a model folder that has one")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise InputError("reading a tokenizer needs the tokenizers package: pip install 'fwopt[tokenizer]'") from None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise InputError(f"{file}: is no tokenizer.json: {error}") from None


def from_tokenizer(path: Path) -> Vocabulary:
    """Every id except special and added ones."""
    return Vocabulary(_checked(_ordinary(load_tokenizer(path)), path), "tokenizer")


def _ordinary(tokenizer: Any) -> list[int]:
    added = {int(i) for i in tokenizer.get_added_tokens_decoder()}
    return sorted(set(tokenizer.get_vocab(with_added_tokens=False).values()) - added)


def words_of(path: Path) -> Vocabulary:
    """Ids of whole words with a leading space: text made of them encodes to exactly these ids."""
    tokenizer = load_tokenizer(path)
    ids = _ordinary(tokenizer)
    anchor = " the"  # decoders strip a space at the very beginning
    base = tokenizer.encode(anchor, add_special_tokens=False).ids
    decoded = tokenizer.decode_batch([[*base, i] for i in ids])
    before = tokenizer.decode(base)
    candidates = [
        (i, text[len(before) :]) for i, text in zip(ids, decoded, strict=True) if _WORD.fullmatch(text[len(before) :])
    ]
    encoded = tokenizer.encode_batch([anchor + text + text for _, text in candidates], add_special_tokens=False)
    kept = [(i, text) for (i, text), e in zip(candidates, encoded, strict=True) if e.ids == [*base, i, i]]
    checked = _checked([i for i, _ in kept], path)
    return Vocabulary(checked, "tokenizer", tuple(text for _, text in kept), tokenizer)


def _checked(ids: list[int], path: Path) -> NDArray[np.int32]:
    if len(ids) < LEAST_TOKENS:
        raise InputError(f"{path}: needs at least {LEAST_TOKENS} ordinary tokens to build prompts, has {len(ids)}")
    return np.asarray(ids, dtype=np.int32)
