"""Answers on disk as they come, one line a question: a run that is killed goes on where it was."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fwopt.errors import InputError
from fwopt.spec.base import SCHEMA_VERSION

Answer = list[dict[str, Any]]
"""Flat records; what they hold is up to who asks."""


@dataclass(slots=True)
class Journal:
    """Question -> answer. `path` None keeps nothing on disk."""

    path: Path | None = None
    _known: dict[str, Answer] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, subject: dict[str, Any], *, resume: bool) -> Journal:
        """A new journal, or that of an earlier run of the same subject; another subject's is refused."""
        head = {"schema_version": SCHEMA_VERSION, **subject}
        if resume and path.exists():
            return cls(path, _read(path, head))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out") from None
        return cls(path)

    def get(self, question: str) -> Answer | None:
        return self._known.get(question)

    def __len__(self) -> int:
        return len(self._known)

    def append(self, question: str, answer: Answer) -> None:
        self._known[question] = answer
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"question": question, "answer": answer}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """The profile is written: the journal has done its work."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(path: Path, head: dict[str, Any]) -> dict[str, Answer]:
    """A last line cut short by a crash is left out, and removed so that what follows starts a line of its own."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    whole = content[: content.rfind(b"\n") + 1]
    try:
        first, *entries = (json.loads(line) for line in whole.splitlines())
        known = {str(entry["question"]): list(entry["answer"]) for entry in entries}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: is not the journal of a profile; remove it, or leave out --resume") from None
    if first != head:
        differ = sorted(k for k in head if first.get(k) != head[k])
        raise InputError(
            f"{path}: was begun with other {', '.join(differ)} ({', '.join(str(first.get(k)) for k in differ)}); "
            "remove it, or leave out --resume"
        )
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return known
