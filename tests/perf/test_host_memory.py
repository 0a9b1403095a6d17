"""Memory of engines that do not size their cache from a GPU."""

from __future__ import annotations

import pytest

from fwopt.perf.host_memory import LLAMACPP_RUNTIME_BYTES, slots_fit
from fwopt.spec.candidate import Batching, Candidate, Gguf


@pytest.mark.parametrize(("prefix_caching", "pools"), [(False, 1), (True, 2)])
def test_llamacpp_parks_prompts_of_idle_slots_in_a_processors_memory(cpu, prefix_caching, pools):
    batching = Batching(max_num_seqs=4, max_model_len=1024, prefix_caching=prefix_caching)
    candidate = Candidate(quantization=Gguf(), batching=batching)
    enough = 10**9 + pools * 4 * 1024 * 2000 + LLAMACPP_RUNTIME_BYTES
    fits = slots_fit(cpu.model_copy(update={"memory_bytes": enough}), candidate, 10**9, 2000, 1024)
    assert (fits.missing, fits.blocks) == (None, 4 * 64)
    short = slots_fit(cpu.model_copy(update={"memory_bytes": enough - 1}), candidate, 10**9, 2000, 1024)
    assert short.missing == ("weights and the context of every slot exceed the memory", enough, enough - 1)
