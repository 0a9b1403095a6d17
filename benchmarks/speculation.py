"""Writes the prompts that the live client sends for a trace as a trace with text, so that `fwopt speculation` can
measure how often guesses come true on the very replies that a live measurement gets.

    python benchmarks/speculation.py conv.jsonl.gz ./SmolLM2-135M-Instruct prompts.jsonl
    fwopt speculation ./SmolLM2-135M-Instruct --workload prompts.jsonl --replies generated --ngram 1-3 --tokens 3
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fwopt.live.prompts import Prompts
from fwopt.live.vocabulary import from_tokenizer
from fwopt.workload import read

REQUESTS = 64


def main(trace: Path, model: Path, out: Path) -> None:
    workload = read(trace).workload
    prompts = Prompts(workload, from_tokenizer(model), "speculation")
    with out.open("w", encoding="utf-8") as file:
        for i in range(min(REQUESTS, len(workload))):
            lengths = {"prompt_tokens": int(workload.prompt_tokens[i]), "output_tokens": int(workload.output_tokens[i])}
            row = {"arrival_s": float(workload.arrival_s[i]), **lengths, "text": {"prompt": prompts.tokens(i).tolist()}}
            file.write(json.dumps(row) + "\n")
    print(f"{out}: {min(REQUESTS, len(workload))} prompts")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
