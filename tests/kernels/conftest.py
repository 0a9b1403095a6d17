"""Kernels in Triton's interpreter, in a process of their own.

Triton decides between interpreting and compiling when a kernel's module is imported. One worker process has the
variable set from its start, so neither the variable nor interpreted kernels reach the other tests of this process.
"""

from __future__ import annotations

import atexit
import functools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fwopt_kernels.correctness import differences

Differences = Callable[..., list[str]]
QUICK = (Path(__file__).parents[1] / "quick_interpreter.py").read_text()


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Differences]:
    """`fwopt_kernels.correctness.differences` with kernels interpreted; operators by `module:attribute`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=exec, initargs=(QUICK, {})) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            assert pool.submit(os.getenv, "TRITON_INTERPRET").result() == "1"  # the worker has started

        def run(*arguments: Any, **options: Any) -> list[str]:
            return pool.submit(differences, *arguments, **options).result()

        yield run


PARENT = """
import json, os, signal, sys, traceback
import torch, triton
for line in sys.stdin:
    code, environment, out = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        os.environ.clear()
        os.environ.update(environment)
        status = 0
        try:
            exec(compile(code, "apart", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Runs each program it is sent in a fork of itself: importing torch and Triton takes longer than most programs do."""


@functools.cache
def _parent(interpret: bool) -> subprocess.Popen[str]:
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
    command = [sys.executable, "-c", QUICK + PARENT if interpret else PARENT]
    parent = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    atexit.register(parent.communicate)
    return parent


def run_apart(code: str, *, interpret: bool) -> None:
    """Run `code` in a process where kernels are interpreted, or compiled, whatever this one does."""
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
    parent = _parent(interpret)
    assert parent.stdin is not None
    assert parent.stdout is not None
    with tempfile.NamedTemporaryFile("r") as out:
        print(json.dumps([code, environment, out.name]), file=parent.stdin, flush=True)
        status = parent.stdout.readline()
        assert status == "0\n", f"{status}{out.read()}"


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the module's own; the variables are back as they were after it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("TRITON_CACHE_DIR", str(folder / "triton"))
        yield folder
