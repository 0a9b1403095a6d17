"""A written checkpoint in real vLLM on the CPU: the same log-probabilities as ours, token by token."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from fwopt.quality.arms import Arm
from fwopt.quality.compare import compare
from fwopt.quality.model import StreamedModel
from fwopt.quality.schemes import SCHEMES, Scheme
from fwopt.quality.states import States
from fwopt.quality.stored import StoredCheckpoint
from fwopt.quality.walk import Walk
from fwopt.quality.windows import Document, cut
from fwopt.quantize.bands import bands, mixture
from fwopt.quantize.times import SERVED_AS_MEASURED
from fwopt.quantize.write import Writer, appearing

VLLM, MODEL = os.environ.get("FWOPT_VLLM_PYTHON"), os.environ.get("FWOPT_SMOLLM2")
WINDOW, WINDOWS = 128, 8
CONTROLS = ("control-batch", "control-kernel")
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(VLLM is None, reason="FWOPT_VLLM_PYTHON names no Python that has vLLM"),
    pytest.mark.skipif(MODEL is None, reason="FWOPT_SMOLLM2 names no folder of SmolLM2-135M-Instruct"),
]
NAMES = ("int8", "w4a16-g64", "mixed")
ASK = """
import json, os, sys
from vllm import LLM, SamplingParams
def ask(folder, rows):
    llm = LLM(model=folder, dtype="bfloat16", max_model_len=256, max_num_seqs=8, enforce_eager=True,
              enable_prefix_caching=False)
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    found = llm.generate([{"prompt_token_ids": row} for row in rows], asked, use_tqdm=False)
    llm.llm_engine.engine_core.shutdown()
    return [[p[t].logprob for p, t in list(zip(f.prompt_logprobs, row))[1:]] for f, row in zip(found, rows)]
if __name__ == "__main__":
    rows = json.load(open("rows.json"))
    found = [ask(folder, rows) for folder in sys.argv[1:]]
    with open("out.json", "w") as file:
        json.dump(found, file)
    os._exit(0)  # an interpreter with vLLM in it may abort while it ends, with the answer given
"""


def quiet(*_):
    return None


@pytest.fixture(scope="module")
def windows():
    import pydoc_data.topics as topics

    from tokenizers import Tokenizer

    text = "\n\n".join(topics.topics[k] for k in sorted(topics.topics))[:8000]
    tokens = Tokenizer.from_file(f"{MODEL}/tokenizer.json").encode(text).ids
    return cut([Document("prose", tokens)], prefix=(), window=WINDOW, max_tokens=WINDOW * WINDOWS, seed=0,
               vocabulary=49152)  # fmt: skip


def scheme_of(name: str) -> Scheme:
    """`mixed`: int8, 4 bits and 16 bits side by side in each layer, otherwise in the next."""
    if name != "mixed":
        return SCHEMES[name]
    turns = [SCHEMES["int8"], SCHEMES["w4a16-g64"], None]
    where = bands(Path(MODEL), 1)
    return mixture({band.name: turns[(at + band.layers[0]) % 3] for at, band in enumerate(where)}, where)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints as `fwopt quantize` writes them, by name of their scheme."""
    folders = {name: tmp_path_factory.mktemp("checkpoints") / name for name in NAMES}
    for name, folder in folders.items():
        with appearing(folder) as work:
            Writer(Path(MODEL), scheme_of(name), quiet).write(work)
    return folders


@pytest.fixture(scope="module")
def in_vllm(written, windows, tmp_path_factory) -> dict[str, np.ndarray]:
    """-ln p of every token but the first of each window; one process serves one checkpoint after another."""
    work = tmp_path_factory.mktemp("vllm")
    (work / "ask.py").write_text(ASK, encoding="utf-8")
    (work / "rows.json").write_text(json.dumps([windows.tokens[windows.rows(i)].tolist() for i in range(len(windows))]))
    env = (
        os.environ
        | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
        | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # the engine in this process: half the time to start
        | SERVED_AS_MEASURED
    )
    env.pop("PYTHONPATH", None)
    command = [VLLM, "ask.py", *written.values()]
    done = subprocess.run(command, env=env, cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    answers = json.loads((work / "out.json").read_text())
    return {name: -np.concatenate(answer) for name, answer in zip(written, answers, strict=True)}


@pytest.mark.parametrize("name", NAMES)
def test_vllm_computes_what_was_measured(name, windows, written, in_vllm, tmp_path):
    """vLLM's log-probabilities of the checkpoint lie as near to ours as those of a control of the same checkpoint: our
    own, with other kernels and batches. (Rounded activations make that noise large: a hair's breadth decides a level.)
    """
    source, scheme = Path(MODEL), scheme_of(name)
    stored = StoredCheckpoint.open(written[name], torch.bfloat16)
    model = StreamedModel(source, torch.bfloat16)
    arms = [
        Arm("reference"),
        Arm("scheme", scheme=scheme),
        Arm("control-batch", scheme=scheme, batch_tokens=1, backwards=True, padding=7),
        Arm("control-kernel", scheme=scheme, attention="eager", batch_tokens=1024, backwards=True, wide=True),
        Arm("stored", stored=stored),
    ]
    states = States(tmp_path / "states", len(windows.tokens), model.config.hidden_size, torch.bfloat16)
    Walk(model, windows, states, model.stored_dtype()).run(arms, quiet)
    names, heads = ["scheme", *CONTROLS, "stored"], {"stored": stored.model}
    found, reference = compare(model, windows, states, "reference", names, quiet, heads)
    ours = found["scheme"].surprise
    np.testing.assert_array_equal(found["stored"].surprise, ours)
    theirs = in_vllm[name]
    noise = max(_spread(found[control].surprise - ours) for control in CONTROLS)
    apart, cost = _spread(theirs - ours), _spread(ours - reference)
    print(f"{name}: controls {noise:.4f}, vLLM {apart:.4f} (mean {(theirs - ours).mean():+.5f}), cost {cost:.4f}")
    assert apart < 1.3 * noise
    assert abs((theirs - ours).mean()) < 3 * apart / len(ours) ** 0.5


def _spread(difference: np.ndarray) -> float:
    return float(np.sqrt((difference**2).mean()))
