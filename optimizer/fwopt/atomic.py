"""A file or a folder appears under its name only when it is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fwopt.errors import InputError


def refuse_special(path: Path) -> None:
    """Devices and pipes cannot be replaced: they would be gone for every other program."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: is no regular file; name a file to write")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write to the path that this yields: it takes the place of `path` at the end, or vanishes. Else InputError.

    A link stays, and the file that it names is replaced.
    """
    try:
        refuse_special(path)
        target = Path(os.path.realpath(path)) if path.is_symlink() else path
        beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            yield beside
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None


def hidden_beside(target: Path) -> Path:
    """A new hidden folder on the same disk, to be renamed into place."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise InputError(f"{target.parent}: cannot be written ({error.strerror}); choose another --out") from None


@contextmanager
def folder_written_whole(target: Path) -> Iterator[Path]:
    """Fill the folder that this yields: it takes the place of `target`, old content and all, or vanishes."""
    work = hidden_beside(target)
    try:
        work.chmod(0o755)
        yield work
        if target.exists():
            shutil.rmtree(target)
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
