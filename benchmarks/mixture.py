"""Mixtures of schemes beside each scheme everywhere: KL on text that the choice did not see, time of a step's products.

    python benchmarks/mixture.py MODEL CHOICE_TEXT HELD_OUT_TEXT TIMES.json [--step 1] [--budgets 0.05,0.1,0.2]

TIMES.json is what `fwopt quantize --scheme mixed --times vllm` keeps.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fwopt.cli.comparing_quality import request
from fwopt.quality.schemes import parse_schemes
from fwopt.quantize.bands import bands, mixture
from fwopt.quantize.mix import Mixer, measure
from fwopt.quantize.steps import parse_steps
from fwopt.quantize.times import from_measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "choice", "held_out", "times"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--step", default="1")
    parser.add_argument("--budgets", default="0.05,0.1,0.2")
    parser.add_argument("--choices", default="int8,w4a16-g64,w4a16-g32")
    parser.add_argument("--band", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--home", type=Path, default=Path("reports/mixture"))
    asked = parser.parse_args()

    def tell(what: str, done: int, total: int) -> None:
        if total and done % 100 == 0:
            print(f"  {what}: {done} of {total}", flush=True)

    def on(text: Path):
        return request(
            str(asked.model), [text], [], "int8", asked.home, max_tokens=asked.tokens, window=128, seed=0, dtype="bf16"
        )

    where, schemes = bands(asked.model, asked.band), parse_schemes(asked.choices)
    times = from_measured(asked.times, where, schemes, parse_steps(asked.step))
    mixer = Mixer(on(asked.choice), where, schemes, times, tell)
    found = [mixer.choose(float(budget)) for budget in asked.budgets.split(",")]
    everywhere = {s.name: mixture(dict.fromkeys((b.name for b in where), s), where) for s in schemes}
    held_out = measure(on(asked.held_out), [*everywhere.values(), *(scheme for scheme, _ in found)], tell)
    print("| | KL where chosen | KL held out | products of a step, ms |\n|---|---|---|---|")
    for name, (kl, seconds) in mixer.uniform().items():
        out = held_out[everywhere[name].name] if name in everywhere else 0.0
        print(f"| {name} everywhere | {kl:.4g} | {out:.4g} | {seconds * 1e3:.2f} |")
    for scheme, mix in found:
        row = f"{mix.measured_kl:.4g} (sum {mix.predicted_kl:.4g}, round {mix.rounds}) | {held_out[scheme.name]:.4g}"
        print(f"| mixture, KL at most {mix.budget:g} | {row} | {mix.seconds * 1e3:.2f} |")
    for scheme, mix in found:
        print(scheme.name, ", ".join(f"{g.group} {g.scheme} {g.kl:.3g}" for g in mix.groups))


if __name__ == "__main__":
    main()
