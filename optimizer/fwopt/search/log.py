"""`trials.jsonl`: the one truth of a run. Append-only, fsynced line by line, tolerant to a torn last line."""

from __future__ import annotations

import errno
import os
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import ValidationError

from fwopt.errors import RunFolderError
from fwopt.spec.outcome import Trial

Key = tuple[str, float, bool]
"""(candidate id, rate scale, simulated past the roofline)."""


class TrialLog:
    """Trials in order of number; each (candidate, rate) once. A line with a number that was there before takes that
    trial's place: its candidate fell since, or a goal got its value. `path` None keeps them in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.trials: list[Trial] = []
        self._known: dict[Key, Trial] = {}
        self._file: FileIO | None = None

    def load(self) -> Self:
        """Take over what an earlier process wrote; a torn last line is cut off."""
        assert self.path is not None
        if not self.path.exists():
            return self
        trials, whole = read_trials(self.path)
        for trial in trials:
            self._remember(trial)
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)
        return self

    def get(self, key: Key) -> Trial | None:
        return self._known.get(key)

    def append(self, trial: Trial) -> None:
        """On disk before it counts."""
        self._write(trial)
        self._remember(trial)

    def amend(self, trial: Trial) -> None:
        """In place of the trial of that number."""
        self._write(trial)
        self.trials[trial.number] = trial
        self._known[_key(trial)] = trial

    def _write(self, trial: Trial) -> None:
        if self.path is not None:
            try:
                if self._file is None:
                    self._file = self.path.open("ab", buffering=0)
                line = trial.model_dump_json().encode() + b"\n"
                if self._file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file.fileno())
            except OSError as error:
                raise RunFolderError(f"{self.path} cannot be written: {error.strerror or error}; what is there stays, "
                                     "`--resume` goes on") from None  # fmt: skip

    def _remember(self, trial: Trial) -> None:
        self.trials.append(trial)
        self._known[_key(trial)] = trial

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _key(trial: Trial) -> Key:
    return trial.candidate.id, trial.rate_scale, trial.role == "nearest"


def read_trials(path: Path) -> tuple[list[Trial], int]:
    """Trials of a file, as amended, and how many of its bytes are whole lines; a torn last line is a trial that never
    finished."""
    try:
        data = path.read_bytes()
    except OSError as error:
        hint = "name the folder that `fwopt tune` wrote"
        raise RunFolderError(f"{path} cannot be read: {error.strerror}; {hint}") from None
    whole = data.rfind(b"\n") + 1
    trials: list[Trial] = []
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            trial = Trial.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise RunFolderError(f"{path}:{number}: not a trial: {where}{first['msg']}") from None
        if trial.number < len(trials) and trials[trial.number].candidate.id == trial.candidate.id:
            trials[trial.number] = trial
        else:
            trials.append(trial)
    return trials, whole
