"""Where the engines' executables are: a variable that names one, or the command on PATH."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from fwopt.errors import InputError


def python_module(variable: str, module: str, command: str) -> list[str]:
    """`$VARIABLE -m module`, or `command` on PATH; InputError that names both when there is neither."""
    python = os.environ.get(variable)
    if python:
        return [_executable(variable, python), "-m", module]
    found = shutil.which(command)
    if found is None:
        raise InputError(
            f"{command} is not installed here: set {variable} to the Python interpreter that has it, or put "
            f"'{command}' on PATH"
        )
    return [found]


def program(variable: str, command: str) -> list[str]:
    """`$VARIABLE`, or `command` on PATH; InputError that names both when there is neither."""
    path = os.environ.get(variable)
    if path:
        return [_executable(variable, path)]
    found = shutil.which(command)
    if found is None:
        raise InputError(f"{command} is not installed here: set {variable} to its path, or put it on PATH")
    return [found]


def _executable(variable: str, path: str) -> str:
    if not (Path(path).is_file() and os.access(path, os.X_OK)):
        raise InputError(f"{variable}: must be an executable file, got '{path}'")
    return str(Path(path).absolute())
