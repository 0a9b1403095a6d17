"""`fwopt tune --measure-quality`: a search asks, `fwopt quality` answers, and what it measured once is read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fwopt.errors import InputError, RunFolderError, UnknownNameError
from fwopt.paths import own_quality
from fwopt.quality import study, text
from fwopt.quality.schemes import Scheme, parse_schemes
from fwopt.search.ladder import Stopped, StopReason
from fwopt.search.ledger import Ledger
from fwopt.search.run_folder import RunFolder, RunInputs
from fwopt.search.settings import Settings, parse_engine
from fwopt.spec.engine import EngineSpec
from fwopt.spec.model import ModelSpec
from fwopt.spec.quality import MeasuredQuality, Measuring, QualitySettings
from fwopt.targets import load_model
from fwopt.targets.models import find_config

TRACES = (".jsonl", ".jsonl.gz")
"""Ends of names that hold recorded requests; everything else is plain text."""


def asked(settings: Settings, model: ModelSpec) -> Measuring | None:
    """What to measure on, with everything checked that can be before the search."""
    wanted = settings.measure_quality
    if wanted is None:
        return None
    if not wanted.text and not wanted.workload:
        raise InputError("measure_quality: names no text; add `text:` or `workload:`, or --measure-quality FILE")
    if parse_engine(settings.engine or EngineSpec().name).name == "llamacpp":
        raise InputError("--measure-quality: GGUF files of llama.cpp cannot be measured yet; leave it out")
    if model.checkpoint_quantization is not None:
        raise InputError(
            f"--measure-quality: {model.name} is published quantized, so there is no reference; leave it out"
        )
    folder = _weights(wanted.weights or model.name, model)
    files, traces = (tuple(Path(name) for name in names) for names in (wanted.text, wanted.workload))
    measuring = Measuring(
        model=folder.name if Path(wanted.weights or model.name).exists() else wanted.weights or model.name,
        folder=str(folder),
        files=tuple(map(str, files)),
        traces=tuple(map(str, traces)),
        settings=QualitySettings(window=wanted.window, max_tokens=wanted.max_tokens),
        text_digest=text.digest(files, traces)[:16],
    )
    study.require(_request(measuring, ()), model.vocab_size)
    return measuring


def by_kind(files: Sequence[Path]) -> dict[str, list[str]]:
    """Files of the command line, as fwopt.yaml names them."""
    traces = [str(file) for file in files if file.name.endswith(TRACES)]
    return {"text": [str(file) for file in files if str(file) not in traces], "workload": traces}


def _weights(name: str, model: ModelSpec) -> Path:
    config, _, source = find_config(name)
    if source.startswith("catalogue"):
        raise InputError(
            f"--measure-quality needs the weights of {name}, and only its shape is known here ({source}); name their "
            "folder with --model, or as `measure_quality: {weights: FOLDER}` in fwopt.yaml"
        )
    theirs = load_model(name)
    if (theirs.layers, theirs.hidden_size, theirs.vocab_size) != (model.layers, model.hidden_size, model.vocab_size):
        raise InputError(f"measure_quality: the weights in {name} are of another shape than {model.name}; name its own")
    return config.parent.resolve()


def _request(measuring: Measuring, schemes: tuple[Scheme, ...]) -> study.Request:
    return study.Request(
        model=measuring.model,
        folder=Path(measuring.folder),
        files=tuple(map(Path, measuring.files)),
        traces=tuple(map(Path, measuring.traces)),
        schemes=schemes,
        strict=False,
        settings=measuring.settings,
        home=own_quality(),
    )


def ledger_of(
    inputs: RunInputs, folder: RunFolder, stop: Callable[[], StopReason | None], tell: study.Tell
) -> Ledger | None:
    """None where quality is not measured during the search."""
    measuring = inputs.measuring
    if measuring is None:
        return None
    now = text.digest([Path(name) for name in measuring.files], [Path(name) for name in measuring.traces])[:16]
    if now != measuring.text_digest:
        raise RunFolderError(
            f"{folder.path}: the text that quality is measured on changed since ({measuring.text_digest} then, {now} "
            "now); start a new run"
        )
    return Ledger(inputs.model, inputs.objective, StudyMeasurer(measuring, stop, tell), folder.path / "quality.json")


@dataclass(frozen=True, slots=True)
class StudyMeasurer:
    """Each question is a study of `fwopt quality`: the figures of one text, added to one file. What is wrong with the
    text, the weights or the disk ends the run; what is wrong with a scheme is an answer."""

    measuring: Measuring
    stop: Callable[[], StopReason | None]
    tell: study.Tell

    def measure(self, schemes: Sequence[str]) -> tuple[MeasuredQuality | None, dict[str, str]]:
        failed: dict[str, str] = {}
        known: list[Scheme] = []
        for name in schemes:
            try:
                known += parse_schemes(name)
            except UnknownNameError as error:
                failed[name] = str(error)
        if not known:
            return None, failed
        try:
            results, file = study.run(_request(self.measuring, tuple(known)), self._tell)
        except UnknownNameError as error:  # a family that cannot be streamed
            return None, failed | {scheme.name: str(error) for scheme in known}
        except (RuntimeError, MemoryError) as error:  # what torch raises where it cannot compute
            return self._one_by_one(known, failed, error)
        failed |= {item.name: item.reason for item in results.left_out if item.name in schemes}
        return MeasuredQuality.of(results, file), failed

    def _one_by_one(
        self, known: Sequence[Scheme], failed: dict[str, str], error: RuntimeError | MemoryError
    ) -> tuple[MeasuredQuality | None, dict[str, str]]:
        """One scheme's failure must not take the others along."""
        if len(known) == 1:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return None, failed | {known[0].name: f"computing it failed: {first}"}
        measured: MeasuredQuality | None = None
        for scheme in known:
            found, why = self.measure([scheme.name])
            measured, failed = found or measured, failed | why
        return measured, failed

    def _tell(self, what: str, done: int, total: int) -> None:
        reason = self.stop()
        if reason is not None:
            raise Stopped(reason)
        self.tell(what, done, total)
