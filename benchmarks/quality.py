"""How often the verdict of `fwopt quality` is wrong: planted damage that it misses, harmless changes that it flags.

    python benchmarks/quality.py [--draws 200]

Each draw takes its own text by its own seed on a tiny random Llama in bf16. Damage: one layer with its scales
5 to 30 % off, against the unquantized model. Harmless: another batch size, order, padding, attention or kernel.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from fwopt.quality.arms import Arm
from fwopt.quality.compare import Places, compare
from fwopt.quality.model import StreamedModel
from fwopt.quality.states import States
from fwopt.quality.statistics import Bootstrap
from fwopt.quality.study import CONTROLS, REFERENCE, control_arms
from fwopt.quality.summary import Summary
from fwopt.quality.walk import Walk
from fwopt.quality.windows import Document, cut

VOCABULARY = 512


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def damaged(generator: np.random.Generator) -> tuple[str, Arm]:
    layer, factor = int(generator.integers(4)), float(1 + generator.uniform(0.05, 0.3))
    factor = factor if generator.random() < 0.5 else 1 / factor
    what = f"layer {layer + 1}, scales x{factor:.3f}"
    return what, Arm("drawn", damage=lambda index, _, weight: weight * factor if index == layer else weight)


def harmless(generator: np.random.Generator) -> tuple[str, Arm]:
    arm = Arm(
        "drawn",
        attention="sdpa" if generator.random() < 0.5 else "eager",
        batch_tokens=int(generator.integers(1, 4096)),
        backwards=bool(generator.random() < 0.5),
        padding=int(generator.integers(0, 40)),
        wide=bool(generator.random() < 0.5),
    )
    return f"{arm.attention}, batches of {arm.batch_tokens} tokens, padding {arm.padding}, wide {arm.wide}", arm


def verdict(folder: Path, arm: Arm, seed: int, work: Path) -> tuple[str, float, float]:
    """(verdict, KL, the louder control's KL)."""
    text = np.random.default_rng(seed).integers(3, VOCABULARY, 16 * 64).tolist()
    windows = cut([Document("text", text)], prefix=(), window=64, max_tokens=1024, seed=seed, vocabulary=VOCABULARY)
    model = StreamedModel(folder, torch.bfloat16)
    states = States(work, len(windows.tokens), model.config.hidden_size, torch.bfloat16)
    arms = [Arm(REFERENCE), *control_arms(model), arm]
    Walk(model, windows, states, model.stored_dtype()).run(arms, lambda *_: None)
    found, reference = compare(model, windows, states, REFERENCE, [a.name for a in arms[1:]], lambda *_: None)
    summary = Summary(windows, Places.of(windows), reference, Bootstrap(seed))
    controls = [summary.control(name, "", found[name]) for name in CONTROLS]
    scheme = summary.scheme("drawn", "", found["drawn"], found, controls)
    return scheme.verdict, scheme.overall.kl.value, max(c.overall.kl.value for c in controls)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=200)
    draws = parser.parse_args().draws
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        make_model(folder)
        for title, draw, right in (("damage", damaged, "different"), ("harmless", harmless, "indistinguishable")):
            wrong = []
            for seed in range(draws):
                what, arm = draw(np.random.default_rng(seed))
                with tempfile.TemporaryDirectory() as work:
                    said, kl, noise = verdict(folder, arm, seed, Path(work))
                if said != right:
                    wrong.append(f"  {what}: {said}, KL {kl:.3g}, noise {noise:.3g}")
            print(f"{title}: {len(wrong)} of {draws} wrong ({len(wrong) / draws:.1%})", *wrong, sep="\n", flush=True)


if __name__ == "__main__":
    main()
