"""What `fwopt quality` was asked for, checked before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fwopt.errors import InputError
from fwopt.paths import own_quality
from fwopt.quality.schemes import parse_schemes
from fwopt.quality.study import Request
from fwopt.spec.quality import QualitySettings
from fwopt.targets.models import find_config


def request(
    model: str,
    files: Sequence[Path],
    traces: Sequence[Path],
    schemes: str | None,
    out: Path | None,
    *,
    max_tokens: int,
    window: int,
    seed: int,
    dtype: Literal["bf16", "fp32"],
) -> Request:
    if not files and not traces:
        raise InputError("`fwopt quality` needs text: add --text FILE, or --workload TRACE recorded with its text")
    if max_tokens < window:
        raise InputError(
            f"--max-tokens {max_tokens} is less than a window of {window} tokens; raise it, or lower --window"
        )
    config, name, source = find_config(model)
    if source.startswith("catalogue"):
        raise InputError(f"{model}: only its shape is known here ({source}); give a folder with its weights")
    return Request(
        model=config.resolve().parent.name if Path(name).exists() else name,
        folder=config.parent,
        files=tuple(files),
        traces=tuple(traces),
        schemes=parse_schemes(schemes),
        strict=schemes is not None,
        settings=QualitySettings(window=window, max_tokens=max_tokens, seed=seed, dtype=dtype),
        home=out or own_quality(),
    )
