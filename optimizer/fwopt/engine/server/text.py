"""Text to tokens and back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fwopt.errors import InputError


class Tokenizer(Protocol):
    def encode(self, text: str, special: bool) -> list[int]:
        """`special`: with the tokens that the model wants around a text."""
        ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class FileTokenizer:
    """A tokenizer of the `tokenizers` library."""

    def __init__(self, loaded: Any, begin: int | None = None) -> None:
        """`begin`: a token to put before a text, where the tokenizer itself does not."""
        self._loaded, self._begin = loaded, begin

    def encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self._loaded.encode(text, add_special_tokens=special).ids
        return [self._begin, *ids] if special and self._begin is not None else ids

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self._loaded.decode(tokens, skip_special_tokens=True)
        return text


class Numbers:
    """For a model without a tokenizer: prompts must be token ids, and a token's text is its number and a space."""

    def encode(self, text: str, special: bool) -> list[int]:
        raise InputError("this model has no tokenizer.json: prompt must be a list of token ids")

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(f"{token} " for token in tokens)


class Detokenizer:
    """Text of a growing list of tokens. Bytes of an unfinished character wait for the rest of it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._shown = ""
        """Text of `_tokens[:_read]`, with which the text of all of them begins."""
        self._read = 0

    def add(self, token: int, last: bool = False) -> str:
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        if text.endswith("�") and not last and len(self._tokens) - self._read < 8:
            return ""
        new = text[len(self._shown) :]
        del self._tokens[: self._read]  # the tokens just shown stay as context: spaces depend on it
        self._read = len(self._tokens)
        self._shown = self._tokenizer.decode(self._tokens)
        return new


class StopStrings:
    """Cuts text at the first stop string; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def add(self, text: str, last: bool = False) -> str:
        if not self._stops:
            return text
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.hit = True
            return self._held[: min(found)]
        keep = 0 if last else max(_overlap(self._held, stop) for stop in self._stops)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))


class ChatTemplate:
    """The tokenizer's Jinja template, run in a sandbox."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        self._template = environment.from_string(source)
        self._special = special

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        return self._template.render(messages=messages, add_generation_prompt=True, **self._special)


def _raise(message: str) -> None:
    raise InputError(f"the chat template refuses these messages: {message}")


def load_text(place: Path) -> tuple[Tokenizer, ChatTemplate | None]:
    """From a model's folder, or from a GGUF file."""
    if place.suffix == ".gguf":
        from fwopt.engine.server.gguf_text import load_gguf_text

        return load_gguf_text(place)
    file = place / "tokenizer.json"
    if not file.is_file():
        return Numbers(), None
    from tokenizers import Tokenizer as Loaded

    return FileTokenizer(Loaded.from_file(str(file))), _chat_template(place)


def _chat_template(folder: Path) -> ChatTemplate | None:
    """From `chat_template.jinja` or `tokenizer_config.json`; None when the model has none."""
    config_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = json.loads(config_file.read_text()) if config_file.is_file() else {}
    source = template_file.read_text() if template_file.is_file() else config.get("chat_template")
    if isinstance(source, list):  # several, by name
        source = next((t["template"] for t in source if t.get("name") == "default"), None)
    if source is None:
        return None
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        special[name] = value.get("content", "") if isinstance(value, dict) else value or ""
    return ChatTemplate(source, special)
