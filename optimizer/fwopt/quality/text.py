"""Texts to compare on: plain files, and requests that were recorded with their text."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from fwopt.errors import InputError
from fwopt.quality.windows import Document
from fwopt.workload.builder import Builder
from fwopt.workload.formats.tokens import ChatTokenizer
from fwopt.workload.source import Source, TooLong


def labels(files: Sequence[Path]) -> list[str]:
    """A class for each file: its name, the folder before it where two are called alike."""
    names = [file.name.removesuffix(".gz") for file in files]
    return [name if names.count(name) == 1 else str(file) for name, file in zip(names, files, strict=True)]


def digest(files: Sequence[Path], traces: Sequence[Path]) -> str:
    """Of what the files hold and what they are called: nothing needs to be tokenized to know a text again."""
    seen = hashlib.sha256()
    for kind, paths in (("text", files), ("trace", traces)):
        for label, path in zip(labels(paths), paths, strict=True):
            seen.update(f"{kind}:{label}:{hashlib.sha256(_bytes(path)).hexdigest()}\n".encode())
    return seen.hexdigest()


def tokenizer_file(folder: Path) -> Path:
    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: has no tokenizer.json; download the model's tokenizer files")
    return folder / "tokenizer.json"


def tokens_digest(folder: Path, *, chats: bool) -> str:
    """Of the files that make tokens of a text: the tokenizer, and where chats are rendered, their template and special
    tokens."""
    seen = hashlib.sha256(tokenizer_file(folder).read_bytes())
    for file in [folder / "tokenizer_config.json", folder / "chat_template.jinja"] if chats else ():
        seen.update(hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b"-")
    return seen.hexdigest()


class Reader:
    """Documents by a model's own tokenizer and chat template."""

    def __init__(self, folder: Path) -> None:
        self._chat = ChatTokenizer(folder, "MODEL")

    def prefix(self) -> list[int]:
        """Tokens that the model wants before a text."""
        return list(self._chat.prompt({"prompt": ""}, Builder("text", {})))

    def file(self, path: Path, label: str) -> Document:
        content = _bytes(path)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: must be UTF-8 text; byte {error.start} is not") from None
        if not text.strip():
            raise InputError(f"{path}: holds no text")
        return Document(label, self._chat.plain(text))

    def trace(self, path: Path, label: str) -> Iterator[Document]:
        """Prompt and reply of each request as the model read and wrote them."""
        for prompt, reply in self.exchanges(path):
            yield Document(label, [*prompt, *reply])

    def exchanges(self, path: Path) -> Iterator[tuple[list[int], list[int]]]:
        """(prompt, reply) of each request that has its text."""
        builder, found, source = Builder(str(path), {}), 0, Source(path)
        for number, line in source.lines():
            builder.line = number
            row = _object(line)
            if row is None and source.unended(number):
                continue  # a recorder that was killed: its last line was never a request
            if row is None:
                raise InputError(
                    f"{path}: line {number} must be one JSON object; give a trace of `fwopt record --with-text`"
                )
            text = row.get("text")
            if isinstance(text, dict) and ("messages" in text or "prompt" in text):
                found += 1
                yield self._prompt(text, builder), self._chat.plain(_reply(text.get("reply")))
        if not found:
            raise InputError(f"{path}: no request has its text; record with `fwopt record --with-text`")

    def _prompt(self, text: dict[str, Any], builder: Builder) -> list[int]:
        tools = [{"type": "function", "function": function} for function in text.get("functions", ())]
        return self._chat.prompt(
            {"messages": text.get("messages"), "prompt": text.get("prompt"), "tools": tools or None}, builder
        )


def _object(line: bytes | TooLong) -> dict[str, Any] | None:
    """None: something else."""
    try:
        row = orjson.loads(line) if isinstance(line, bytes) else None
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None


def _reply(reply: Any) -> str:
    """Words that the model wrote; of tool calls, their arguments."""
    if isinstance(reply, str):
        return reply
    parts = []
    for message in reply or ():
        content = message.get("content")
        parts.append(content if isinstance(content, str) else "")
        parts += [call.get("function", {}).get("arguments", "") for call in message.get("tool_calls") or ()]
    return "".join(parts)


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
