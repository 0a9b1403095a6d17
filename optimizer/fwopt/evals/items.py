"""Eval sets: JSON lines, one item each. A bad line is named with its number before anything is asked."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import orjson
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from fwopt.errors import InputError, TraceError, UnknownNameError
from fwopt.evals.graders import GRADERS, Grader
from fwopt.spec.base import Frozen, content_hash


def _named(value: Any) -> Any:
    """`"exact"` is a grader without options."""
    return {"kind": value} if isinstance(value, str) else value


class EvalItem(Frozen):
    """One line of an eval set."""

    id: str | None = None
    """Unique in the set; the line's number when absent."""
    group: str | None = None
    """Figures are also given by group."""
    prompt: Annotated[str, Field(min_length=1)] | None = None
    """Sent as the user's message, or as it is to the completions API."""
    messages: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | None = None
    """A conversation in place of a prompt."""
    tools: tuple[dict[str, Any], ...] = ()
    """As the chat API takes them."""
    expected: Any = None
    """What the grader holds the answer against."""
    grader: Annotated[Grader, BeforeValidator(_named)]
    """A grader's name, or an object with its `kind` and options."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""

    @model_validator(mode="after")
    def _asks(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a line has either a prompt or messages")
        return self

    @property
    def name(self) -> str:
        assert self.id is not None
        return self.id


@dataclass(frozen=True, slots=True)
class EvalSet:
    """Items that are asked, in the file's order."""

    name: str
    items: tuple[EvalItem, ...]

    @property
    def digest(self) -> str:
        return content_hash([item.model_dump(mode="json") for item in self.items])

    def drawn(self, limit: int | None, seed: int) -> EvalSet:
        """So many of the items, the same ones for the same seed."""
        if limit is None or limit >= len(self.items):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self.items)), limit))
        return EvalSet(self.name, tuple(self.items[i] for i in chosen))


def read_eval_set(path: Path) -> EvalSet:
    """Every line checked, graders' expectations included."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    items: list[EvalItem] = []
    seen: dict[str, int] = {}
    with _importable(path.parent):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            item = _item(str(path), number, line)
            if item.name in seen:
                raise TraceError(str(path), number, "id", f"line {seen[item.name]} has the same", item.name)
            seen[item.name] = number
            items.append(item)
    if not items:
        raise InputError(f"{path}: holds no item; a line is for example {EXAMPLE}")
    return EvalSet(path.name.partition(".")[0], tuple(items))


EXAMPLE = '{"prompt": "What is 2 + 3?", "expected": 5, "grader": "numeric"}'


def _item(file: str, number: int, line: bytes) -> EvalItem:
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{file}:{number}: is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{file}:{number}: must be an object, for example {EXAMPLE}")
    _known_grader(file, number, values.get("grader"))
    try:
        item = EvalItem.model_validate({"id": str(number)} | values)
        item.grader.check(item.expected, item.tools)
    except ValidationError as error:
        raise InputError(f"{file}:{number}: {_first(error)}") from None
    except ValueError as error:
        field = "grader" if item.grader.kind == "custom" else "expected"
        raise TraceError(file, number, field, str(error), item.expected) from None
    return item


def _known_grader(file: str, number: int, grader: Any) -> None:
    if grader is None:
        raise InputError(f"{file}:{number}: grader: missing; write one of {', '.join(GRADERS)}")
    kind = grader.get("kind") if isinstance(grader, dict) else grader
    if kind not in GRADERS:
        raise InputError(f"{file}:{number}: {UnknownNameError('grader', str(kind), GRADERS)}")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"] if str(part) not in GRADERS]
    rule = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(place)}: unknown; see docs/evals.md"
    shown = "" if isinstance(first["input"], dict) else f", got {repr(first['input'])[:60]}"
    return f"{'.'.join(place)}: {rule}{shown}" if place else f"{rule}{shown}"


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Graders of the user's own may lie beside the eval set."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def read_eval_sets(paths: Sequence[Path]) -> list[EvalSet]:
    """Sets with different names."""
    sets = [read_eval_set(path) for path in paths]
    names = [found.name for found in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two eval sets are called '{twice}'; rename one of the files")
    return sets
