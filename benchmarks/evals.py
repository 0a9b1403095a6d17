"""How often the verdict on a paired eval errs, over sets drawn from answers that real servers gave.

    python benchmarks/evals.py [--draws 200] [--items 255]

`benchmarks/data/evals` holds the answers of llama.cpp to `basics` (`benchmarks/eval_sets.py`): SmolLM2-135M-Instruct as
Q8_0 (the reference), Q8_0 with four requests in flight, Q8_0 with the scales of one layer off, Q4_0. A draw takes items
with replacement, as if the set had been another one of the same kind.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import numpy as np

from fwopt.evals.files import read_answers
from fwopt.evals.statistics import paired

DATA = Path(__file__).with_name("data") / "evals"


def scores(name: str) -> np.ndarray:
    found = read_answers(DATA / f"{name}.answers.jsonl.gz")
    return np.array([answer.score for answer in found.graded.values()])


def verdicts(reference: np.ndarray, this: np.ndarray, draws: int, items: int, margin: float) -> Counter:
    generator = np.random.default_rng(20261124)
    found: Counter = Counter()
    for _ in range(draws):
        chosen = generator.integers(0, len(reference), items)
        found[paired(reference[chosen], this[chosen], margin=margin).verdict] += 1
    return found


def swapped(reference: np.ndarray, share: float) -> np.ndarray:
    """As many items lost as gained: a change that is harmless and not silent."""
    generator, this = np.random.default_rng(1), reference.copy()
    count = round(share * min((reference == 1).sum(), (reference == 0).sum()))
    for value in (0.0, 1.0):
        this[generator.choice(np.flatnonzero(reference == value), count, replace=False)] = 1 - value
    return this


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--items", type=int, default=255)
    parser.add_argument("--margin", type=float, default=0.03)
    given = parser.parse_args()
    reference = scores("q8")
    arms = {
        "itself, four at a time": scores("q8-batch"),
        "itself, one item in ten lost or gained alike": swapped(reference, 0.1),
        "one layer's scales off": scores("damaged"),
        "one layer's scales off, on a tenth of the requests": np.where(
            np.arange(len(reference)) % 10 == 0, scores("damaged"), reference
        ),
        "Q4_0": scores("q4"),
    }
    print(f"{given.draws} draws of {given.items} items, margin {given.margin:.1%}")
    for name, this in arms.items():
        difference = float((this - reference).mean())
        found = verdicts(reference, this, given.draws, given.items, given.margin)
        told = ", ".join(f"{verdict} {count}" for verdict, count in sorted(found.items()))
        print(f"{name:52} {difference * 100:+6.2f} pp   {told}")


if __name__ == "__main__":
    main()
