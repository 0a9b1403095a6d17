"""A promise: Qwen3-8B on one H200, and a stretch of a recorded trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from fwopt.perf.cost import CostModel
from fwopt.perf.store import load_profile
from fwopt.search.simulating import SimulatingEvaluator
from fwopt.spec.candidate import Candidate
from fwopt.spec.engine import EngineSpec
from fwopt.spec.objective import Objective
from fwopt.targets import load_hardware, load_model
from fwopt.verify.metrics import STANDARD
from fwopt.verify.promise import Promise
from fwopt.workload import Workload, read, scale_rate
from fwopt.workload.select import window

WORKLOADS = Path(__file__).parents[2] / "workloads"


@pytest.fixture(scope="session")
def conversation() -> Workload:
    """Azure conv, twice as fast."""
    return scale_rate(read(WORKLOADS / "azure-2023-conv.csv.gz").workload, 2)


@pytest.fixture(scope="session")
def sharing() -> Workload:
    """The start of Mooncake's conversations, whose prompts share prefixes."""
    return window(read(WORKLOADS / "mooncake-conversation.jsonl.gz").workload, 0, 800)


@pytest.fixture(scope="session")
def promise(conversation: Workload) -> Promise:
    model, hardware, engine = load_model("Qwen/Qwen3-8B"), load_hardware("h200:1"), EngineSpec()
    cost = CostModel(model, hardware.device, engine, load_profile(hardware.device, engine))
    return Promise.of(SimulatingEvaluator(conversation, cost, hardware, Objective()), Candidate(), STANDARD)
