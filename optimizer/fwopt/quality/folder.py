"""One study, one folder: `results.json`, the tokens of each arm, and `work/` while a run is under way."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fwopt.atomic import written_whole
from fwopt.errors import InputError
from fwopt.spec.quality import QualityResults, read_results

if TYPE_CHECKING:
    from fwopt.quality.compare import PerToken

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Files appear whole or not at all."""

    path: Path

    @property
    def results_path(self) -> Path:
        return self.path / RESULTS

    @property
    def work(self) -> Path:
        return self.path / "work"

    def results(self) -> QualityResults | None:
        return read_results(self.results_path) if self.results_path.is_file() else None

    def save(self, results: QualityResults) -> None:
        with written_whole(self.results_path) as path:
            path.write_text(results.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def save_tokens(self, arm: str, found: PerToken) -> None:
        with written_whole(self._tokens(arm)) as path, path.open("wb") as file:
            np.savez_compressed(file, **asdict(found))

    def tokens(self, arm: str) -> PerToken:
        from fwopt.quality.compare import PerToken

        with np.load(self._tokens(arm)) as arrays:
            return PerToken(**{name: arrays[name] for name in PerToken.__dataclass_fields__})

    def has_tokens(self, arm: str) -> bool:
        return self._tokens(arm).is_file()

    def _tokens(self, arm: str) -> Path:
        return self.path / f"{arm}.npz"

    @contextmanager
    def working(self, made_by: dict[str, str]) -> Iterator[Path]:
        """`work/` for this run alone; what an earlier run left there is kept where the same versions made it. It stays
        when the run is stopped, and goes when it ends well."""
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{self.path}: another `fwopt quality` is at work here; wait for it") from None
            note = self.work / "made-by.json"
            if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != made_by:
                shutil.rmtree(self.work)
                self.work.mkdir()
                with written_whole(note) as path:
                    path.write_text(json.dumps(made_by), encoding="utf-8")
            for torn in self.work.glob(".*.tmp"):
                torn.unlink()
            yield self.work
            shutil.rmtree(self.work)
