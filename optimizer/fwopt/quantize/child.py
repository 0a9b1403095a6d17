"""Programs of others that write a checkpoint: run to their end, their last words in the error."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from fwopt.errors import InputError

_TAIL = 400


def run(command: Sequence[str], what: str, log: Path, env: Mapping[str, str] | None = None) -> str:
    """What it printed. A program that fails is an InputError with the last line of its error output."""
    surroundings = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_WAIT_POLICY": "PASSIVE", **(env or {})}
    try:
        with log.open("wb") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=surroundings, check=False)
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{what}: {command[0]} cannot be run ({error.strerror})") from None
    if done.returncode:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        raise InputError(
            f"{what} failed (status {done.returncode}): {lines[-1][-_TAIL:] if lines else 'it said nothing'}"
        )
    return text
