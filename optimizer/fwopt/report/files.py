"""Writes the reports into a run folder: both files appear whole, or none changes."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fwopt.errors import RunFolderError
from fwopt.report import html, markdown
from fwopt.spec.outcome import Trial
from fwopt.spec.plan import Plan


def write(plan: Plan, trials: Sequence[Trial], folder: Path) -> list[Path]:
    """`report.html` and `report.md`; rendered first, put in place last."""
    texts = {"report.html": html.render(plan, trials), "report.md": markdown.render(plan, trials)}
    ready: list[tuple[Path, Path]] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            ready.append((Path(temporary), folder / name))
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).chmod(0o644)
        for temporary_path, path in ready:
            temporary_path.replace(path)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written: {error.strerror or error}; name another folder") from None
    finally:
        for temporary_path, _ in ready:
            with contextlib.suppress(OSError):
                temporary_path.unlink(missing_ok=True)
    return [path for _, path in ready]
