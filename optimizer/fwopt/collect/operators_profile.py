"""A model's operators, all-reduces and one whole layer, timed with torch, into the store under the engine `fwopt`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fwopt import __version__
from fwopt.collect.collectives import all_reduce_rows
from fwopt.collect.journal import Journal
from fwopt.collect.machine import describe, load_words, require_quiet, today, wait_until_quiet
from fwopt.collect.operators import Bench, Task, layer, tasks, torch_variant
from fwopt.collect.probes import Row
from fwopt.errors import InputError
from fwopt.perf.environment import Measured
from fwopt.perf.store import open_profile
from fwopt.perf.write import NewTable, add_measurements
from fwopt.spec.hardware import DeviceSpec
from fwopt.spec.model import ModelSpec

ENGINE = "fwopt"
"""The reference engine runs these very operators."""
SUBJECTS = {
    "gemm": ("dtype", "n", "k"),
    "decode_attention": ("kv_dtype", "heads", "kv_heads", "head_dim", "window"),
    "prefill_attention": ("dtype", "kv_dtype", "heads", "kv_heads", "head_dim", "window"),
    "all_reduce": ("mode", "gpus"),
    "layer": ("model", "scheme"),
}
"""Per table, the columns that name what rows are of: those measured anew replace the old."""
LAYER_TOKENS = (1, 64, 512, 2048)


@dataclass(slots=True)
class OperatorsRun:
    """One run of `fwopt profile --operators`."""

    model: ModelSpec
    device: DeviceSpec
    out: Path
    tp: int = 1
    ranks: int = 1
    """Processes to time all-reduces between; 1: none."""
    quick: bool = False
    resume: bool = False
    allow_busy: bool = False
    say: Callable[[str], None] = lambda text: None
    on_task: Callable[[str, int, int], None] = lambda name, at, total: None
    _noise: list[float] = field(default_factory=list)

    @property
    def what(self) -> str:
        return f"operators of {self.model.name} tp{self.tp}"

    @property
    def torch_device(self) -> str:
        return "cpu" if self.device.kind == "cpu" else "cuda"

    def known(self) -> Measured | None:
        """An earlier measurement of the same in `out`."""
        folder = self.out / self.device.name / f"{ENGINE}-{__version__}"
        if not (folder / "environment.json").exists():
            return None
        return next((m for m in open_profile(folder).environment.measured if m.what == self.what), None)

    def measure(self) -> Path:
        """Time everything, and keep it: the profile's folder."""
        require_quiet(self.allow_busy, self.say)
        bench = Bench(self.torch_device, _variant(self.torch_device))
        load_before = load_words()
        name = f"{self.device.name}-operators-{self.model.config_digest}-tp{self.tp}.jsonl"
        head = {"subject": self.what, "device": self.device.name, "variant": bench.variant, "quick": self.quick}
        journal = Journal.open(self.out / ".unfinished" / name, head, resume=self.resume)
        found: dict[str, list[Row]] = {}
        work = [*tasks(self.model, bench.device, self.tp, quick=self.quick), *self._layers(bench.device)]
        for at, task in enumerate(work):
            question = f"{task.table} {task.shape}"
            self.on_task(f"{task.table} {_short(task)}", at, len(work))
            answer = journal.get(question)
            if answer is None:
                if at % 20 == 0 and not self.allow_busy:
                    self._noise.append(wait_until_quiet(self.say))
                answer = [dict(bench.row(task))]
                journal.append(question, answer)
            found.setdefault(task.table, []).extend(answer)
        reduced = all_reduce_rows(self.ranks, bench.device, bench.variant)
        if reduced:
            found["all_reduce"] = reduced
        folder = self._keep(found, bench.variant, load_before)
        journal.close()
        return folder

    def _layers(self, device: str) -> list[Task]:
        if self.tp > 1:
            return []
        return [layer(self.model, group, tokens, device) for group in self.model.layers[:1] for tokens in LAYER_TOKENS]

    def _keep(self, found: dict[str, list[Row]], variant: str, load_before: str) -> Path:
        device = self.device
        measured = Measured(
            what=self.what,
            date=today(),
            fwopt_version=__version__,
            machine=describe(),
            load=f"before: {load_before}; after: {load_words()}",
            command=variant,
            notes=(
                "median of repeats over rotating weights and caches, so that none is warm from the call before",
                *(("each in a CUDA graph: launches are not in the times",) if device.kind == "gpu" else ()),
            ),
        )
        tables = {name: NewTable(rows, SUBJECTS[name], kernels=(variant,)) for name, rows in found.items()}
        return add_measurements(self.out, device.name, device.full_name, ENGINE, __version__, tables, measured)


def _variant(device: str) -> str:
    try:
        return torch_variant(device)
    except ImportError:
        raise InputError(
            "operators are timed with torch, which is not installed; pip install 'fwopt[engine]'"
        ) from None


def _short(task: Task) -> str:
    return " ".join(f"{key}={value}" for key, value in task.shape.items() if key in ("m", "n", "k", "batch", "context",
                                                                                     "length", "tokens"))  # fmt: skip
