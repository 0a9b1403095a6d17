"""A vLLM configuration as people keep it (a `--config` YAML file or a `vllm serve` command) -> flat `key: text`."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fwopt.errors import InputError
from fwopt.spec.strict_yaml import Loader

MAX_BYTES = 1 << 20
"""No engine configuration is larger; a trace or a checkpoint named by mistake is refused before it is parsed."""

SHORT = {
    "-tp": "tensor-parallel-size",
    "-pp": "pipeline-parallel-size",
    "-dp": "data-parallel-size",
    "-ep": "enable-expert-parallel",
    "-q": "quantization",
    "-O": "optimization-level",
}
"""vLLM's own short flags that matter here."""

SWITCHES = frozenset(("enable-prefix-caching", "enable-chunked-prefill", "enable-expert-parallel"))
"""Flags without a value; `no-` turns them off."""

_DIRECTIVE = re.compile(r"^\s*#\s*fwopt:\s*([a-z_]+)\s*=\s*(.*?)\s*$", re.MULTILINE)


@dataclass(slots=True)
class Settings:
    """What a file says, before any of it means something."""

    file: str
    values: dict[str, str] = field(default_factory=dict)
    """Key with dashes, without leading ones -> its value as text; a switch that is on is `true`, off `false`."""
    directives: dict[str, str] = field(default_factory=dict)
    """`# fwopt: key=value` comment lines: what vLLM has no key for."""
    ignored_false: list[str] = field(default_factory=list)
    """Keys that a YAML file sets to `false` outright; what that means depends on vLLM's version."""
    notes: list[str] = field(default_factory=list)

    def put(self, key: str, value: str) -> None:
        """Set one key; `no-x` is x off, and a switch's words become true or false."""
        name, on = (key[3:], False) if key.startswith("no-") else (key, True)
        if name in SWITCHES or not on:
            if value.lower() not in ("true", "false"):
                raise InputError(f"{self.file}: {key}: is a switch and takes no value but true, got '{value}'")
            value = "true" if (value.lower() == "true") == on else "false"
        self.values[name] = value


def load(path: Path) -> Settings:
    """Read a file of either kind; the kind follows from the ending, or from the text where that says nothing."""
    text = _text(path)
    settings = Settings(str(path))
    for key, value in _DIRECTIVE.findall(text):
        if settings.directives.setdefault(key, value) != value:
            raise InputError(f"{path}: '# fwopt: {key}=' says {settings.directives[key]} and {value}; keep one of them")
    if path.suffix in (".yaml", ".yml"):
        _from_yaml(settings, text)
    elif re.search(r"\bvllm\b[^\n]*\bserve\b|vllm\.entrypoints", text):
        _from_command(settings, text, path.parent)
    else:
        raise InputError(
            f"{path}: must be a YAML file (.yaml, .yml) for `vllm serve --config`, or hold a `vllm serve` command"
        )
    return settings


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name a vLLM config, for example config.yaml") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise InputError(f"{path}: a vLLM config must be at most {MAX_BYTES:,} bytes, this file is larger")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: must be UTF-8 text, got byte {raw[error.start]:#04x} at offset {error.start}"
        ) from None
    if "\0" in text:
        raise InputError(f"{path}: must be text, got a NUL character")
    return text


class _Loader(Loader):
    """To vLLM, dashes and underscores are one."""

    def spelled(self, key: Any) -> str:
        return str(key).replace("_", "-")


def _from_yaml(settings: Settings, text: str) -> None:
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise InputError(f"{settings.file}{where}: must be YAML: {problem}") from None
    except RecursionError:
        raise InputError(f"{settings.file}: must be a flat YAML file, got one nested too deeply") from None
    if not isinstance(tree, dict) or not tree:
        raise InputError(f"{settings.file}: must be a YAML mapping of vLLM's flags, for example 'max-num-seqs: 256'")
    for key, value in tree.items():
        if not isinstance(key, str):
            raise InputError(f"{settings.file}: keys must be vLLM's flag names, got {key!r}")
        name = key.removeprefix("--").replace("_", "-")
        if value is False:
            settings.ignored_false.append(name)
        else:
            settings.put(name, _scalar(value))


def _scalar(value: object) -> str:
    if value is True:
        return "true"
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return str(value)


def _from_command(settings: Settings, text: str, folder: Path) -> None:
    """Flags of the first `vllm serve` (or `python -m vllm.entrypoints...`) command; its `--config` is read first."""
    words = _words(settings.file, text)
    start = _start(words)
    for word in words[:start]:
        if re.match(r"^(VLLM|CUDA)_\w+=", word):
            settings.notes.append(f"environment {word}: not modelled")
    rest = list(_until_next_command(words[start:]))
    flags: list[tuple[str, str]] = []
    if rest and not rest[0].startswith("-"):
        flags.append(("model", rest.pop(0)))
    while rest:
        flags.append(_flag(settings.file, rest))
    for name, value in flags:
        if name == "config":
            base = load(folder / value)
            settings.values, settings.ignored_false = base.values | settings.values, base.ignored_false
            settings.directives = base.directives | settings.directives
            settings.notes += base.notes
    for name, value in flags:
        if name != "config":
            settings.put(name, value)
            bare = name.removeprefix("no-")
            settings.ignored_false = [key for key in settings.ignored_false if key != bare]


def _words(file: str, text: str) -> list[str]:
    bare = re.sub(r"(?m)(^|(?<=\s))#.*$", "", text).replace("\\\n", " ")
    lexer = shlex.shlex(bare, posix=True, punctuation_chars=";&|\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    try:
        return list(lexer)
    except ValueError as error:
        raise InputError(f"{file}: must be a shell command: {str(error).lower()}") from None


def _start(words: list[str]) -> int:
    """Index of the first word after `vllm serve` or after the server module's name."""
    for i, word in enumerate(words):
        if word.startswith("vllm.entrypoints"):
            return i + 1
        if word == "serve" and i and words[i - 1].rpartition("/")[2] == "vllm":
            return i + 1
    return len(words)


def _until_next_command(words: list[str]) -> list[str]:
    ends = (i for i, word in enumerate(words) if word and set(word) <= set(";&|\n"))
    return words[: next(ends, len(words))]


def _flag(file: str, rest: list[str]) -> tuple[str, str]:
    """Take one flag off the front, with its value: `--key value`, `--key=value`, or a switch."""
    word = rest.pop(0)
    key, equals, value = word.partition("=")
    if not word.startswith("-"):
        raise InputError(f"{file}: every word after the model must belong to a flag, got '{word}'")
    name = SHORT.get(key, key.lstrip("-").replace("_", "-"))
    if equals:
        return name, value
    if name in SWITCHES or name.startswith("no-") or not rest or re.match(r"^-\D", rest[0]):
        return name, "true"
    values = [rest.pop(0)]
    while rest and not rest[0].startswith("-"):
        values.append(rest.pop(0))
    return name, " ".join(values)
