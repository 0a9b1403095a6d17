"""A file appears under its name only when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fwopt.errors import InputError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write to the path that this yields: it takes the place of `path` at the end, or vanishes. Else InputError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield beside
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
