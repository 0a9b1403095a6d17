"""The toy service, loaded by path: test folders are no packages."""

import importlib.util
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).with_name("toy_service.py")


def _load():
    name = "fwopt_toy_service"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _PATH)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def toy():
    return _load()


@pytest.fixture(scope="session")
def toy_script() -> Path:
    return _PATH
