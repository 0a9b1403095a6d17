"""Shipped profiles and catalogue models, opened once a session; cost models without fitted factors."""

import functools
from collections.abc import Callable

import pytest

from fwopt.perf.calibration import Calibration
from fwopt.perf.cost import CostModel
from fwopt.perf.store import Profile, load_profile
from fwopt.spec.engine import EngineSpec
from fwopt.spec.hardware import DeviceSpec
from fwopt.targets import load_hardware, load_model

VERSIONS = {"vllm": "0.24.0", "sglang": "0.5.14"}


@functools.cache
def _device(name: str) -> DeviceSpec:
    return load_hardware(f"{name}:8", None).device


@functools.cache
def _profile(device: str, engine: str) -> Profile:
    return load_profile(_device(device), EngineSpec(name=engine, version=VERSIONS[engine]))


@functools.cache
def _cost(model: str, device: str, engine: str) -> CostModel:
    spec = EngineSpec(name=engine, version=VERSIONS[engine])
    off = Calibration(engine=engine)
    return CostModel(load_model(model), _device(device), spec, _profile(device, engine), calibration=off)


@pytest.fixture(scope="session")
def h200() -> DeviceSpec:
    return _device("h200")


@pytest.fixture(scope="session")
def profile_of() -> Callable[[str, str], Profile]:
    return _profile


@pytest.fixture(scope="session")
def cost_of() -> Callable[[str, str, str], CostModel]:
    return _cost
