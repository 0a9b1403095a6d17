"""Kernels in Triton's interpreter, in a process of their own.

Triton decides between interpreting and compiling when a kernel's module is imported. One worker process has the
variable set from its start, so neither the variable nor interpreted kernels reach the other tests of this process.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fwopt_kernels.correctness import differences

Differences = Callable[..., list[str]]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Differences]:
    """`fwopt_kernels.correctness.differences` with kernels interpreted; operators by `module:attribute`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            assert pool.submit(os.getenv, "TRITON_INTERPRET").result() == "1"  # the worker has started

        def run(*arguments: Any, **options: Any) -> list[str]:
            return pool.submit(differences, *arguments, **options).result()

        yield run


def run_apart(code: str, *, interpret: bool) -> None:
    """Run `code` in a process where kernels are interpreted, or compiled, whatever this one does."""
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the module's own; the variables are back as they were after it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
        yield folder
