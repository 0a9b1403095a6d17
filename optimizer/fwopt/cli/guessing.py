"""What `fwopt speculation` was asked for, checked before anything heavy is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from fwopt.errors import InputError
from fwopt.paths import own_speculation
from fwopt.quality.speculation.study import Request
from fwopt.spec.speculation import ModelDrafter, NgramDrafter, SpeculationSettings
from fwopt.targets.models import find_config


def request(
    model: str,
    files: Sequence[Path],
    traces: Sequence[Path],
    ngrams: Sequence[str],
    drafts: Sequence[str],
    tokens: Sequence[int],
    settings: SpeculationSettings,
    out: Path | None,
) -> Request:
    if not files and not traces:
        raise InputError("`fwopt speculation` needs text: add --text FILE, or --workload TRACE recorded with its text")
    if settings.replies == "recorded" and files:
        raise InputError("--replies recorded: a plain --text holds no replies; leave it out, or take generated ones")
    folder = _folder(model)
    drafters: list[tuple[NgramDrafter | ModelDrafter, Path | None]] = []
    for (low, high), k in product(map(_sizes, ngrams or ([] if drafts else ["2-4"])), dict.fromkeys(tokens)):
        drafters.append((NgramDrafter(tokens=k, lookup_min=low, lookup_max=high), None))
    for name, k in product(dict.fromkeys(drafts), dict.fromkeys(tokens)):
        drafters.append((ModelDrafter(model=name, tokens=k), _folder(name)))
    return Request(
        model=folder.name if Path(model).exists() else model,
        folder=folder,
        files=tuple(files),
        traces=tuple(traces),
        drafters=tuple(drafters),
        settings=settings,
        home=out or own_speculation(),
    )


def _sizes(text: str) -> tuple[int, int]:
    """`2-4`, `3`."""
    found = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", text.strip())
    if found is None or int(found[1]) > int(found[2] or found[1]):
        raise InputError(f"--ngram '{text}': write the fewest and most tokens that must repeat, for example 2-4")
    return int(found[1]), int(found[2] or found[1])


def _folder(model: str) -> Path:
    config, _, source = find_config(model)
    if source.startswith("catalogue"):
        raise InputError(f"{model}: only its shape is known here ({source}); give a folder with its files")
    return config.parent.resolve()
