"""`python -m fwopt.regress.samplers.kernel_process QUESTION`: samples of one operator, as JSON on the last line."""

from __future__ import annotations

import json
import sys
from typing import Any

LEAST_EFFORT_S = 0.0
"""Five rounds a sample, whatever they take."""


def samples(question: dict[str, Any]) -> dict[str, Any]:
    from fwopt_kernels.registry import load
    from fwopt_kernels.timing import Question, compile_kernels, measure

    compile_kernels()
    operator = load(question["target"])
    variant = operator.space(question["format"]).variants()[0] if question["device"] == "cuda" else None
    asked = Question(
        question["target"], question["format"], tuple(question["shape"].items()), variant, question["device"],
        LEAST_EFFORT_S,
    )  # fmt: skip
    measure(asked)  # warm-up: compiled, checked, allocated
    taken = [measure(asked).p50_s for _ in range(question["repeat"])]
    name = f"operator:{operator.name}"
    return {"samples": {"call": taken}, "parts": {name: sorted(taken)[len(taken) // 2]}}


if __name__ == "__main__":
    print(json.dumps(samples(json.loads(sys.argv[1]))))
