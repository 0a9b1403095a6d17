"""Servers that answer as a test decides, eval sets from plain lists, and the command as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fwopt.cli.evals import evals

from .answering import Answering, answering

Start = Callable[..., Answering]
_APP = typer.Typer()
_APP.command()(evals)


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(reply, token_s=0)`: a server that ends with the test."""
    with ExitStack() as stack:
        yield lambda reply, token_s=0.0: stack.enter_context(answering(reply, token_s))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Sequence[Any]], Path]:
    """An eval set of these lines; text is written as it is."""

    def make(lines: Sequence[Any], name: str = "set.jsonl") -> Path:
        path = tmp_path / name
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    return make


def sums(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i} + 1", "expected": i + 1, "grader": "numeric"} for i in range(count)]


def adds(asked: str, body: dict[str, Any]) -> str:
    """Answers every sum rightly."""
    return f"The answer is {int(asked.split()[0]) + 1}."


def fails_below(limit: int) -> Callable[[str, dict[str, Any]], str]:
    """Answers wrongly where the first number is below `limit`."""
    return lambda asked, body: adds(asked, body) if int(asked.split()[0]) >= limit else "I do not know."


def run(*arguments: object) -> Any:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(_APP, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
