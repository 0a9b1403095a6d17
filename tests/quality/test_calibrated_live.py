"""llm-compressor in its own Python, and llama.cpp's programs: what they write is read back and measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fwopt.quantize.produce import read_record

LLMC, MODEL, GGUF = (os.environ.get(f"FWOPT_{n}") for n in ("LLMCOMPRESSOR_PYTHON", "SMOLLM2", "SMOLLM2_GGUF"))
SERVER = os.environ.get("FWOPT_LLAMA_SERVER")
pytestmark = pytest.mark.live


def fwopt(*words):
    ended = subprocess.run(
        [sys.executable, "-m", "fwopt", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    import pydoc_data.topics as topics

    folder = tmp_path_factory.mktemp("text")
    whole = "\n\n".join(topics.topics[k] for k in sorted(topics.topics))
    for name, part in (("calibration", whole[:8000]), ("held-out", whole[8000:14000])):
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")
    return folder / "calibration.txt", folder / "held-out.txt"


@pytest.mark.skipif(LLMC is None, reason="FWOPT_LLMCOMPRESSOR_PYTHON names no Python that has llm-compressor")
@pytest.mark.parametrize("scheme", ["gptq-w4a16-g64", "awq-w4a16-g64", "smoothquant-int8"])
def test_a_calibrated_checkpoint_is_written_and_measured(scheme, texts, model_folder, tmp_path):
    source, out = model_folder("llama", torch.bfloat16), tmp_path / "out"
    size = ("--calibrate-tokens", "1024", "--max-tokens", "1024", "--window", "64")
    where = ("--out", out, "--quality-out", tmp_path / "q")
    fwopt("quantize", source, "--scheme", scheme, "--calibrate", texts[0], "--text", texts[1], *size, *where)
    record = read_record(out)
    assert record.written_by.startswith("llmcompressor 0.14")
    assert record.checked == "21 matrices read back, all finite"
    assert record.study is not None
    assert 0 < record.study.figures.overall.kl.value < 1
    assert "calibrated on 1,024 tokens of calibration.txt" in record.says


@pytest.mark.skipif(
    SERVER is None or GGUF is None or MODEL is None,
    reason="FWOPT_LLAMA_SERVER, FWOPT_SMOLLM2_GGUF or FWOPT_SMOLLM2 is not set",
)
def test_a_gguf_is_written_by_llama_quantize(tmp_path):
    base = next(Path(str(GGUF)).glob("*F16.gguf"))
    out = tmp_path / "out"
    fwopt(
        "quantize", MODEL, "--scheme", "gguf-q8_0", "--gguf-from", base, "--out", out, "--quality-out", tmp_path / "q"
    )
    record = read_record(out)
    assert record.format == "gguf"
    assert record.study is None
    assert record.weight_bytes < 0.6 * record.source_bytes
    assert "Not measured." in (out / "README.md").read_text(encoding="utf-8")
