"""Find a model's config.json (path, local Hugging Face cache, bundled catalogue) and read it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from fwopt.errors import InputError, UnknownNameError
from fwopt.spec.model import ModelSpec
from fwopt.targets.config import Config
from fwopt.targets.parsers import parser
from fwopt.targets.quantization import stored_kv_dtype, stored_quantization, stored_zero_points

_CATALOGUE = Path(__file__).parent / "data" / "models"

SAME_CONFIG: dict[str, str] = {
    "meta-llama/Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Meta-Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Meta-Llama-3.1-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-405B": "meta-llama/Meta-Llama-3.1-405B",
    "meta-llama/Llama-3.1-405B-Instruct": "meta-llama/Meta-Llama-3.1-405B",
    "mistralai/Mixtral-8x7B-Instruct-v0.1": "mistralai/Mixtral-8x7B-v0.1",
    "mistralai/Mixtral-8x22B-Instruct-v0.1": "mistralai/Mixtral-8x22B-v0.1",
    "Qwen/Qwen3-30B-A3B-Thinking-2507": "Qwen/Qwen3-30B-A3B-Instruct-2507",
    "google/gemma-4-26B-A4B-it": "google/gemma-4-26B-A4B",
}
"""Published names whose shape is that of a catalogue entry; the spec keeps the name that was asked for."""


def catalogue_models() -> list[str]:
    """Names of the bundled configs, modelled or not."""
    return sorted(path.stem.replace("--", "/", 1) for path in _CATALOGUE.glob("*.json"))


def load_model(name_or_path: str) -> ModelSpec:
    """`ModelSpec` from a config.json file, a folder with one, a cached Hugging Face id, or the catalogue."""
    file, name, source = find_config(name_or_path)
    return read_model(file, name=name, source=source)


def find_config(name_or_path: str) -> tuple[Path, str, str]:
    """(config.json, or the catalogue's copy of one; the model's name; where that was found)."""
    file = _local(name_or_path)
    if file is not None:
        return file, name_or_path, str(file)
    cached = _cached(name_or_path)
    if cached is not None:
        return cached, name_or_path, f"Hugging Face cache, revision {cached.parent.name}"
    name, entry = _catalogued(name_or_path)
    return _CATALOGUE / f"{entry.replace('/', '--', 1)}.json", name, f"catalogue, {entry}"


def read_model(file: Path, *, name: str, source: str) -> ModelSpec:
    """Parse one config.json; errors name the file and the field."""
    try:
        content = file.read_bytes()
        values: Any = json.loads(content)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{file}: not a readable JSON file: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}: must be a JSON object with the fields of a Hugging Face config.json")
    config = Config(values, name)
    architectures = config.items("architectures", str)
    if not architectures:
        raise InputError(f"{name}: architectures: this field is missing, so the model's family is unknown")
    shape = parser(architectures[0], name)(config)
    stored, group_size = stored_quantization(config, shape.layers, file.parent)
    remarks = [str(values["_fwopt_note"])] if "_fwopt_note" in values else []
    if architectures[0].endswith("ForConditionalGeneration"):
        remarks.append("text model only, vision and audio towers are not counted")
    return ModelSpec(
        name=name,
        architecture=architectures[0],
        hidden_size=shape.hidden_size,
        vocab_size=shape.vocab_size,
        layers=shape.layers,
        max_context_tokens=shape.max_context_tokens,
        tied_embeddings=shape.tied_embeddings,
        checkpoint_quantization=stored,
        checkpoint_group_size=group_size,
        checkpoint_zero_points=stored_zero_points(config, file.parent),
        checkpoint_kv_dtype=stored_kv_dtype(config, file.parent),
        config_digest=config_digest(content),
        source="; ".join([source, *remarks]),
    )


def config_digest(content: bytes) -> str:
    """What tells models apart by their config.json."""
    return hashlib.sha256(content).hexdigest()[:16]


def _local(text: str) -> Path | None:
    """The config.json that a path means; None when there is no such file or folder."""
    path = Path(text).expanduser()
    try:
        if path.is_file():
            return path
        if not path.is_dir():
            if text.startswith(("/", ".", "~")) or text.endswith(".json"):
                raise InputError(
                    f"{text}: no such file or folder; give a config.json, a folder with one, or a model name"
                )
            return None
    except OSError:  # for example a name longer than the file system allows
        return None
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: this folder has no config.json")
    return path / "config.json"


def _cached(name: str) -> Path | None:
    """config.json of `org/name` in the local Hugging Face hub cache; the main revision first, else the newest."""
    if name.count("/") != 1:
        return None
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    folder = hub / f"models--{name.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        file = folder / "snapshots" / main.read_text().strip() / "config.json"
        if file.is_file():
            return file
    found = sorted((folder / "snapshots").glob("*/config.json"), key=lambda f: (f.stat().st_mtime, f.parent.name))
    return found[-1] if found else None


def _catalogued(wanted: str) -> tuple[str, str]:
    """(name to serve, catalogue entry); case does not matter and the organisation may be left out."""
    entries = {name: name for name in catalogue_models()} | SAME_CONFIG
    full = {name.lower(): name for name in entries}
    short = {name.lower().rpartition("/")[2]: name for name in entries}
    name = full.get(wanted.lower()) or short.get(wanted.lower())
    if name is None:
        known = [n.rpartition("/")[2] for n in entries] if "/" not in wanted else list(entries)
        raise UnknownNameError("model", wanted, known, hint="or give the path of a folder with its config.json")
    return name, entries[name]


def local_folder(name: str) -> str | None:
    """Whole path of a model named by a relative one: a server works in a folder of its own. None where the name is
    whole already, or names no folder here."""
    path = Path(name.removesuffix("/config.json"))
    return str(path.absolute()) if not path.is_absolute() and path.is_dir() else None
