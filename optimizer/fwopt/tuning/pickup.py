"""Does vLLM take the files that were written for it? Asked of the vLLM that is installed, as a server would start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fwopt.deploy.kernel_configs import Config, with_edges
from fwopt.errors import InputError
from fwopt.tuning.operators import VLLM_PYTHON, vllm_python
from fwopt.tuning.vllm_lookup import Layer, Question, look_up


@dataclass(frozen=True, slots=True)
class Written:
    """One file, and what vLLM must take from it."""

    file: str
    layer: Layer
    """`tokens`: the sizes that were tuned, those that lie between two of them on either side, and one above all."""
    expected: tuple[Config, ...]
    """By `layer.tokens`."""


def written(file: str, configs: Mapping[int, Config], layer: Layer) -> Written:
    """What was tuned at the size that is nearest by ratio counts, between sizes and beyond them."""
    sizes = sorted(configs)
    asked = (*with_edges(configs), 4 * sizes[-1])
    nearest = (min(sizes, key=lambda size: max(size / tokens, tokens / size)) for tokens in asked)
    return Written(
        file,
        replace(layer, tokens=asked),
        tuple(configs[size] for size in nearest),
    )


def prove(folder: Path, device_name: str, files: Sequence[Written]) -> str:
    """One line that says what was asked and what vLLM answered; InputError where vLLM takes anything else."""
    from fwopt_kernels.apart import Fault, ask_once

    there = vllm_python(VLLM_TUNED_CONFIG_FOLDER=str(folder.resolve()), VLLM_LOGGING_LEVEL="ERROR")
    if there is None:
        return f"not asked whether vLLM takes the files: it is not installed here; set {VLLM_PYTHON} to its Python"
    question = Question(device_name, tuple(one.layer for one in files))
    picks = ask_once(look_up, question, timeout_s=300, elsewhere=there)
    if isinstance(picks, Fault):
        raise InputError(f"{there.python}: vLLM could not be asked which files it takes: {picks.reason}")
    for one, pick in zip(files, picks.layers, strict=True):
        if pick.file != one.file:
            raise InputError(f"{folder / one.file}: vLLM {picks.version} looks for {pick.file} instead")
        for tokens, entry, expected in zip(one.layer.tokens, pick.entries, one.expected, strict=True):
            if entry != dict(expected):
                raise InputError(
                    f"{folder / one.file}: at {tokens} tokens vLLM {picks.version} takes {entry}, and not {expected}; "
                    "VLLM_BATCH_INVARIANT turns tuned files off, and other vLLMs may read other names"
                )
    asked = sum(len(one.layer.tokens) for one in files)
    given = "" if picks.device_name == device_name else f", told that its device is {device_name}"
    return f"vLLM {picks.version}{given} takes them: asked at {asked} sizes of {len(files)} layers"
