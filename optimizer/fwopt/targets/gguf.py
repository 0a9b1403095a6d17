"""Names of GGUF files: which file holds a model in one format, and what to do when none does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from fwopt.errors import InputError
from fwopt.spec.candidate import Gguf


def file_name(model: str, quantization: Gguf) -> str:
    """`Qwen/Qwen3-8B` in Q8_0 -> `Qwen3-8B-Q8_0.gguf`, as such files are named everywhere."""
    return f"{base_name(model)}-{quantization.type}.gguf"


def base_name(model: str) -> str:
    """The model's own name without its owner, folder or file ending; `model` may be a GGUF file of any format."""
    name = Path(model.removesuffix("/config.json")).name
    if name.endswith(".gguf"):
        types = "|".join(Gguf.model_fields["type"].annotation.__args__)  # type: ignore[union-attr]
        name = re.sub(rf"[-.]({types})$", "", name.removesuffix(".gguf"))
    return name


def find(folder: Path, model: str, quantization: Gguf) -> Path:
    """The file in `folder` that holds the model in this format; InputError that names the command which makes it.

    Files are told apart by format, and by name where several models lie together.
    """
    wanted = folder / file_name(model, quantization)
    if wanted.is_file():
        return wanted
    ending = re.compile(rf"[-.]{quantization.type}\.gguf$", re.IGNORECASE)
    others = sorted(p for p in folder.glob("*.gguf") if ending.search(p.name)) if folder.is_dir() else []
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(p.name for p in others)
        raise InputError(f"{folder}: several files are in {quantization.type} ({names}); name one of them")
    raise InputError(f"{wanted}: no such file; {advice(folder, model, quantization)}")


def present(folder: Path, model: str) -> list[tuple[Gguf, Path]]:
    """Every format of the model that lies in `folder`, least compressed first."""
    found = []
    for name in get_args(Gguf.model_fields["type"].annotation):
        quantization = Gguf(type=name)
        try:
            found.append((quantization, find(folder, model, quantization)))
        except InputError:  # not there, or several models' files: neither is this model's
            continue
    return found


def advice(folder: Path, model: str, quantization: Gguf) -> str:
    """How to make the missing file."""
    wanted, source = folder / file_name(model, quantization), folder / file_name(model, Gguf(type="F16"))
    if quantization.type in ("F16", "BF16"):
        kind = quantization.type.lower()
        return f"make it: convert_hf_to_gguf.py MODEL_FOLDER --outtype {kind} --outfile {wanted} (of llama.cpp)"
    return f"make it: llama-quantize {source} {wanted} {quantization.type}"
