"""Comparing arms takes the memory of one chunk of logits, however many there are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import resource, sys
from pathlib import Path
import numpy as np, torch, transformers
from fwopt.quality import compare as module
from fwopt.quality.model import StreamedModel
from fwopt.quality.windows import Document, cut

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=50000, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2,
)
transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
model = StreamedModel(Path(sys.argv[1]), torch.bfloat16)

class States:
    def read(self, name, layer):
        return torch.randn(8000, 32, generator=torch.Generator().manual_seed(len(name))).bfloat16()

def peak(tokens):
    windows = cut([Document("made", tuple(range(tokens)))], prefix=(), window=125, max_tokens=tokens, seed=0,
                  vocabulary=50000)
    module.compare(model, windows, States(), "reference", ["a", "bb"], lambda *_: None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

few = peak(1000)
print(peak(6000) - few)
"""


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout) < 200, "MB more for six times the text"
