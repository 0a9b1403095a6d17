"""Compilation of the simulator's loops, cached on disk under a key of *all* their sources.

numba's own cache looks only at the file of the function it stores, so an edit of a callee in another
file would go unseen and stale machine code would run. Here the cache folder's name is the hash of every
source file of this package, hence an edit anywhere compiles anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def _source_hash() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> Path | None:
    """A writable per-user folder, or None: then every process compiles for itself."""
    root = os.environ.get("FWOPT_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(root).expanduser() / "fwopt" / "numba" / _source_hash()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


_FOLDER = _cache_folder()
config: Any = numba.config


_LEAN: dict[str, Any] = {"nogil": True, "_nrt": False, "no_cfunc_wrapper": True}
"""Nothing here allocates: Python owns every array during a call, so numba's reference counting (which pairs an atomic
increment and decrement with each record looked at, and with each array of `Sim` at each call) is switched off. That
makes the loop about four times as fast, and leaves half as much to compile."""


def entry(function: F) -> F:
    """Compile a function that Python calls: without the GIL, cached on disk where possible."""
    return _compile(function, _LEAN)


def compiled(function: F) -> F:
    """Compile a function that only compiled code calls: without a wrapper that takes `Sim` apart for Python."""
    return _compile(function, {**_LEAN, "no_cpython_wrapper": True})


def _compile(function: F, options: dict[str, Any]) -> F:
    if _FOLDER is None:
        return cast(F, numba.njit(**options)(function))
    previous = config.CACHE_DIR
    config.CACHE_DIR = str(_FOLDER)
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    finally:
        config.CACHE_DIR = previous
