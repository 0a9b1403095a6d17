"""A command of the user's, timed from start to end, or asked for its own samples."""

from __future__ import annotations

import math
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from fwopt.errors import InputError
from fwopt.regress.machine import hardware
from fwopt.regress.results import rounded
from fwopt.regress.samplers.base import Visit
from fwopt.spec.base import content_hash
from fwopt.spec.bench import Arm, ArmName, CommandBench
from fwopt.spec.bench_result import Key

_SHOWN = 200
_TICK_S = 1e-6
"""Least processor time: less than the kernel counts."""


class CommandSampler:
    """Without a shell, in the arm's folder and environment. Satisfies `Sampler`."""

    exact = False

    def __init__(self, bench: CommandBench, arms: Mapping[ArmName, Arm]) -> None:
        self.bench, self.arms = bench, arms
        self.notes = (f"a run is {bench.repeat} calls",) if bench.repeat > 1 else ()
        self._words = words(bench.command)

    def key(self, arm: ArmName) -> Key:
        how = self.arms[arm]
        return Key(
            hardware=hardware(),
            engine=how.version or "unknown",
            model="-",
            workload=content_hash(self._words),
            config=content_hash(how.env),
        )

    def visit(self, arm: ArmName) -> Visit:
        samples: dict[str, list[float]] = {}
        parts: list[dict[str, float]] = []
        lost = 0
        for _ in range(self.bench.repeat):
            done = call([word.replace("{arm}", arm) for word in self._words], self.arms[arm], self.bench.timeout_s)
            if isinstance(done, str):
                return Visit({}, problem=done)
            wall_s, cpu_s, text = done
            if self.bench.output == "wall":
                samples.setdefault("wall", []).append(rounded(wall_s))
                samples.setdefault("cpu", []).append(max(rounded(cpu_s), _TICK_S))
                continue
            found = parse(text)
            if isinstance(found, str):
                return Visit({}, problem=found)
            for series, values in found.samples.items():
                samples.setdefault(series, []).extend(values)
            lost += found.lost
            parts.append(found.parts)
        mean = {
            name: sum(p.get(name, 0.0) for p in parts) / len(parts) for name in sorted({n for p in parts for n in p})
        }
        return Visit({series: tuple(values) for series, values in samples.items()}, lost, mean)

    def __enter__(self) -> CommandSampler:
        for arm, how in self.arms.items():
            if how.cwd is not None and not how.cwd.is_dir():
                raise InputError(f"arms.{arm}.cwd: must be a folder, got '{how.cwd}'")
        return self

    def __exit__(self, *details: object) -> None:
        return


def words(command: str | Sequence[str]) -> list[str]:
    try:
        found = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError as error:
        raise InputError(f"command: must be words as a shell would take them, got '{command}': {error}") from None
    if not found:
        raise InputError("command: must name a program, got an empty one")
    return found


def call(command: list[str], arm: Arm, timeout_s: float) -> tuple[float, float, str] | str:
    """(seconds, processor seconds, standard output), or what went wrong, in one line. A command that hangs is
    ended with its children."""
    before, used = time.perf_counter(), _children_s()
    try:
        process = subprocess.Popen(
            command, cwd=arm.cwd or Path.cwd(), env=os.environ | arm.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return f"{command[0]}: cannot be started: {error.strerror}"
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return f"no end within {timeout_s:g} s"
    finally:
        taken = time.perf_counter() - before
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode != 0:
        last = err.decode("utf-8", "replace").strip().splitlines()
        return f"exit status {process.returncode}: {(last[-1] if last else 'it said nothing')[:_SHOWN]}"
    return taken, _children_s() - used, out.decode("utf-8", "replace")


def _children_s() -> float:
    """Processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def parse(text: str) -> Visit | str:
    """The JSON on the last line of a command's output, or what is wrong with it."""
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        content: Any = orjson.loads(lines[-1]) if lines else None
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("samples"), dict):
        return f"its last line must be JSON with `samples`, got '{(lines[-1] if lines else '')[:_SHOWN]}'"
    samples: dict[str, tuple[float, ...]] = {}
    for series, values in content["samples"].items():
        if not isinstance(values, list) or not all(_positive(v) for v in values):
            return f"samples.{series}: must be numbers above zero, got {str(values)[:_SHOWN]}"
        samples[series] = tuple(rounded(float(v)) for v in values)
    parts = content.get("parts", {})
    if not isinstance(parts, dict) or not all(_number(v) for v in parts.values()):
        return f"parts: must be seconds by name, got {str(parts)[:_SHOWN]}"
    lost = content.get("lost", 0)
    if not isinstance(lost, int) or lost < 0:
        return f"lost: must be a count, got {lost!r}"
    return Visit(samples, lost, {str(name): rounded(float(value)) for name, value in parts.items()})


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def python_of(arm: Arm) -> str:
    return str(arm.python) if arm.python is not None else sys.executable
