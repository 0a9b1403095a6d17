"""One error tree. Every expected failure is a `FwoptError`: one line for the user, exit status 2.

A message states the rule, the value received and the next action. Anything that is not a
`FwoptError` is a bug and keeps its traceback. Only the CLI exits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def plain(text: str) -> str:
    """A name from outside on one line: control characters, ANSI escapes among them, become `?`."""
    return "".join(c if c.isprintable() else "?" for c in text)


class FwoptError(Exception):
    """Base of every expected error; `str(error)` is the single line shown to the user."""


class InputError(FwoptError):
    """A file or value handed to fwopt breaks a stated rule."""


class TraceError(InputError):
    """One bad line of a trace: `file:line: field: rule, value`."""

    def __init__(self, file: str, line: int | None, field: str, rule: str, value: object) -> None:
        self.file, self.line, self.field, self.rule, self.value = file, line, field, rule, value
        where = f"{file}:{line}" if line is not None else file
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{where}: {field}: {rule}, got {shown}")


class UnknownNameError(InputError):
    """A name that is in no catalogue; suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(set(known))
        lowered = {n.lower(): n for n in names}
        near = [lowered[n] for n in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.4)]
        offer = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(names[:12])}"
        super().__init__(f"unknown {kind} '{name}'; {offer}{'; ' + hint if hint else ''}")


class UnmeasuredError(FwoptError):
    """An operator or device for which no profile, bound or stated prior exists."""


class NothingFitsError(FwoptError):
    """No candidate survives: the message names the nearest miss and what would have to give."""


class RunFolderError(FwoptError):
    """A run folder is missing, incomplete, foreign or not writable."""
