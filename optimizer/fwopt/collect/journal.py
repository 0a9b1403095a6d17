"""Answers on disk as they come, one line a probe: a run that is killed goes on where it was."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fwopt.collect.probes import Probe, Sample
from fwopt.errors import InputError
from fwopt.spec.base import SCHEMA_VERSION


@dataclass(slots=True)
class Journal:
    """`path` None keeps nothing."""

    path: Path | None = None
    _known: dict[Probe, list[Sample]] = field(default_factory=dict)

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

    def get(self, probe: Probe) -> list[Sample] | None:
        return self._known.get(probe)

    def __len__(self) -> int:
        return len(self._known)

    def append(self, probe: Probe, samples: list[Sample]) -> None:
        self._known[probe] = samples
        if self.path is None:
            return
        line = json.dumps({"probe": asdict(probe), "samples": [asdict(s) for s in samples]})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """The profile is written: the journal has done its work."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _read(path: Path, head: dict[str, Any]) -> dict[Probe, list[Sample]]:
    """A last line cut short by a crash is left out, and removed so that what follows starts a line of its own."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.splitlines()
    try:
        first = json.loads(lines[0]) if lines else {}
        known = {}
        for line in lines[1:]:
            entry = json.loads(line)
            known[Probe(**entry["probe"])] = [Sample(**s) for s in entry["samples"]]
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
