"""A real model from start to text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .serving import Client, ServerProcess

QUESTION = {
    "messages": [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}],
    "temperature": 0,
    "max_tokens": 30,
}


def ask(*arguments: str) -> str:
    process = ServerProcess("--max-model-len", "2048", "--kv-cache-gib", "0.5", *arguments)
    try:
        status, body = Client(process.wait_ready()).post("/v1/chat/completions", QUESTION)
        assert status == 200, body
        assert body["choices"][0]["finish_reason"] == "stop"
        return body["choices"][0]["message"]["content"]
    finally:
        process.close()


@pytest.mark.live
@pytest.mark.skipif("FWOPT_SMOLLM2" not in os.environ, reason="FWOPT_SMOLLM2 names no model folder")
def test_smollm2_answers():
    assert "Paris" in ask("--model", os.environ["FWOPT_SMOLLM2"])


@pytest.mark.live
@pytest.mark.skipif("FWOPT_SMOLLM2_GGUF" not in os.environ, reason="FWOPT_SMOLLM2_GGUF names no folder with a GGUF")
def test_smollm2_answers_from_gguf():
    file = next(Path(os.environ["FWOPT_SMOLLM2_GGUF"]).glob("*.gguf"))
    assert "Paris" in ask("--model", str(file))
