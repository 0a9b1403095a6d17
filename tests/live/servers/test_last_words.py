"""Logs as the engines wrote them, shortened: the line that names the cause, and the kind of failure."""

from __future__ import annotations

import pytest

from fwopt.live.servers.last_words import failure, last_words

VLLM_MEMORY = """\
(Worker pid=495) ERROR 11-24 07:53:51 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=495) ERROR 11-24 07:53:51 [multiproc_executor.py:1063]     raise ValueError(
(Worker pid=495) ERROR 11-24 07:53:51 [multiproc_executor.py:1063] ValueError: Available memory on node 0 (13.29/19.46 \
GiB) on kv cache allocation is less than requested memory for kv (200.0 GiB).
(EngineCore pid=461) ERROR 11-24 07:53:51 [core.py:1510] EngineCore failed to start.
(EngineCore pid=461) ERROR 11-24 07:53:51 [core.py:1510] RuntimeError: Worker failed with error 'Available memory ...
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
/lib/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked \
shared_memory objects to clean up at shutdown
  warnings.warn('resource_tracker: There appear to be %d '
"""
VLLM_CONFIG = """\
  File "pydantic/_internal/_dataclasses.py", line 121, in __init__
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (9999999) is greater than the derived max_model_len
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""
LLAMA_MODEL = """\
0.00.005.738 I srv    load_model: loading model '/nope.gguf'
0.00.005.874 E gguf_init_from_file: failed to open GGUF file '/nope.gguf' (No such file or directory)
0.00.005.961 E llama_model_load: error loading model: llama_model_loader: failed to load model from /nope.gguf
0.00.005.982 E cmn  common_init_: failed to load model '/nope.gguf'
0.00.006.003 I srv    operator(): operator(): cleaning up before exit...
0.00.008.319 E srv  llama_server: exiting due to model loading error
"""
LLAMA_MEMORY = """\
0.00.384.932 E ggml_aligned_malloc: insufficient memory (attempted to allocate 36000.00 MB)
0.00.384.949 E ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 37748736000
0.00.399.219 E cmn  common_init_: failed to create context with model 'm.gguf'
0.00.399.241 I srv    operator(): operator(): cleaning up before exit...
0.00.403.566 E srv  llama_server: exiting due to model loading error
"""
CASES = {
    "vllm, memory": (
        VLLM_MEMORY, "out of memory",
        VLLM_MEMORY.splitlines()[2].partition("] ")[2],
    ),
    "vllm, configuration": (
        VLLM_CONFIG, "refused",
        f"ValidationError: 1 validation error for ModelConfig: {VLLM_CONFIG.splitlines()[2].strip()}",
    ),
    "vllm, flag": (
        "usage: vllm serve [-h]\nmain.py: error: unrecognized arguments: --no-such-flag\n", "refused",
        "main.py: error: unrecognized arguments: --no-such-flag",
    ),
    "cuda": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.\nRuntimeError: See root cause above.\n",
        "out of memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.",
    ),
    "llama.cpp, model": (LLAMA_MODEL, "refused", "failed to open GGUF file '/nope.gguf' (No such file or directory)"),
    "llama.cpp, memory": (
        LLAMA_MEMORY, "out of memory", "insufficient memory (attempted to allocate 36000.00 MB)",
    ),
    "llama.cpp, flag": ("error: invalid argument: --nope\n", "refused", "error: invalid argument: --nope"),
    "llama.cpp, value": (
        'error while handling environment variable "LLAMA_ARG_BATCH": stoi\n\n\n', "refused",
        'error while handling environment variable "LLAMA_ARG_BATCH": stoi',
    ),
    "any, crash": ("loading\nAssertionError\n", "crashed", "AssertionError"),
    "any, nothing known": ("loading weights\n\n", "crashed", "loading weights"),
    "silence": ("", "crashed", "it said nothing"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_cause_is_found(name):
    log, kind, words = CASES[name]
    assert last_words(log) == words
    assert failure(words) == kind


def test_a_killed_engine_ran_out_of_memory_when_the_kernel_says_so():
    assert failure("loading weights", killed_for_memory=True) == "out of memory"
